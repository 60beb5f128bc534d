use idempotency::idempotent;

struct Receipt(u64);

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Receipt {
    Receipt(id)
}

fn main() {}
