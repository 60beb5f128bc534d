use idempotency::{Error, idempotent};

#[idempotent(ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
