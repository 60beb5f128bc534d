use idempotency::{Error, idempotent};

struct Payments;

#[idempotent(key = id, ttl = "24h")]
impl Payments {
    async fn charge(&self, id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

fn main() {}
