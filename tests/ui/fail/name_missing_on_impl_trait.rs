use idempotency::{Error, idempotent};

#[idempotent(key = 1, ttl = "24h")]
async fn charge(value: impl Into<u64>) -> Result<u64, Error> {
    Ok(value.into())
}

fn main() {}
