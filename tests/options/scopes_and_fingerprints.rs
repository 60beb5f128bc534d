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

#[idempotent(key = a, ttl = "1h", scope = "{a}:{b}:{c}:{d}:{e}:{f}:{g}:{a}", name = "long_scope")]
#[expect(
    clippy::too_many_arguments,
    clippy::many_single_char_names,
    reason = "each is a value of the scope"
)]
async fn long_scope(
    a: u8,
    b: u8,
    c: u8,
    d: u8,
    e: u8,
    f: u8,
    g: u8,
    effects: &Effects,
) -> Result<usize, Error> {
    Ok(effects.happen())
}

#[idempotent(key = order.id, ttl = "1h", fingerprint = (order.user, order.tenant))]
async fn fingerprinted(order: Order, effects: &Effects) -> Result<usize, Error> {
    drop(order);
    Ok(effects.happen())
}

#[tokio::test]
async fn a_scope_is_part_of_the_key() {
    let engine = engine();
    scoped(order()).with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("scoped", 7).scope("eu")).await, Some(State::Completed));
    assert_eq!(state(engine.record("scoped", 7)).await, None);
    templated(&order()).with_engine(&engine).await.unwrap();
    assert_eq!(
        state(engine.record("templated", 7).scope(("ada", "-", 7))).await,
        Some(State::Completed)
    );
}

#[tokio::test]
async fn a_scope_can_have_any_number_of_parts() {
    let (engine, effects) = (engine(), Effects::default());
    async {
        for (g, count) in [(7, 1), (7, 1), (8, 2)] {
            assert_eq!(long_scope(1, 2, 3, 4, 5, 6, g, &effects).await.unwrap(), count);
        }
    }
    .with_engine(&engine)
    .await;
}

#[tokio::test]
async fn a_retry_must_repeat_the_fingerprint() {
    let effects = Effects::default();
    async {
        fingerprinted(order(), &effects).await.unwrap();
        assert_eq!(fingerprinted(order(), &effects).await.unwrap(), 1);
        let other = Order { user: "eve".to_owned(), ..order() };
        assert_eq!(fingerprinted(other, &effects).await.unwrap_err().kind(), ErrorKind::Mismatch);
    }
    .with_engine(&engine())
    .await;
    assert_eq!(effects.count(), 1);
}

#[idempotent(name = "released", key = order.id, ttl = "1h")]
async fn first_release(order: &Order, effects: &Effects) -> Result<usize, Error> {
    Ok(effects.happen())
}

#[idempotent(name = "released", key = order.id, ttl = "1h", fingerprint = order.user, former_fingerprint = none)]
async fn second_release(order: &Order, effects: &Effects) -> Result<usize, Error> {
    Ok(effects.happen())
}

#[idempotent(
    name = "released",
    key = order.id,
    ttl = "1h",
    fingerprint = (order.user, order.tenant),
    former_fingerprint = order.user
)]
async fn third_release(order: &Order, effects: &Effects) -> Result<usize, Error> {
    Ok(effects.happen())
}

/// Each release is a process of its own: one engine takes three functions of one name for a
/// mistake.
#[tokio::test]
async fn a_release_that_changes_the_fingerprint_names_the_one_before() {
    let effects = Effects::default();
    let store = MemoryStore::new();
    let [first, second, third] = std::array::from_fn(|_| Idempotency::new(store.clone()));
    let (old, new) = (order(), Order { id: 8, ..order() });
    first_release(&old, &effects).with_engine(&first).await.unwrap();
    assert_eq!(second_release(&old, &effects).with_engine(&second).await.unwrap(), 1);
    let without_history = third_release(&old, &effects).with_engine(&third).await;
    assert_eq!(without_history.unwrap_err().kind(), ErrorKind::Mismatch);
    second_release(&new, &effects).with_engine(&second).await.unwrap();
    assert_eq!(third_release(&new, &effects).with_engine(&third).await.unwrap(), 2);
    let other = Order { user: "eve".to_owned(), ..new.clone() };
    assert_eq!(
        third_release(&other, &effects).with_engine(&third).await.unwrap_err().kind(),
        ErrorKind::Mismatch
    );
    assert_eq!(
        first_release(&new, &effects).with_engine(&first).await.unwrap_err().kind(),
        ErrorKind::Mismatch
    );
    assert_eq!(effects.count(), 2);
}
