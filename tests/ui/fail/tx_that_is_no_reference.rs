use idempotency::store::SqlTransaction;
use idempotency::{Error, idempotent};

struct Payments<X> {
    tx: X,
}

impl<X: SqlTransaction> Payments<X> {
    #[idempotent(key = id, ttl = "24h", tx = self.tx)]
    async fn charge(&mut self, id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

fn main() {}
