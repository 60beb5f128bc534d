use idempotency::{Error, idempotent};

struct Order {
    id: u64,
    total: f64,
}

#[idempotent(key = "order:{order.total}", ttl = "24h")]
async fn charge(order: &Order) -> Result<u64, Error> {
    Ok(order.id)
}

fn main() {}
