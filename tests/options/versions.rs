//! `version`, `upgrade` and `upgrade_error`.

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

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum OldError {
    Declined(u16),
    Guard,
}

/// Reads what the old one has written, as something else.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum NewError {
    Declined(u32),
    Upgraded(String),
    Guard(String),
}

impl From<Error> for OldError {
    fn from(_: Error) -> Self {
        Self::Guard
    }
}

impl From<Error> for NewError {
    fn from(error: Error) -> Self {
        Self::Guard(format!("{:?}", error.kind()))
    }
}

#[idempotent(key = 1, ttl = "1h", name = "versions", version = 1, on_error = store, engine = engine)]
async fn old_failing(engine: &Idempotency) -> Result<u32, OldError> {
    Err(OldError::Declined(51))
}

#[idempotent(key = 1, ttl = "1h", name = "versions", version = 2, on_error = store, engine = engine)]
async fn new_failing(engine: &Idempotency, effects: &Effects) -> Result<u32, NewError> {
    effects.happen();
    Ok(1)
}

#[idempotent(
    key = 1, ttl = "1h", name = "versions", version = 2, on_error = store, upgrade = |_, _| Some(1), upgrade_error = read_old_error,
    engine = engine
)]
async fn upgrading_errors(engine: &Idempotency, effects: &Effects) -> Result<u32, NewError> {
    effects.happen();
    Ok(1)
}

/// It stores no errors any more, and some are there.
#[idempotent(key = 1, ttl = "1h", name = "versions", version = 2, upgrade_error = read_old_error, engine = engine)]
async fn releasing(engine: &Idempotency, effects: &Effects) -> Result<u32, NewError> {
    effects.happen();
    Ok(1)
}

fn read_old_error(version: u32, body: &[u8]) -> Option<NewError> {
    (version == 1).then(|| NewError::Upgraded(String::from_utf8_lossy(body).into_owned()))
}

#[tokio::test]
async fn a_stored_error_of_another_version_is_upgraded_or_refused() {
    let (store, effects) = (MemoryStore::new(), Effects::default());
    assert_eq!(old_failing(&process(&store)).await.unwrap_err(), OldError::Declined(51));
    let refused = new_failing(&process(&store), &effects).await.unwrap_err();
    assert_eq!(refused, NewError::Guard("Decode".into()), "its bytes would fit the new type");
    let upgraded = NewError::Upgraded(r#"{"Declined":51}"#.into());
    assert_eq!(upgrading_errors(&process(&store), &effects).await.unwrap_err(), upgraded);
    assert_eq!(releasing(&process(&store), &effects).await.unwrap_err(), upgraded);
    // What reads results reads no errors.
    let refused = upgrading(&process(&store), &effects).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Decode);
    assert_eq!(effects.count(), 0);
}
