use idempotency::{Error, idempotent};

#[idempotent(key = uuid::Uuid::new_v4(), ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
