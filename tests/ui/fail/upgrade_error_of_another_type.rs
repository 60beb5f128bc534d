use idempotency::{Error, idempotent};

fn read_old(_version: u32, _body: &[u8]) -> Option<u64> {
    None
}

#[idempotent(key = id, ttl = "24h", version = 1, upgrade_error = read_old)]
async fn charge(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
