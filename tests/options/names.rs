//! `name`, and the name without it.

use super::*;

#[idempotent(key = 1, ttl = "1h")]
async fn by_default() -> Result<(), Error> {
    Ok(())
}

const NAME: &str = "a.constant";

#[idempotent(key = 1, ttl = "1h", name = NAME)]
async fn by_constant() -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = 1, ttl = "1h", name = "the.same")]
async fn one() -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = 2, ttl = "1h", name = "the.same")]
async fn other() -> Result<(), Error> {
    Ok(())
}

#[tokio::test]
async fn a_function_is_named_by_its_path_or_by_name() {
    let engine = engine();
    by_default().with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("options::names::by_default", 1)).await, Some(State::Completed));
    by_constant().with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("a.constant", 1)).await, Some(State::Completed));
}

#[tokio::test]
async fn two_functions_with_one_name_are_refused() {
    let engine = engine();
    one().with_engine(&engine).await.unwrap();
    let error = other().with_engine(&engine).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("name"), "{error}");
}
