use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", tx = tx, on_crash = retry)]
async fn charge(id: u64, tx: u64) -> Result<u64, Error> {
    Ok(tx + id)
}

fn main() {}
