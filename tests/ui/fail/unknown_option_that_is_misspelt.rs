use idempotency::{Error, idempotent};

#[idempotent(key = id, tll = "24h", ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
