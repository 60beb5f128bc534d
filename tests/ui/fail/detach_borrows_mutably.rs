use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, steps: &mut Vec<u64>) -> Result<u64, Error> {
    steps.push(id);
    Ok(id)
}

fn main() {}
