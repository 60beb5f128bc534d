//! The return type of a guarded function: the conversion of its results into bytes and back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::encoding::{Encoded, NotEncodable, Redacted, decode, encode};
use crate::error::{Error, ErrorKind};
use crate::key::KeyHash;
use crate::policy::{ErrorAction, OnError};
use crate::store::{Reason, Record, State};

/// The return type of a guarded function: `Result<T, E>`, and no other type.
#[diagnostic::on_unimplemented(
    message = "`#[idempotent]` functions must return a `Result`; this one returns `{Self}`",
    label = "not a `Result`",
    note = "the call itself can fail: write `-> Result<{Self}, idempotency::Error>`"
)]
pub trait Outcome: Sized {
    /// The value that is stored and replayed.
    type Value;
    /// The value that the caller gets instead.
    type Failure;

    /// Returns the result of a call that happened according to the outside world.
    #[doc(hidden)]
    fn completed(value: Self::Value) -> Self;

    /// Returns the result of a call whose verification failed.
    #[doc(hidden)]
    fn failed(error: Self::Failure) -> Self;

    /// Returns the codec of this type: how results become bytes and back, and, by `policy`, what
    /// happens to errors. Only this crate makes one, so that no other type has this trait.
    #[doc(hidden)]
    fn codec<P: ErrorPolicy<Self::Failure>>(policy: P) -> Codec<Self, P>;
}

/// A result that can be stored: `Serialize + DeserializeOwned`.
#[diagnostic::on_unimplemented(
    message = "the result `{Self}` cannot be stored for a retry",
    label = "not `Serialize + DeserializeOwned`",
    note = "derive both on `{Self}`: `#[derive(serde::Serialize, serde::Deserialize)]`"
)]
pub trait StoredValue: Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> StoredValue for T {}

/// An error that can carry [`Error`]: `From<idempotency::Error>`.
#[diagnostic::on_unimplemented(
    message = "the error `{Self}` cannot represent that the call was refused",
    label = "not `From<idempotency::Error>`",
    note = "with thiserror, add a variant to `{Self}`: `#[error(transparent)] Idempotency(#[from] idempotency::Error)`",
    note = "or write it: `impl From<idempotency::Error> for {Self} {{ … }}`"
)]
pub trait CallError: From<Error> {}

#[diagnostic::do_not_recommend]
impl<E: From<Error>> CallError for E {}

/// An error that can be stored in place of a result: `Serialize + DeserializeOwned`.
#[diagnostic::on_unimplemented(
    message = "the error `{Self}` cannot be stored for a retry",
    label = "not `Serialize + DeserializeOwned`",
    note = "derive both on `{Self}`: `#[derive(serde::Serialize, serde::Deserialize)]`",
    note = "or store no errors: `on_error = release`, or a function that returns `idempotency::ErrorAction`"
)]
pub trait StoredError: Sized {
    /// Returns the codec of a function that returns `R` and stores its errors.
    #[doc(hidden)]
    fn codec<R: Outcome<Failure = Self>>() -> Codec<R, OnError>;

    /// Returns the error in bytes, and as it is read back from them.
    #[doc(hidden)]
    fn encode(error: &Self) -> Result<Encoded<Self>, NotEncodable>;

    /// Reads the error from bytes.
    #[doc(hidden)]
    fn decode(body: &[u8]) -> Result<Self, serde_json::Error>;
}

// The trait has no supertraits: the expansion names it where it requires it, and the compiler would
// report the supertraits in its place.
#[diagnostic::do_not_recommend]
impl<E: Serialize + DeserializeOwned> StoredError for E {
    fn codec<R: Outcome<Failure = E>>() -> Codec<R, OnError> {
        R::codec(OnError::Store)
    }

    fn encode(error: &E) -> Result<Encoded<E>, NotEncodable> {
        encode(error)
    }

    fn decode(body: &[u8]) -> Result<E, serde_json::Error> {
        decode(body)
    }
}

impl<T: StoredValue, E: CallError> Outcome for Result<T, E> {
    type Value = T;
    type Failure = E;

    fn completed(value: T) -> Self {
        Ok(value)
    }

    fn failed(error: E) -> Self {
        Err(error)
    }

    fn codec<P: ErrorPolicy<E>>(policy: P) -> Codec<Self, P> {
        Codec {
            writer: Writer { policy, ending: ending::<T, E, P>, is_error: Self::is_err },
            reader: Reader { upgrades: Upgrades::none(), answer: answer::<T, E, P> },
        }
    }
}

