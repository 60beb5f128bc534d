use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", on_crash = verify("ask_the_bank"))]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
