use idempotency::{Error, idempotent};

async fn look_up() -> u64 {
    1
}

#[idempotent(key = (id, look_up().await), ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
