use idempotency::{Error, idempotent};

#[idempotent(key = id, fingerprint = ("amount", "currency"), ttl = "24h")]
async fn charge(id: u64, amount: u64, currency: &str) -> Result<u64, Error> {
    Ok(id + amount + currency.len() as u64)
}

fn main() {}
