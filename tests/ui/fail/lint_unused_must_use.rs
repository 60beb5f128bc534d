#![deny(unused_must_use)]

use idempotency::{Error, idempotent};

#[must_use = "a receipt is proof"]
#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

async fn caller() {
    charge(1);
    charge(2).await;
}

fn main() {
    drop(caller());
}
