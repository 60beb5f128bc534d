//! `ttl` and `lease`.

use super::*;

#[idempotent(key = 1, ttl = "90s", name = "by_text")]
async fn by_text() -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = 1, ttl = ttl * 2, name = "by_expression")]
async fn by_expression(ttl: Duration) -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = 1, ttl = "1h", lease = "7s", name = "leased")]
async fn leased(engine: &Idempotency, store: &MemoryStore) -> Result<u64, Error> {
    let record = store.read(engine.record("leased", 1).hash()?).await.unwrap().unwrap();
    Ok(record.lease_until.saturating_duration_since(record.read_at).as_secs())
}

#[tokio::test]
async fn a_result_is_kept_for_the_ttl() {
    let clock = ManualClock::new();
    let engine = Idempotency::builder(MemoryStore::with_clock(clock.clone()))
        .clock(clock.clone())
        .build()
        .unwrap();
    by_text().with_engine(&engine).await.unwrap();
    by_expression(Duration::from_secs(100)).with_engine(&engine).await.unwrap();
    clock.advance(Duration::from_secs(89));
    assert_eq!(state(engine.record("by_text", 1)).await, Some(State::Completed));
    clock.advance(Duration::from_secs(2));
    assert_eq!(state(engine.record("by_text", 1)).await, None);
    clock.advance(Duration::from_secs(108));
    assert_eq!(state(engine.record("by_expression", 1)).await, Some(State::Completed));
    clock.advance(Duration::from_secs(2));
    assert_eq!(state(engine.record("by_expression", 1)).await, None);
}

#[tokio::test]
async fn a_lease_is_as_long_as_it_says() {
    let clock = ManualClock::new();
    let store = MemoryStore::with_clock(clock.clone());
    let engine = Idempotency::builder(store.clone()).clock(clock).build().unwrap();
    assert_eq!(leased(&engine, &store).with_engine(&engine).await.unwrap(), 7);
}
