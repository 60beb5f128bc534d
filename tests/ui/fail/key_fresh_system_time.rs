use idempotency::{Error, idempotent};

use std::time::SystemTime;

#[idempotent(key = (id, SystemTime::now()), ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
