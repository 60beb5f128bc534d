use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", engine = engine)]
async fn charge(id: u64, engine: idempotency::Idempotency) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
