use idempotency::{Error, idempotent};

#[idempotent(key = amount, ttl = "24h")]
async fn charge(amount: f32) -> Result<f32, Error> {
    Ok(amount)
}

fn main() {}
