use idempotency::{Error, idempotent};

struct Payments {
    tx: u64,
}

#[async_trait::async_trait]
trait Charge {
    async fn charge(&mut self, id: u64) -> Result<u64, Error>;
}

#[async_trait::async_trait]
impl Charge for Payments {
    #[idempotent(key = id, ttl = "24h", tx = &mut self.tx)]
    async fn charge(&mut self, id: u64) -> Result<u64, Error> {
        Ok(self.tx + id)
    }
}

fn main() {}
