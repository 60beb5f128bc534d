use idempotency::{Error, idempotent};

struct Order {
    id: u64,
}

#[idempotent(key = order.id, ttl = "24h", fingerprint = order)]
async fn charge(order: &Order) -> Result<u64, Error> {
    Ok(order.id)
}

fn main() {}
