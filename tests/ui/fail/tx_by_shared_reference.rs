use idempotency::store::SqlTransaction;
use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", name = "payments.charge", tx = tx)]
async fn charge<X: SqlTransaction>(id: u64, tx: &X) -> Result<u64, Error> {
    Ok(id + size_of_val(tx) as u64)
}

fn main() {}
