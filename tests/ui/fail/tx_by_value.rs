use idempotency::{Error, idempotent};

struct Transaction<'a>(&'a u64);

#[idempotent(key = id, ttl = "24h", tx = tx)]
async fn charge(id: u64, tx: Transaction<'_>) -> Result<u64, Error> {
    Ok(id + tx.0)
}

fn main() {}
