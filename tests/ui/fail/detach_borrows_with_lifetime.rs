use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, note: std::borrow::Cow<'_, str>) -> Result<u64, Error> {
    Ok(id + note.len() as u64)
}

fn main() {}
