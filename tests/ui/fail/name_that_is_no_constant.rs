use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", name = name)]
async fn charge(id: u64, name: &'static str) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
