use idempotency::{Error, idempotent};

#[idempotent(key = text, ttl = "24h")]
async fn charge(text: &str) -> Result<&str, Error> {
    Ok(text)
}

fn main() {}
