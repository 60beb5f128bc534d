use idempotency::{Error, idempotent};

#[idempotent(key = "order:{0}", ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
