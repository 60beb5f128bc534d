use idempotency::idempotent;

type Answer = Option<u64>;

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Answer {
    Some(id)
}

fn main() {}
