use idempotency::{Error, idempotent};

struct Order(u64);

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, order: &Order) -> Result<u64, Error> {
    Ok(id + order.0)
}

fn main() {}
