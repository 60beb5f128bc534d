use idempotency::{Error, idempotent};

struct Payments {
    tx: u64,
}

impl Payments {
    #[idempotent(key = id, ttl = "24h", tx = &self.tx)]
    async fn charge(&mut self, id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

fn main() {}
