//! x
use idempotency::{Error, idempotent};

#[idempotent(key = id, ttl = "24h")]
async fn simple(id: u64) -> Result<u64, Error> {
    Ok(id)
}
struct Order {
    id: u64,
    user: String,
}
#[idempotent(key = (order.id, order.user), ttl = "24h", scope = order.user, fingerprint = (order.id, order.user), on_error = hold)]
async fn charge(order: &Order, mut n: u64) -> Result<String, Error> {
    n += 1;
    tokio::task::yield_now().await;
    if n == 3 {
        return Ok("x".into());
    }
    Ok(format!("{}", n))
}
#[idempotent(key = "{order.id}/{order.user}", ttl = "24h", on_error = |_e| idempotency::Unstored::Hold)]
async fn template(order: Order) -> Result<Vec<Box<dyn std::fmt::Debug>>, Error> {
    drop(order);
    Ok(vec![])
}

#[idempotent(key = name, ttl = "24h", detach)]
async fn detached(name: &str, extra: u64, mut items: &[u8]) -> Result<u64, Error> {
    items = &items[1..];
    tokio::task::yield_now().await;
    Ok(name.len() as u64 + extra + items.len() as u64)
}
#[test]
fn x() {
    let _ = simple(1);
    let _ = charge(&Order { id: 1, user: "a".into() }, 1);
    let _ = detached("", 1, &[]);
}
