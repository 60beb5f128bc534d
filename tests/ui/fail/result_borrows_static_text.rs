use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Result<&'static str, Error> {
    Ok(if id == 0 { "none" } else { "some" })
}

fn main() {}
