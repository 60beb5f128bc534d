use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", on_conflict = wait("0s"))]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