/// The conversion of results of type `R` into bytes and back, and the policy for errors.
#[derive(Debug)]
#[must_use]
pub struct Codec<R, P = ErrorAction> {
    pub(crate) writer: Writer<R, P>,
    pub(crate) reader: Reader<R>,
}

/// The conversion of a result of type `R` into bytes.
#[derive(Debug)]
pub(crate) struct Writer<R, P> {
    policy: P,
    ending: fn(R, P) -> (R, Ending),
    is_error: fn(&R) -> bool,
}

impl<R, P> Writer<R, P> {
    /// Returns true if `result` is an error, whatever the policy does with it.
    pub(crate) fn is_error(&self, result: &R) -> bool {
        (self.is_error)(result)
    }

    /// Returns the result that the caller returns if nothing intervenes, which is the one that is
    /// stored, and how it is stored.
    pub(crate) fn ending(self, result: R) -> (R, Ending) {
        (self.ending)(result, self.policy)
    }
}

/// The conversion of stored answers into a result of type `R`.
pub(crate) struct Reader<R> {
    upgrades: Upgrades<R>,
    answer: fn(Answer, Option<R>, &Upgrades<R>) -> R,
}

impl<R> Reader<R> {
    pub(crate) fn answer(&self, answer: Answer) -> R {
        (self.answer)(answer, None, &self.upgrades)
    }

    /// Returns the result of a call whose body returned `own`, and whose answer is another one.
    pub(crate) fn instead(&self, answer: Answer, own: R) -> R {
        (self.answer)(answer, Some(own), &self.upgrades)
    }

    /// Returns a reader without upgrades, which is enough for refusals.
    pub(crate) fn of_refusals(&self) -> Self {
        Self { upgrades: Upgrades::none(), answer: self.answer }
    }
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("upgrade", &self.upgrades.of_results.is_some())
            .field("upgrade_error", &self.upgrades.of_errors.is_some())
            .finish_non_exhaustive()
    }
}

/// Reads a result, or a stored error, that another schema version wrote. The arguments are the
/// version and the stored bytes.
pub type Upgrade<T> = fn(u32, &[u8]) -> Option<T>;

/// An [`Upgrade`] for the whole return type.
type BoxedUpgrade<R> = Box<dyn Fn(u32, &[u8]) -> Option<R> + Send + Sync>;

/// The readers of other schema versions.
pub(crate) struct Upgrades<R> {
    of_results: Option<BoxedUpgrade<R>>,
    of_errors: Option<BoxedUpgrade<R>>,
}

impl<R> Upgrades<R> {
    fn none() -> Self {
        Self { of_results: None, of_errors: None }
    }

    /// The reader for records in this state.
    fn of(&self, state: State) -> Option<&BoxedUpgrade<R>> {
        match state {
            State::Completed => self.of_results.as_ref(),
            State::Failed => self.of_errors.as_ref(),
            _ => None,
        }
    }
}

impl<R, P> Codec<R, P> {
    /// Creates the codec of results that encode themselves.
    pub(crate) fn of(
        policy: P,
        ending: fn(R, P) -> (R, Ending),
        answer: fn(Answer, Option<R>, &Upgrades<R>) -> R,
    ) -> Self {
        Self {
            writer: Writer { policy, ending, is_error: |_| false },
            reader: Reader { upgrades: Upgrades::none(), answer },
        }
    }
}

impl<T: 'static, E, P> Codec<Result<T, E>, P> {
    /// Reads results of other schema versions with `upgrade`.
    pub fn upgrade(mut self, upgrade: Upgrade<T>) -> Self {
        self.reader.upgrades.of_results =
            Some(Box::new(move |version, body| upgrade(version, body).map(Ok)));
        self
    }
}

impl<T, E: 'static, P> Codec<Result<T, E>, P> {
    /// Reads stored errors of other schema versions with `upgrade`.
    pub fn upgrade_error(mut self, upgrade: Upgrade<E>) -> Self {
        self.reader.upgrades.of_errors =
            Some(Box::new(move |version, body| upgrade(version, body).map(Err)));
        self
    }
}

