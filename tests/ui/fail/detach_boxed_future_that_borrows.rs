use idempotency::{Error, idempotent};

#[async_trait::async_trait]
trait Payments {
    async fn charge(self, id: u64) -> Result<u64, Error>;
}

#[async_trait::async_trait]
impl Payments for u64 {
    #[idempotent(key = id, ttl = "24h", detach)]
    async fn charge(self, id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

fn main() {}
