use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", scope = share)]
async fn charge(id: u64, share: f64) -> Result<f64, Error> {
    Ok(share)
}

fn main() {}
