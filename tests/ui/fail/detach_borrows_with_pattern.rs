use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, &(first, _): &(u64, u64)) -> Result<u64, Error> {
    Ok(id + first)
}

fn main() {}
