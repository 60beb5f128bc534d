use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
struct Order {
    id: u64,
}

const _: fn() -> Result<u64, Error> = || Ok(Order { id: 1 }.id);

fn main() {}
