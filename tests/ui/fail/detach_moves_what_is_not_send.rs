use idempotency::{Error, idempotent};

use std::rc::Rc;

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, note: Rc<str>) -> Result<u64, Error> {
    Ok(id + note.len() as u64)
}

fn main() {}
