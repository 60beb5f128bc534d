use idempotency::{Error, idempotent};

struct Order {
    id: u64,
    total: f64,
}

#[idempotent(key = (order.id, order.total), ttl = "24h")]
async fn charge(order: &Order) -> Result<f64, Error> {
    Ok(order.total)
}

fn main() {}
