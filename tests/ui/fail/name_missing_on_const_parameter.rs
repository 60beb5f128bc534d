use idempotency::{Error, idempotent};

#[idempotent(key = 1, ttl = "24h")]
async fn charge<const N: usize>() -> Result<usize, Error> {
    Ok(N)
}

fn main() {}
