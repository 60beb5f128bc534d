#![deny(unused_variables)]

use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64, note: String) -> Result<u64, Error> {
    let unused = id;
    Ok(id)
}

fn main() {
    drop(charge(1, String::new()));
}
