use idempotency::{Error, idempotent};

#[idempotent(key = id, scope = Uuid::now_v7(), ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
