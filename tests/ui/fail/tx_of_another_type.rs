use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", tx = tx)]
async fn charge(id: u64, tx: &mut String) -> Result<u64, Error> {
    tx.push('a');
    Ok(id)
}

fn main() {}
