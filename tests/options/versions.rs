//! `version` and `upgrade`.

use super::*;

#[idempotent(key = 1, ttl = "1h", name = "versions", version = 1, engine = engine)]
async fn old(engine: &Idempotency) -> Result<u32, Error> {
    Ok(5)
}

#[idempotent(key = 1, ttl = "1h", name = "versions", version = 2, engine = engine)]
async fn new(engine: &Idempotency, effects: &Effects) -> Result<String, Error> {
    effects.happen();
    Ok(String::new())
}

#[idempotent(key = 1, ttl = "1h", name = "versions", version = 2, upgrade = read_old, engine = engine)]
async fn upgrading(engine: &Idempotency, effects: &Effects) -> Result<String, Error> {
    effects.happen();
    Ok(String::new())
}

fn read_old(version: u32, body: &[u8]) -> Option<String> {
    (version == 1).then(|| format!("upgraded {}", String::from_utf8_lossy(body)))
}

/// Another process on the same store: in one, a name is one function.
fn process(store: &MemoryStore) -> Idempotency {
    Idempotency::new(store.clone())
}

#[tokio::test]
async fn a_result_of_another_version_is_upgraded_or_refused() {
    let (store, effects) = (MemoryStore::new(), Effects::default());
    assert_eq!(old(&process(&store)).await.unwrap(), 5);
    let error = new(&process(&store), &effects).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert_eq!(upgrading(&process(&store), &effects).await.unwrap(), "upgraded 5");
    assert_eq!(effects.count(), 0);
}
