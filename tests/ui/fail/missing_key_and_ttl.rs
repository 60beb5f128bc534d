use idempotency::{Error, idempotent};

#[idempotent]
async fn charge(order_id: u64) -> Result<u64, Error> {
    Ok(order_id)
}

fn main() {}
