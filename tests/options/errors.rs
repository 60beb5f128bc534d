//! `on_error`, in all its forms.

use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
enum PayError {
    #[error("declined")]
    Declined,
    #[error("timeout")]
    Timeout,
    #[error("busy")]
    Busy,
    #[error("{0}")]
    Refused(String),
}

impl From<Error> for PayError {
    fn from(error: Error) -> Self {
        Self::Refused(format!("{:?}", error.kind()))
    }
}

type Pay = Result<(), PayError>;

fn fail(error: &PayError, effects: &Effects) -> Pay {
    effects.happen();
    Err(error.clone())
}

fn decide(error: &PayError) -> OnError {
    match error {
        PayError::Declined => OnError::Store,
        PayError::Timeout => OnError::Hold,
        _ => OnError::Release,
    }
}

#[idempotent(key = 1, ttl = "1h")]
async fn by_default(error: PayError, effects: &Effects) -> Pay {
    fail(&error, effects)
}

#[idempotent(key = 1, ttl = "1h", on_error = release)]
async fn releases(error: PayError, effects: &Effects) -> Pay {
    fail(&error, effects)
}

#[idempotent(key = 1, ttl = "1h", on_error = store)]
async fn stores(error: PayError, effects: &Effects) -> Pay {
    fail(&error, effects)
}

#[idempotent(key = 1, ttl = "1h", on_error = hold)]
async fn holds(error: PayError, effects: &Effects) -> Pay {
    fail(&error, effects)
}

#[idempotent(key = 1, ttl = "1h", on_error = decide)]
async fn decides_by_path(error: PayError, effects: &Effects) -> Pay {
    fail(&error, effects)
}

#[idempotent(
    key = 1,
    ttl = "1h",
    on_error = |error| if strict && text.starts_with('t') { decide(error) } else { OnError::Release }
)]
async fn decides_by_closure(error: PayError, strict: bool, text: &str, effects: &Effects) -> Pay {
    fail(&error, effects)
}

#[idempotent(
    key = 1,
    ttl = "1h",
    on_error = |error| if error.is::<std::fmt::Error>() { ErrorAction::Hold } else { ErrorAction::Release }
)]
async fn decides_without_serde(
    error: Option<std::fmt::Error>,
    effects: &Effects,
) -> anyhow::Result<()> {
    effects.happen();
    match error {
        Some(error) => Err(error.into()),
        None => anyhow::bail!("another"),
    }
}

/// The second answer, and how often the body ran.
async fn second(call: impl AsyncFn(&Effects) -> Pay) -> (Pay, usize) {
    let effects = Effects::default();
    let second = async {
        call(&effects).await.unwrap_err();
        call(&effects).await
    }
    .with_engine(&engine())
    .await;
    (second, effects.count())
}

fn in_doubt() -> Pay {
    Err(PayError::Refused("InDoubt".to_owned()))
}

#[tokio::test]
async fn one_answer_for_all_errors() {
    let error = || PayError::Declined;
    assert_eq!(second(async |effects| by_default(error(), effects).await).await, (Err(error()), 2));
    assert_eq!(second(async |effects| releases(error(), effects).await).await, (Err(error()), 2));
    assert_eq!(second(async |effects| stores(error(), effects).await).await, (Err(error()), 1));
    assert_eq!(second(async |effects| holds(error(), effects).await).await, (in_doubt(), 1));
}

#[tokio::test]
async fn an_answer_for_each_error() {
    let declined = || PayError::Declined;
    assert_eq!(
        second(async |effects| decides_by_path(declined(), effects).await).await,
        (Err(declined()), 1)
    );
    assert_eq!(
        second(async |effects| decides_by_path(PayError::Timeout, effects).await).await,
        (in_doubt(), 1)
    );
    let busy = second(async |effects| decides_by_path(PayError::Busy, effects).await).await;
    assert_eq!(busy, (Err(PayError::Busy), 2));
}

#[tokio::test]
async fn a_closure_sees_borrowed_and_copied_arguments() {
    let timeout = || PayError::Timeout;
    let held =
        second(async |effects| decides_by_closure(timeout(), true, "text", effects).await).await;
    assert_eq!(held, (in_doubt(), 1));
    let released =
        second(async |effects| decides_by_closure(timeout(), true, "other", effects).await).await;
    assert_eq!(released, (Err(timeout()), 2));
    let released =
        second(async |effects| decides_by_closure(timeout(), false, "text", effects).await).await;
    assert_eq!(released, (Err(timeout()), 2));
}

#[tokio::test]
async fn errors_without_serde_are_released_or_held() {
    let effects = Effects::default();
    async {
        decides_without_serde(None, &effects).await.unwrap_err();
        decides_without_serde(Some(std::fmt::Error), &effects).await.unwrap_err();
        let error = decides_without_serde(None, &effects).await.unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::InDoubt);
    }
    .with_engine(&engine())
    .await;
    assert_eq!(effects.count(), 2);
}
