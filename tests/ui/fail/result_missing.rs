use idempotency::idempotent;

#[idempotent(key = id, ttl = "24h")]
async fn charge(id: u64) {
    drop(id);
}

fn main() {}
