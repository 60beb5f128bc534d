use idempotency::{Error, idempotent};

#[idempotent(key = text, ttl = "24h")]
async fn charge(text: &[u8]) -> Result<&[u8], Error> {
    Ok(text)
}

fn main() {}
