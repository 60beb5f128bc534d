use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, note: Option<&str>) -> Result<u64, Error> {
    Ok(id + note.map_or(0, str::len) as u64)
}

fn main() {}
