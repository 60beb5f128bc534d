use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    if id == 0 {
        return Err("zero");
    }
    Ok(id)
}

fn main() {}
