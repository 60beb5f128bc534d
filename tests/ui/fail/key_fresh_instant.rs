use idempotency::{Error, idempotent};

#[idempotent(key = std::time::Instant::now().elapsed().as_nanos(), ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