/// The end of a body, in bytes.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The result, or the error that counts as one, and its retention if it differs from the
    /// call's.
    Answer { state: State, body: Result<Bytes, NotEncodable>, ttl: Option<Duration> },
    /// The result of an edge's body. A failure that is `unless_refused` is no result where the
    /// engine has refused the body a step, and the body gets an error instead.
    Reported { state: State, body: Bytes, ttl: Option<Duration>, unless_refused: bool },
    /// An error that means that nothing happened.
    Release,
    /// The same, and there is no next attempt: none is counted any more.
    Dismiss,
    /// The body waited for its turn, and its claim ended before the turn came.
    NotBegun,
    /// An error that may hide an effect.
    Hold,
    /// It is not known how far the body got. What follows is the same as for a body that breaks
    /// off.
    GiveUp,
    /// It is not known what an earlier attempt did, and the verification could not decide.
    Unknown { reason: Reason, ask_again_after: Duration },
}

/// The answer of a call that does not run the body, or that does not return its own result.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Stored(StoredAnswer),
    Refused(Error),
}

/// A result that was read from a record.
#[derive(Clone, Debug)]
pub(crate) struct StoredAnswer {
    pub(crate) record: Arc<Record>,
    /// The schema version that the caller reads.
    pub(crate) version: u32,
}

impl StoredAnswer {
    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind).of_record(Some(&self.record.operation), &self.record.key)
    }

    /// The error for a result that the caller cannot read.
    pub(crate) fn unreadable(&self, detail: &str) -> Error {
        self.error(ErrorKind::Decode).with_detail(detail)
    }

    /// The error that a marker in place of the result stands for, if there is one.
    pub(crate) fn marker(&self) -> Option<Error> {
        match self.record.reason {
            Some(Reason::TooLarge) => Some(self.error(ErrorKind::TooLarge)),
            Some(Reason::NotEncodable) => Some(
                self.error(ErrorKind::Encode)
                    .with_detail("the body ran once and its result could not be stored"),
            ),
            _ => None,
        }
    }
}

fn ending<T: StoredValue, E, P: ErrorPolicy<E>>(
    result: Result<T, E>,
    policy: P,
) -> (Result<T, E>, Ending) {
    match result {
        Ok(value) => {
            let encoded = encode(&value);
            let (value, body) = stored_form(value, encoded);
            (Ok(value), Ending::Answer { state: State::Completed, body, ttl: None })
        }
        Err(error) => match policy.decide(&error) {
            Decided::Release => (Err(error), Ending::Release),
            Decided::Hold => (Err(error), Ending::Hold),
            Decided::Store(encoded) => {
                let (error, body) = stored_form(error, encoded);
                (Err(error), Ending::Answer { state: State::Failed, body, ttl: None })
            }
        },
    }
}

/// Replaces the body's own value by the one read back from its encoding. The own value stays only
/// if there is nothing to read back.
fn stored_form<T>(
    own: T,
    encoded: Result<Encoded<T>, NotEncodable>,
) -> (T, Result<Bytes, NotEncodable>) {
    match encoded {
        Ok(Encoded { body, value }) => (value, Ok(body)),
        Err(error) => (own, Err(error)),
    }
}

fn answer<T: StoredValue, E: CallError, P: ErrorPolicy<E>>(
    answer: Answer,
    _own: Option<Result<T, E>>,
    upgrades: &Upgrades<Result<T, E>>,
) -> Result<T, E> {
    match answer {
        Answer::Refused(error) => Err(error.of_call().into()),
        Answer::Stored(stored) => {
            replay::<T, E, P>(&stored, upgrades).unwrap_or_else(|error| Err(error.of_call().into()))
        }
    }
}

fn replay<T: StoredValue, E: CallError, P: ErrorPolicy<E>>(
    stored: &StoredAnswer,
    upgrades: &Upgrades<Result<T, E>>,
) -> Result<Result<T, E>, Error> {
    if let Some(error) = stored.marker() {
        return Err(error);
    }
    let Record { state, schema, body, .. } = &*stored.record;
    let unreadable = |detail: String| stored.error(ErrorKind::Decode).with_detail(detail);
    if *schema != stored.version {
        return upgrades.of(*state).and_then(|upgrade| upgrade(*schema, body)).ok_or_else(|| {
            unreadable(format!(
                "it has schema version {schema}, this call reads {}",
                stored.version
            ))
        });
    }
    let source = |error: serde_json::Error| {
        unreadable("it does not match the type".into()).with_source(Redacted::of(&error))
    };
    match state {
        State::Completed => decode(body).map(Ok).map_err(source),
        State::Failed => P::decode(body)
            .ok_or_else(|| {
                unreadable("it is a stored error, and this call stores no errors".into())
            })?
            .map(Err)
            .map_err(source),
        _ => Err(unreadable(format!("a record in the state {state:?} has no result"))),
    }
}

