//! The error type of the crate.

use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::key::{FingerprintError, KeyError, KeyHash};
use crate::steps::StepId;
use crate::store::{StoreError, StoreErrorKind};

/// The kind of an [`Error`].
///
/// ```
/// use idempotency::{Error, ErrorKind};
///
/// fn status(error: &Error) -> u16 {
///     match error.kind() {
///         ErrorKind::InProgress | ErrorKind::InDoubt => 409,
///         ErrorKind::Mismatch => 422,
///         ErrorKind::MissingKey | ErrorKind::InvalidKey => 400,
///         _ => 503,
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another caller is running this call, and this caller does not wait or has waited long
    /// enough.
    InProgress,
    /// The key was used before with another fingerprint.
    Mismatch,
    /// The body started, and it is not known whether it finished.
    InDoubt,
    /// A part of the key is `None`.
    MissingKey,
    /// The key or the scope cannot be used.
    InvalidKey,
    /// The store did not return a usable answer. The body did not run, or it ran in a transaction
    /// that was rolled back.
    StoreUnavailable,
    /// The body ran, and its result could not be stored. Within a body: its
    /// [fence](crate::Context::fence) could not be read. For an operator: it is not known whether
    /// the answer, or the removal, was stored.
    NotStored,
    /// The body ran and its result is larger than the limit. A marker is stored in its place,
    /// except for a call in a transaction of the user: it [leaves nothing](Error::is_rolled_back).
    TooLarge,
    /// The store has no room for another record. The body did not run.
    Full,
    /// A value could not be encoded: JSON would change it, or its type would not read it back.
    Encode,
    /// A stored record or result cannot be read. The body did not run again.
    Decode,
    /// The claim was lost. Either another caller had taken the call over and its result is not
    /// known, or the record was removed or answered meanwhile and there is no result. A body that
    /// ran here may have left its effect, so the error is [retryable](Error::is_retryable) only
    /// where a retry does not repeat that effect as if it had not happened: another caller took the
    /// call over and is running it. The record then keeps that the body ran here, also if that
    /// caller releases its claim, and a retry gets the result of that caller or what
    /// [`OnCrash`](crate::OnCrash) decides about the attempts of both. It is not retryable if that
    /// caller has left the call in doubt, or runs it as a first one, because the record was removed
    /// or an operator answered that nothing had happened. It is always retryable for a call whose
    /// body did not run here, and never for an operator's request.
    Superseded,
    /// A step that runs at most once was interrupted.
    StepInterrupted,
    /// The record's retention has expired, and the operation rejects late retries.
    Expired,
    /// The body called its own operation with its own key.
    Reentrant,
    /// The configuration is invalid.
    Config,
    /// The store does not support the request.
    Unsupported,
    /// No engine is installed and none is in scope.
    NotInstalled,
    /// The engine is shutting down and accepts no new calls.
    ShuttingDown,
}

