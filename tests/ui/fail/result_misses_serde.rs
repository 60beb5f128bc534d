use idempotency::{Error, idempotent};

struct Receipt(u64);

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Result<Receipt, Error> {
    Ok(Receipt(id))
}

fn main() {}
