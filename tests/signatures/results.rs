//! Return types: aliases, error types, `anyhow`.

use super::*;

#[derive(Debug, thiserror::Error)]
enum PayError {
    #[error("declined")]
    Declined,
    #[error(transparent)]
    Idempotency(#[from] Error),
}

type PayResult<T> = Result<T, PayError>;

#[idempotent(key = id, ttl = "24h")]
async fn alias(id: u64, effects: &Effects) -> PayResult<usize> {
    Ok(effects.happen())
}

#[idempotent(key = id, ttl = "24h")]
async fn thiserror(id: Option<u64>) -> Result<u64, PayError> {
    Err(PayError::Declined)
}

#[idempotent(key = id, ttl = "24h")]
async fn anyhow(id: u64, effects: &Effects) -> anyhow::Result<usize> {
    Ok(effects.happen())
}

#[idempotent(key = id, ttl = "24h")]
async fn boxed_error(id: Option<u64>) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    if id == Some(0) {
        return Err("zero".into());
    }
    Err(Box::new(PayError::Declined))
}

#[allow(unused_qualifications, reason = "the path is what is tested")]
#[idempotent(key = id, ttl = "24h")]
async fn std_path(
    id: u64,
    effects: &Effects,
) -> core::result::Result<HashMap<String, Vec<Option<u8>>>, Error> {
    effects.happen();
    Ok(HashMap::from([("a".to_owned(), vec![None, Some(0)])]))
}

#[idempotent(key = id, ttl = "24h")]
async fn static_text(id: u64, effects: &Effects) -> Result<std::borrow::Cow<'static, str>, Error> {
    effects.happen();
    Ok("text".into())
}

#[tokio::test]
async fn aliases_and_error_types() {
    assert_eq!(once(async |effects| alias(1, effects).await).await, 1);
    assert_eq!(once(async |effects| anyhow(1, effects).await).await, 1);
    once(async |effects| std_path(1, effects).await).await;
    assert_eq!(once(async |effects| static_text(1, effects).await).await, "text");
}

#[tokio::test]
async fn errors_of_the_engine_arrive_in_the_users_type() {
    let engine = Idempotency::new(MemoryStore::new());
    assert!(matches!(thiserror(Some(1)).with_engine(&engine).await, Err(PayError::Declined)));
    let Err(PayError::Idempotency(error)) = thiserror(None).with_engine(&engine).await else {
        panic!("no key")
    };
    assert_eq!(error.kind(), ErrorKind::MissingKey);
    let error = boxed_error(None).with_engine(&engine).await.unwrap_err();
    assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::MissingKey);
    assert_eq!(boxed_error(Some(0)).with_engine(&engine).await.unwrap_err().to_string(), "zero");
    let error = anyhow(1, &Effects::default()).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::NotInstalled);
}