impl ErrorKind {
    /// The message: what happened, and what to do.
    const fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::InProgress => {
                ("another caller is running this call", "retry later with the same key")
            }
            Self::Mismatch => (
                "the key was already used for another request",
                "use a new key for a new request, or repeat the first request unchanged",
            ),
            Self::InDoubt => (
                "an earlier attempt started and it is not known whether it finished",
                "find out whether the effect happened, then answer with `record(…).resolve(…)`: `completed`, `failed` or \
                 `not_executed`",
            ),
            Self::MissingKey => ("the call has no key", "give every part of the key a value"),
            Self::InvalidKey => ("the key cannot be used", "use a shorter key of a supported type"),
            Self::StoreUnavailable => {
                ("the store did not answer, the body did not run", "retry with the same key")
            }
            Self::NotStored => (
                "the body ran but its result could not be stored",
                "do not run it under another key; retry with the same key to learn the outcome",
            ),
            Self::TooLarge => (
                "the body ran and its result is larger than the limit",
                "return a smaller result or raise `max_result_size`; the body will not run again for this key",
            ),
            Self::Full => (
                "the store is full, the body did not run",
                "raise the store's limits or shorten `ttl`, then retry",
            ),
            Self::Encode => (
                "a value could not be encoded",
                "return one that JSON can hold and that reads back from it",
            ),
            Self::Decode => (
                "the stored record cannot be read, the body did not run again",
                "read it with the version that wrote it, or set `version` and `upgrade`",
            ),
            Self::Superseded => (
                "another caller took the call over while the body ran here",
                "retry with the same key to get that caller's result",
            ),
            Self::StepInterrupted => (
                "a step that runs at most once was interrupted",
                "find out whether its effect happened",
            ),
            Self::Expired => (
                "the call was made too late, its record has expired",
                "use a new key for a new request",
            ),
            Self::Reentrant => (
                "the body called its own operation with its own key",
                "call the inner function without the guard",
            ),
            Self::Config => ("the configuration is invalid", "correct it as described"),
            Self::Unsupported => (
                "the store does not support what was asked for",
                "use a store with that capability",
            ),
            Self::NotInstalled => (
                "no engine is installed",
                "call `engine.install()?` at start, or give the call one with `.with_engine(&engine)`",
            ),
            Self::ShuttingDown => {
                ("the engine is shutting down", "retry with the same key on another instance")
            }
        }
    }

    /// The message for an error about one step, if it differs.
    const fn text_of_step(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::StoreUnavailable => {
                ("the store did not answer, the step did not run", "retry with the same key")
            }
            Self::NotStored => (
                "the step ran but its result could not be stored",
                "retry with the same key; the step runs again if its result did not reach the store",
            ),
            Self::TooLarge => (
                "the recorded steps are larger than the limit",
                "return less from the steps or raise `max_result_size`",
            ),
            Self::Encode => (
                "its result could not be encoded",
                "return one that JSON can hold and that reads back from it",
            ),
            Self::Decode => (
                "what is recorded does not match the code",
                "finish the call with the code that started it, or give changed steps another name \
                 in a new operation",
            ),
            Self::Config => (
                "a step is used twice",
                "give each step its own name, or number them with `step_at`",
            ),
            Self::Unsupported => ("a step cannot be used here", "call the function without a step"),
            Self::StepInterrupted => (
                "the step was interrupted and it is not known whether its effect happened",
                "find that out, then answer for the call with `record(…).resolve(…)`: `completed` or `failed`, or `not_executed` if no other step has ended; `forget` would let all of its steps run again",
            ),
            Self::Superseded => CLAIM_LOST,
            _ => return None,
        })
    }
}

/// The message for a body whose claim was lost: only its call knows to whom.
pub(crate) const CLAIM_LOST: (&str, &str) = (
    "the call no longer holds its claim, so nothing further runs or is recorded",
    "end the body, and find out what it did before making the call again, unless the call has an \
     answer",
);

/// The reason why a call, or an operation on a record, has no result.
///
/// `Display` says what happened, to which operation and key, and what to do. The message is for
/// people; programs should match on [`kind`](Self::kind).
///
/// ```
/// use idempotency::{Error, ErrorKind};
///
/// fn retry_later(error: &anyhow_like::Error) -> bool {
///     Error::find(error.as_ref()).is_some_and(Error::is_retryable)
/// }
/// # mod anyhow_like {
/// #     pub struct Error(Box<dyn std::error::Error + 'static>);
/// #     impl Error { pub fn as_ref(&self) -> &(dyn std::error::Error + 'static) { &*self.0 } }
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Box<Parts>);

