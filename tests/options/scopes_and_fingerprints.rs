//! `scope` and `fingerprint`.

use super::*;

#[idempotent(key = order.id, ttl = "1h", scope = order.tenant, name = "scoped")]
async fn scoped(order: Order) -> Result<Order, Error> {
    Ok(order)
}

#[idempotent(key = order.id, ttl = "1h", scope = "{order.user}-{order.id}", name = "templated")]
async fn templated(order: &Order) -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = order.id, ttl = "1h", fingerprint = (order.user, order.tenant))]
async fn fingerprinted(order: Order, effects: &Effects) -> Result<usize, Error> {
    drop(order);
    Ok(effects.happen())
}

#[tokio::test]
async fn a_scope_is_part_of_the_key() {
    let engine = engine();
    engine.scope(scoped(order())).await.unwrap();
    assert_eq!(state(engine.record("scoped", 7).scope("eu")).await, Some(State::Completed));
    assert_eq!(state(engine.record("scoped", 7)).await, None);
    engine.scope(templated(&order())).await.unwrap();
    assert_eq!(state(engine.record("templated", 7).scope(("ada", "-", 7))).await, Some(State::Completed));
}

#[tokio::test]
async fn a_retry_must_repeat_the_fingerprint() {
    let effects = Effects::default();
    engine()
        .scope(async {
            fingerprinted(order(), &effects).await.unwrap();
            assert_eq!(fingerprinted(order(), &effects).await.unwrap(), 1);
            let other = Order { user: "eve".to_owned(), ..order() };
            assert_eq!(fingerprinted(other, &effects).await.unwrap_err().kind(), ErrorKind::Mismatch);
        })
        .await;
    assert_eq!(effects.count(), 1);
}
