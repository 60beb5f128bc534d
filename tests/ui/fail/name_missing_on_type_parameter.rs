use idempotency::{Error, idempotent};

#[idempotent(key = 1, ttl = "24h")]
async fn charge<T: serde::Serialize + serde::de::DeserializeOwned>(value: T) -> Result<T, Error> {
    Ok(value)
}

fn main() {}
