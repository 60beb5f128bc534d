#![deny(dead_code)]

use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
async fn never_called(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
