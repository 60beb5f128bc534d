use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
fn charge(id: u64) -> impl Future<Output = Result<u64, Error>> {
    async move { Ok(id) }
}

fn main() {}
