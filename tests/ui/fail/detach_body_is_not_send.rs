use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h", detach)]
async fn charge(id: u64) -> Result<u64, Error> {
    let local = std::rc::Rc::new(id);
    std::future::ready(()).await;
    Ok(*local)
}

fn main() {}
