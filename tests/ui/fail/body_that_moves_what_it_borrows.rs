use idempotency::{Error, idempotent};

struct Order {
    id: u64,
    name: String,
}

#[idempotent(key = order.id, ttl = "24h")]
async fn charge(order: &Order) -> Result<String, Error> {
    Ok(order.name)
}

fn main() {}
