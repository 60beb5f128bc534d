use idempotency::{Error, idempotent};

use std::rc::Rc;

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64, _note: Rc<str>, _: Rc<u64>) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
