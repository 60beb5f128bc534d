use idempotency::{Error, idempotent};

#[idempotent(key = text.parse::<u64>()?, ttl = "24h")]
async fn charge(text: &str) -> Result<u64, Error> {
    Ok(text.len() as u64)
}

fn main() {}
