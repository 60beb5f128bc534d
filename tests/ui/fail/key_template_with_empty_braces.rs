use idempotency::{Error, idempotent};

#[idempotent(key = "order:{}", ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
