use idempotency::{Error, idempotent};

struct Payments;

impl Payments {
    #[idempotent(key = id, ttl = "24h", detach)]
    async fn charge(&mut self, id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

fn main() {}
