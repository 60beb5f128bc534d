use idempotency::store::SqlTransaction;
use idempotency::{Error, idempotent};

async fn commit<X: SqlTransaction>(tx: Box<X>) {
    drop(tx);
}

#[idempotent(key = id, ttl = "24h", name = "payments.charge", tx = tx)]
async fn charge<X: SqlTransaction>(id: u64, mut tx: Box<X>) -> Result<u64, Error> {
    commit(tx).await;
    Ok(id)
}

fn main() {}
