use idempotency::{Error, idempotent};

struct Order {
    id: u64,
    total: f64,
}

#[idempotent(key = "order:{ordr.id}", ttl = "24h")]
async fn charge(order: &Order) -> Result<f64, Error> {
    Ok(order.total + order.id as f64)
}

fn main() {}
