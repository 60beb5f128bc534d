use idempotency::idempotent;

enum PayError {
    Declined,
}

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Result<u64, PayError> {
    if id == 0 { Err(PayError::Declined) } else { Ok(id) }
}

fn main() {}
