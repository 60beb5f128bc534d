use idempotency::{Error, idempotent};

trait Payments {
    #[idempotent(key = id, ttl = "24h")]
    async fn charge(&self, id: u64) -> Result<u64, Error>;
}

fn main() {}