/// The decision about errors of type `E`: [`OnError`], [`ErrorAction`], or a function over `&E`
/// that returns one of them. No other type has this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not decide what happens to `{E}`",
    note = "use `OnError::…` when `{E}` is `Serialize + DeserializeOwned`, `ErrorAction::…` otherwise, or a function over `&{E}` that returns one of them"
)]
pub trait ErrorPolicy<E> {
    /// Decides about one error. The type of the decision has no public name, so that no other crate
    /// implements this trait.
    #[doc(hidden)]
    fn decide(self, error: &E) -> Decided<E>;

    /// Reads a stored error. Returns `None` if this policy stores none.
    #[doc(hidden)]
    fn decode(body: &[u8]) -> Option<Result<E, serde_json::Error>>;
}

/// The decision about one error.
#[derive(Debug)]
pub enum Decided<E> {
    /// The error means that nothing happened.
    Release,
    /// The error may hide an effect.
    Hold,
    /// The error is the result.
    Store(Result<Encoded<E>, NotEncodable>),
}

/// The return type of a function over `&E`: [`OnError`], which requires serde traits of `E`, or
/// [`ErrorAction`], and no other type.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot decide what happens to `{E}`",
    label = "not a decision about `{E}`",
    note = "return `idempotency::OnError` when the error is `Serialize + DeserializeOwned`, `idempotency::ErrorAction` otherwise"
)]
pub trait Decision<E>: Sized {
    /// Returns the codec of a function that returns `R` and lets `policy` decide about its errors.
    #[doc(hidden)]
    fn codec<R, P>(policy: P) -> Codec<R, P>
    where
        R: Outcome<Failure = E>,
        P: FnOnce(&E) -> Self,
    {
        R::codec(policy)
    }

    /// Carries the decision out. Its return type has no public name, so that no other crate
    /// implements this trait.
    #[doc(hidden)]
    fn carry_out(self, error: &E) -> Decided<E>;

    /// Reads a stored error. Returns `None` if this decision stores none.
    #[doc(hidden)]
    fn read(body: &[u8]) -> Option<Result<E, serde_json::Error>>;
}

#[diagnostic::do_not_recommend]
impl<E: StoredError> Decision<E> for OnError {
    fn carry_out(self, error: &E) -> Decided<E> {
        self.decide(error)
    }

    fn read(body: &[u8]) -> Option<Result<E, serde_json::Error>> {
        <Self as ErrorPolicy<E>>::decode(body)
    }
}

#[diagnostic::do_not_recommend]
impl<E> Decision<E> for ErrorAction {
    fn carry_out(self, error: &E) -> Decided<E> {
        self.decide(error)
    }

    fn read(body: &[u8]) -> Option<Result<E, serde_json::Error>> {
        <Self as ErrorPolicy<E>>::decode(body)
    }
}

impl<E: StoredError> ErrorPolicy<E> for OnError {
    fn decide(self, error: &E) -> Decided<E> {
        match self {
            Self::Release => Decided::Release,
            Self::Hold => Decided::Hold,
            Self::Store => Decided::Store(E::encode(error)),
        }
    }

    fn decode(body: &[u8]) -> Option<Result<E, serde_json::Error>> {
        Some(E::decode(body))
    }
}

impl<E> ErrorPolicy<E> for ErrorAction {
    fn decide(self, _: &E) -> Decided<E> {
        match self {
            Self::Release => Decided::Release,
            Self::Hold => Decided::Hold,
        }
    }

    fn decode(_: &[u8]) -> Option<Result<E, serde_json::Error>> {
        None
    }
}

impl<E, F, D> ErrorPolicy<E> for F
where
    F: FnOnce(&E) -> D,
    D: Decision<E>,
{
    fn decide(self, error: &E) -> Decided<E> {
        self(error).carry_out(error)
    }

    fn decode(body: &[u8]) -> Option<Result<E, serde_json::Error>> {
        D::read(body)
    }
}

/// The answer that `record` holds, for a call that reads schema `version`.
pub(crate) fn stored(record: Arc<Record>, version: u32) -> Answer {
    Answer::Stored(StoredAnswer { record, version })
}

/// The error of a call that has an operation and a key.
pub(crate) fn refused(kind: ErrorKind, operation: &Arc<str>, key: &KeyHash) -> Error {
    Error::new(kind).of_record(Some(operation), key)
}
