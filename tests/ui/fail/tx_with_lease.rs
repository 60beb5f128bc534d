use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", lease = "30s", tx = tx)]
async fn charge(id: u64, tx: &mut u64) -> Result<u64, Error> {
    Ok(*tx + id)
}

fn main() {}