#[derive(Clone)]
struct Parts {
    kind: ErrorKind,
    operation: Option<Arc<str>>,
    key: Option<Box<str>>,
    step: Option<Box<str>>,
    /// The message, what happened and what to do, where the kind's own would be wrong.
    text: Option<(&'static str, &'static str)>,
    detail: Option<String>,
    store: Option<&'static str>,
    /// True if an earlier call with the key was seen before the store failed.
    met_another: bool,
    retry_after: Option<Duration>,
    /// The body ran here, and the next call would run it again.
    would_repeat: bool,
    /// The body ran in a transaction that was rolled back. True if it can be committed when it is
    /// run again.
    rolled_back: Option<bool>,
    /// A guarded call ended with this error. Without it, the error is that of something else: of an
    /// operation on a record, a step, a key.
    is_of_call: bool,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

thread_local! {
    /// True while [`Error::find`] walks a chain of sources on this thread.
    static IS_SOUGHT: Cell<bool> = const { Cell::new(false) };
}

/// A walk of [`Error::find`], which ends when this is dropped: `source` is code of other crates and
/// may panic.
struct Search {
    was_underway: bool,
}

impl Search {
    fn begin() -> Self {
        Self { was_underway: IS_SOUGHT.replace(true) }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        IS_SOUGHT.set(self.was_underway);
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Parts {
            kind,
            operation: None,
            key: None,
            step: None,
            text: None,
            detail: None,
            store: None,
            met_another: false,
            retry_after: None,
            would_repeat: false,
            rolled_back: None,
            is_of_call: false,
            source: None,
        }))
    }

    /// Converts a failure of the store named `store` into the error of a call.
    pub(crate) fn from_store(error: StoreError, store: &'static str) -> Self {
        Self::from(error).with_store(store)
    }

    fn kind_of(error: &StoreError) -> ErrorKind {
        match error.kind() {
            StoreErrorKind::Unavailable | StoreErrorKind::Refused => ErrorKind::StoreUnavailable,
            StoreErrorKind::Full => ErrorKind::Full,
            StoreErrorKind::Corrupt => ErrorKind::Decode,
            StoreErrorKind::Unsupported => ErrorKind::Unsupported,
            StoreErrorKind::Config => ErrorKind::Config,
        }
    }

    pub(crate) fn config(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config).with_detail(detail)
    }

    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    pub(crate) fn with_text(mut self, happened: &'static str, advice: &'static str) -> Self {
        self.0.text = Some((happened, advice));
        self
    }

    pub(crate) fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    pub(crate) fn with_store(mut self, store: &'static str) -> Self {
        self.0.store = Some(store);
        self
    }

    /// Records that there is, or was, another call with the key, if the refused caller `has_met`
    /// one. Never clears what the error already records.
    pub(crate) fn after_another(mut self, has_met: bool) -> Self {
        self.0.met_another |= has_met;
        self
    }

    /// Returns true if the store failed before anything was known about the key.
    pub(crate) fn knows_nothing(&self) -> bool {
        self.0.store.is_some() && !self.0.met_another
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.0.retry_after = Some(retry_after);
        self
    }

    /// The same error where something may have been done. Kinds that say that nothing was done
    /// become [`NotStored`](ErrorKind::NotStored).
    pub(crate) fn may_be_done(mut self) -> Self {
        if matches!(self.0.kind, ErrorKind::StoreUnavailable | ErrorKind::Full) {
            self.0.kind = ErrorKind::NotStored;
        }
        self
    }

    /// The body ran here, and what it did may be done again by the next call. Or an operator's request
    /// was for one record, and may be applied to another one the next time.
    pub(crate) fn would_repeat(mut self) -> Self {
        self.0.would_repeat = true;
        self
    }

    /// The body ran in a transaction that was rolled back. `is_passing`: it can be committed when it
    /// is run again.
    pub(crate) fn rolled_back(mut self, is_passing: bool) -> Self {
        self.0.rolled_back = Some(is_passing);
        self
    }

    /// The error with which a guarded call ends. Set where the call returns it, and nowhere else.
    pub(crate) fn of_call(mut self) -> Self {
        self.0.is_of_call = true;
        self
    }

    /// The message, what happened and what to do, where the kind's own would be wrong.
    pub(crate) fn own_text(&self) -> Option<(&'static str, &'static str)> {
        self.0.text
    }

    /// Returns true if the body ran here, and what it did may be done again by the next call.
    #[cfg(any(feature = "__sql", feature = "testing"))]
    pub(crate) fn has_repeated_effects(&self) -> bool {
        self.0.would_repeat
    }

    pub(crate) fn of_operation(mut self, operation: &Arc<str>) -> Self {
        self.0.operation = Some(operation.clone());
        self
    }

    pub(crate) fn of_record(mut self, operation: Option<&Arc<str>>, key: &KeyHash) -> Self {
        self.0.operation = operation.cloned();
        self.0.key = Some(key.to_string().into());
        self
    }

    pub(crate) fn of_step(mut self, step: &StepId) -> Self {
        self.0.step = Some(step.to_string().into());
        self
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that was called, if the error concerns one.
    pub fn operation(&self) -> Option<&str> {
        self.0.operation.as_deref()
    }

    /// The first twelve characters of the key's hash, if there was a key. It is never the key
    /// itself.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The [step](crate::Context::step) that the error concerns, if any: its name, followed by its
    /// index if that is not zero.
    pub fn step(&self) -> Option<&str> {
        self.0.step.as_deref()
    }

    /// The name of the store that failed, if one did.
    pub fn store(&self) -> Option<&str> {
        self.0.store
    }

    /// The time to wait before a retry can succeed, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Returns true if the same call can succeed later without anyone's intervention.
    /// [`InDoubt`](ErrorKind::InDoubt) is retryable only if a later call queries the outside world
    /// (`on_crash = verify`); [`retry_after`](Self::retry_after) then says when.
    /// [`Superseded`](ErrorKind::Superseded) is not retryable if the body ran here, unless another
    /// caller has taken the call over and is running it: the next call may repeat what it did.
    /// Nor is it where an operator's answer, or [removal](crate::record::RecordHandle::forget), met
    /// another record than the one it was for: inspect that. Nor is
    /// [`NotStored`](ErrorKind::NotStored) of a removal, which by the next try may be that of a later
    /// call, of a body in a transaction of the user, or of a [fence](crate::Context::fence), nor
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable) of a transaction whose commit the database refuses because of a constraint, as long as the data
    /// are as they are. Otherwise the same call after `NotStored` learns the outcome; if nothing
    /// has reached the store by the end of the lease, [`OnCrash`](crate::OnCrash) decides, and for a
    /// step its kind.
    pub fn is_retryable(&self) -> bool {
        let will_ask = self.0.kind == ErrorKind::InDoubt && self.0.retry_after.is_some();
        let passes = matches!(
            self.0.kind,
            ErrorKind::InProgress
                | ErrorKind::StoreUnavailable
                | ErrorKind::NotStored
                | ErrorKind::Superseded
                | ErrorKind::Full
                | ErrorKind::ShuttingDown
        );
        let is_refused = self.0.rolled_back == Some(false);
        will_ask || (passes && !self.0.would_repeat && !is_refused)
    }

    /// Returns true if the body ran in a transaction of the user, and what it wrote there was rolled
    /// back, or is once the transaction is: after an error of `run_in`, roll it back. Nothing of it is
    /// kept then, and the next call runs the body again.
    pub fn is_rolled_back(&self) -> bool {
        self.0.rolled_back.is_some()
    }

    /// Returns true if a guarded call ended with this error and left nothing: its body did not run,
    /// or ran in a transaction that was [rolled back](Self::is_rolled_back). The code that made the
    /// call can make it again, or can itself report that nothing happened, if it has done nothing
    /// else.
    ///
    /// It speaks of the innermost guarded call: one around it, whose body has returned this error, may
    /// have left something. `tx::in_transaction` counts as a guarded call.
    ///
    /// False for every error that is not that of a guarded call, whatever its kind: one of
    /// [`inspect`](crate::record::RecordHandle::inspect), of a [step](crate::Context::step) or of a
    /// key that was made by hand says nothing about the code that gets it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let charge = |coupon: Option<u32>| {
    ///     let call = engine.call("charge", coupon).ttl(Duration::from_secs(60));
    ///     call.run(|| async { Ok::<_, Error>(()) })
    /// };
    /// assert!(charge(None).await.unwrap_err().left_nothing());
    /// let look = engine.record("charge", None::<u32>).inspect().await;
    /// assert!(!look.unwrap_err().left_nothing());
    /// # }
    /// ```
    pub fn left_nothing(&self) -> bool {
        // Other kinds do not show it by themselves: there may be an effect of this call or of an
        // earlier one, or an operator has to look in any case.
        let did_not_run = matches!(
            self.0.kind,
            ErrorKind::InProgress
                | ErrorKind::StoreUnavailable
                | ErrorKind::Full
                | ErrorKind::ShuttingDown
                | ErrorKind::Mismatch
                | ErrorKind::MissingKey
                | ErrorKind::InvalidKey
        );
        self.is_rolled_back() || (self.0.is_of_call && did_not_run)
    }

    /// Finds this crate's error in a chain of sources, also inside `anyhow::Error`, `Box`, `Arc`
    /// and `#[from]` wrappers.
    ///
    /// It also finds what a search through [`source`](StdError::source) cannot: the error inside a
    /// transparent wrapper (`#[error(transparent)]`), which shows the source of the wrapped error
    /// as its own and never the wrapped error itself.
    ///
    /// ```
    /// # use std::fmt;
    /// use idempotency::{Error, ErrorKind, Idempotency, store::MemoryStore};
    ///
    /// // As `thiserror` does it for `#[error(transparent)] Idempotency(#[from] Error)`.
    /// #[derive(Debug)]
    /// struct PayError(Error);
    ///
    /// # impl fmt::Display for PayError {
    /// #     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
    /// # }
    /// impl std::error::Error for PayError {
    ///     fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
    ///         self.0.source()
    ///     }
    /// }
    ///
    /// let refused = Idempotency::builder(MemoryStore::new()).namespace("").build().unwrap_err();
    /// let error = PayError(refused);
    /// assert_eq!(Error::find(&error).map(Error::kind), Some(ErrorKind::Config));
    /// ```
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let _search = Search::begin();
        std::iter::successors(Some(error), |&error| StdError::source(error))
            .find_map(|error| error.downcast_ref())
    }
}

