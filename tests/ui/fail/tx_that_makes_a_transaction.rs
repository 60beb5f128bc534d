use idempotency::{Error, idempotent};

struct Pool;

impl Pool {
    async fn begin(&self) -> Result<u64, Error> {
        Ok(1)
    }
}

#[idempotent(key = id, ttl = "24h", tx = &mut pool.begin().await?)]
async fn charge(id: u64, pool: &Pool) -> Result<u64, Error> {
    pool.begin().await.map(|tx| tx + id)
}

#[idempotent(key = id, ttl = "24h", tx = pool.begin())]
async fn refund(id: u64, pool: &Pool) -> Result<u64, Error> {
    pool.begin().await.map(|tx| tx + id)
}

fn main() {}
