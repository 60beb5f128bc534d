use idempotency::idempotent;

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) -> Option<Vec<u64>> {
    Some(vec![id])
}

fn main() {}
