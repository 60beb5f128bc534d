use idempotency::{Error, idempotent};

#[idempotent(key = format!("{id}-{}", Local::now()), ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