/// Converts the error of a store that could not be created: `RedisStore::connect(url).await?`.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let kind = Self::kind_of(&error);
        Self::new(kind).with_detail(error.to_string()).with_source(error)
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        let kind = match error {
            KeyError::Missing(_) => ErrorKind::MissingKey,
            KeyError::Invalid(_) => ErrorKind::InvalidKey,
        };
        Self::new(kind).with_detail(error.to_string())
    }
}

impl From<FingerprintError> for Error {
    fn from(error: FingerprintError) -> Self {
        Self::new(ErrorKind::Encode)
            .with_detail(format!("{error}, the body did not run"))
            .with_source(error.into_cause())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text_of_step = || self.0.step.as_ref().and_then(|_| self.0.kind.text_of_step());
        let (happened, advice) =
            self.own_text().or_else(text_of_step).unwrap_or_else(|| self.0.kind.text());
        if let Some(operation) = self.operation() {
            write!(f, "{operation}")?;
            if let Some(key) = self.key() {
                write!(f, " [{key}]")?;
            }
            f.write_str(": ")?;
        } else if let Some(key) = self.key() {
            write!(f, "record [{key}]: ")?;
        }
        if let Some(step) = self.step() {
            write!(f, "step `{step}`: ")?;
        }
        f.write_str(happened)?;
        if let Some(store) = self.store() {
            write!(f, " (store: {store})")?;
        }
        if let Some(detail) = &self.0.detail {
            write!(f, ": {detail}")?;
        }
        write!(f, "; {advice}")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("key", &self.0.key)
            .field("step", &self.0.step)
            .field("detail", &self.0.detail)
            .field("store", &self.0.store)
            .field("retry_after", &self.0.retry_after)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    /// The cause: the error of the store, or of what could not be encoded or decoded.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // A transparent wrapper passes this on as its own source, so that `find` gets to this error
        // and does not go past it. To everybody else an error is not its own cause.
        if IS_SOUGHT.get() {
            return Some(self);
        }
        self.0.source.as_deref().map(|source| source as _)
    }
}
