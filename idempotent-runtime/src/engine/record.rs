//! One record, for operators: inspect, resolve, forget.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::Inner;
use super::retry::Budget;
use super::store_client::Tries;
use super::view::RecordView;
use crate::encoding::{NotEncodable, encode_for_any_reader};
use crate::error::{Error, ErrorKind};
use crate::events::What;
use crate::key::{IntoKey, Key, KeyHash, hash_key};
use crate::steps::{self, StepId, StepOutcome, StepView};
use crate::store::{
    AdminOutcome, Operation, Park, Record, Remove, Resolve, ResolveAnswer, State, StoreError,
};

/// A handle to the record of one call. Created by
/// [`Idempotency::record`](super::Idempotency::record).
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, record::State, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let engine = Idempotency::new(MemoryStore::new());
/// engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).run(|| async { Ok::<_, Error>(()) }).await?;
///
/// let record = engine.record("payments.charge", 7);
/// assert_eq!(record.inspect().await?.unwrap().state, State::Completed);
/// record.forget().await?;
/// assert!(record.inspect().await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RecordHandle {
    engine: Arc<Inner>,
    name: Name,
}

#[derive(Clone)]
enum Name {
    Call { operation: Arc<str>, key: Key, scope: Option<Key> },
    Hash(KeyHash),
}

/// An operator's answer to a record in doubt: [`completed`](Self::completed),
/// [`failed`](Self::failed) or [`not_executed`](Self::not_executed).
#[must_use = "`RecordHandle::resolve` stores it"]
pub struct Resolution(Kind);

enum Kind {
    Finished(State, Result<Bytes, NotEncodable>),
    /// An answer that no caller can have received, and why.
    Impossible(&'static str),
    NotExecuted,
}

/// Shows only the kind of the answer.
impl fmt::Debug for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Finished(state, _) => write!(f, "Resolution({state:?})"),
            Kind::Impossible(_) => f.write_str("Resolution(Impossible)"),
            Kind::NotExecuted => f.write_str("Resolution(NotExecuted)"),
        }
    }
}

impl Resolution {
    /// The effect happened, and `value` is the result that every caller gets from now on.
    pub fn completed<T: Serialize>(value: T) -> Self {
        Self(Kind::Finished(State::Completed, encode_for_any_reader(&value)))
    }

    /// The call failed, and `error` is what every caller gets from now on. The operation must store
    /// errors (`on_error = store`) to read it.
    pub fn failed<E: Serialize>(error: E) -> Self {
        Self(Kind::Finished(State::Failed, encode_for_any_reader(&error)))
    }

    /// The effect did not happen: the next call runs the body, and the record is removed with its
    /// steps. [`resolve`](RecordHandle::resolve) therefore rejects it with
    /// [`Config`](ErrorKind::Config) if a [step](crate::Context::step) of the call has ended: that
    /// one did happen, and the next call would run it again. A step that was only
    /// [started](crate::record::StepOutcome::Started) is what it is an answer to.
    pub const fn not_executed() -> Self {
        Self(Kind::NotExecuted)
    }

    /// A result of a call that encodes its results itself.
    pub(crate) fn finished(state: State, body: Bytes) -> Self {
        Self(Kind::Finished(state, Ok(body)))
    }

    /// An answer that is rejected.
    pub(crate) fn impossible(why: &'static str) -> Self {
        Self(Kind::Impossible(why))
    }
}

impl RecordHandle {
    pub(super) fn of_call(engine: Arc<Inner>, operation: &str, key: Key) -> Self {
        Self { engine, name: Name::Call { operation: operation.into(), key, scope: None } }
    }

    pub(super) fn of_hash(engine: Arc<Inner>, hash: KeyHash) -> Self {
        Self { engine, name: Name::Hash(hash) }
    }

    /// Sets the tenant part of the key, as in the call. The hash of a record already contains it:
    /// for a record named by its hash, this changes nothing.
    #[must_use]
    pub fn scope<K: IntoKey>(mut self, value: K) -> Self {
        if let Name::Call { scope, .. } = &mut self.name {
            *scope = Some(Key::of(&value));
        }
        self
    }

    /// Like [`scope`](Self::scope), for a part that is already encoded. `None` means no scope.
    pub(crate) fn in_scope(mut self, part: Option<Key>) -> Self {
        if let Name::Call { scope, .. } = &mut self.name {
            *scope = part;
        }
        self
    }

    /// Returns the name under which the store keeps the record.
    ///
    /// # Errors
    /// [`MissingKey`](ErrorKind::MissingKey) and [`InvalidKey`](ErrorKind::InvalidKey).
    pub fn hash(&self) -> Result<KeyHash, Error> {
        match &self.name {
            Name::Hash(hash) => Ok(*hash),
            Name::Call { operation, key, scope } => {
                let settings = &self.engine.settings;
                let scope = scope
                    .as_ref()
                    .map_or(Ok(&[][..]), |scope| scope.as_scope(settings.max_key_size))?;
                let number = key.window_number(self.engine.clock.now());
                let key = key.in_window(number, settings.max_key_size)?;
                Ok(hash_key(&settings.namespace, scope, operation, &key))
            }
        }
        .map_err(|error: Error| {
            self.operation().map_or(error.clone(), |operation| error.of_operation(operation))
        })
    }

    /// Returns the key, if the store may be queried from this process.
    fn queryable_key(&self) -> Result<KeyHash, Error> {
        let key = self.hash()?;
        self.engine.at_home().map_err(|error| self.error(&key, error))?;
        Ok(key)
    }

    fn operation(&self) -> Option<&Arc<str>> {
        match &self.name {
            Name::Call { operation, .. } => Some(operation),
            Name::Hash(_) => None,
        }
    }

    fn error(&self, key: &KeyHash, error: Error) -> Error {
        error.of_record(self.operation(), key)
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, Error> {
        let engine = &self.engine;
        engine.store.read(Budget::of(engine.settings.claim_timeout), key).await.map_err(|error| {
            let error = self.error(&key, engine.store_error(error));
            if error.kind() == ErrorKind::StoreUnavailable {
                error.with_text(UNREAD.0, UNREAD.1)
            } else {
                error
            }
        })
    }

    /// Returns the record as it is, or `None` if there is none or it has expired. What is left of
    /// an expired record under [`after_expiry`](crate::Call::after_expiry) is shown as a
    /// [`Tombstone`](State::Tombstone).
    ///
    /// # Errors
    /// The store's errors.
    pub async fn inspect(&self) -> Result<Option<RecordView>, Error> {
        Ok(self.read(self.queryable_key()?).await?.as_ref().map(RecordView::new))
    }

    /// Settles an in-doubt record on behalf of an owner that cannot. The answer is kept from now on
    /// for as long as an unfinished record, which is the call's `ttl` or longer
    /// ([`in_doubt_retention`](crate::Builder::in_doubt_retention)). A late owner can neither
    /// overwrite it nor return another value.
    ///
    /// A record whose owner is gone can be resolved under every policy, as long as no other call
    /// has taken it over. If the next call would have done so, the record is marked in doubt first:
    /// if this fails in between, it waits for an answer.
    ///
    /// An answer that turns out to be wrong, for example JSON that no caller can read, is corrected
    /// in the same way: a view whose state is completed or failed and whose reason is
    /// [`Resolved`](crate::store::Reason::Resolved) shows an earlier answer, and a new one replaces
    /// it. This is the one exception to "a result never changes": callers may have received the first
    /// answer, and near caches of other processes keep it for
    /// [`near_cache_ttl`](crate::Builder::near_cache_ttl). The result of an owner is never
    /// corrected. `not_executed` is not a correction; [`forget`](Self::forget) lets the next call
    /// run.
    ///
    /// The answer has the schema [`version`](crate::Call::version) of the call that left the
    /// record, and so does a correction of it. Callers of a release with another version can read
    /// it only through their `upgrade`, and get [`Decode`](ErrorKind::Decode) without one: answer
    /// in the form of the old release, or before the new one is deployed.
    ///
    /// # Errors
    /// [`InProgress`](ErrorKind::InProgress) if an owner is alive.
    /// [`Superseded`](ErrorKind::Superseded) if the record is no longer as `view` shows it, or can
    /// no longer be resolved: inspect it again. [`NotStored`](ErrorKind::NotStored) if the store
    /// does not say whether it has the answer: repeat it with the same view, which is applied once at
    /// most. If it had been applied, the repetition gets `Superseded`, and the record shows it.
    /// [`Encode`](ErrorKind::Encode) and
    /// [`TooLarge`](ErrorKind::TooLarge) if the answer cannot be stored,
    /// [`Config`](ErrorKind::Config) if its [edge](crate::edge::resolution) says that there is no
    /// such answer; nothing has changed then.
    /// [`Config`](ErrorKind::Config) too for `not_executed` where a step has ended: nothing has
    /// changed, or, if the step was recorded meanwhile, the record is in doubt now.
    /// The store's errors.
    pub async fn resolve(&self, view: &RecordView, resolution: Resolution) -> Result<(), Error> {
        let resolved = self.resolved(view, resolution).await;
        self.operated(Operation::Resolve, &resolved);
        resolved
    }

    async fn resolved(&self, view: &RecordView, resolution: Resolution) -> Result<(), Error> {
        let key = self.queryable_key()?;
        let engine = &self.engine;
        let observed = view.revision.owner();
        let record = self.read(key).await?.filter(|record| view.revision.shows(record));
        let record = record.ok_or_else(|| self.changed(&key))?;
        let answer = self.answer(&key, &record, resolution)?;
        let not_executed = matches!(answer, ResolveAnswer::NotExecuted);
        if not_executed {
            self.has_no_results(&key, &record, HAS_RESULTS)?;
        }
        let token = engine.token().map_err(|error| {
            let error = Error::new(ErrorKind::StoreUnavailable)
                .with_text(
                    "no random numbers are available for the answer, and nothing has changed",
                    REFUSED.1,
                )
                .with_source(error);
            self.error(&key, error)
        })?;
        let is_marked = record.is_orphaned();
        if is_marked {
            let park = Park::orphan(key, observed);
            engine.store.park(Budget::of(engine.settings.claim_timeout), park).await.map_err(
                |error| {
                    let happened =
                        "the store did not respond before it had the answer, and the record may be \
                         in doubt now";
                    self.error(&key, engine.store_error(error).with_text(happened, "inspect it, and answer again"))
                },
            )?;
            // The step of a late owner may have come before the mark. None comes after it.
            let marked = |error: Error| error.with_text(MARKED.0, MARKED.1);
            if not_executed && let Some(record) = self.read(key).await.map_err(marked)? {
                self.has_no_results(&key, &record, HAS_RESULTS_AND_IS_MARKED)?;
            }
        }
        let resolve = Resolve::new(key, observed, token, answer);
        // An answer that is being corrected may be cached.
        let _changes = Changes { engine, key };
        let sent = self.sent(&key, async |tries| engine.store.resolve(&resolve, tries).await).await;
        let (changed, tries) = sent.map_err(|error| match error.kind() {
            ErrorKind::StoreUnavailable | ErrorKind::Full if is_marked => {
                error.with_text(MARKED.0, MARKED.1)
            }
            _ => error,
        })?;
        match changed {
            AdminOutcome::Applied => Ok(()),
            AdminOutcome::Running if tries.may_be_applied() => Err(self.overtaken(&key)),
            AdminOutcome::Running => Err(self.error(&key, Error::new(ErrorKind::InProgress))),
            changed => match self.read(key).await {
                Ok(Some(record)) if record.owner == token => Ok(()),
                // An earlier try may have been applied and its answer lost.
                Ok(None) if not_executed && changed == AdminOutcome::Absent => Ok(()),
                // It may have been applied before the record became what it is now.
                Ok(_) if tries.may_be_applied() => Err(self.overtaken(&key)),
                Err(error) if tries.may_be_applied() => Err(unknown(error)),
                Ok(_) => Err(self.changed(&key)),
                Err(error) => Err(error),
            },
        }
    }

    /// Sends a change until the store answers, and returns what is known about the tries before.
    async fn sent(
        &self,
        key: &KeyHash,
        change: impl AsyncFnOnce(&Tries) -> Result<AdminOutcome, StoreError>,
    ) -> Result<(AdminOutcome, Tries), Error> {
        let (engine, tries) = (&self.engine, Tries::default());
        match change(&tries).await {
            Ok(changed) => Ok((changed, tries)),
            Err(error) => {
                let error = self.error(key, engine.store_error(error));
                Err(match error.kind() {
                    _ if tries.may_be_applied() => unknown(error),
                    ErrorKind::StoreUnavailable | ErrorKind::Full => {
                        error.with_text(REFUSED.0, REFUSED.1)
                    }
                    _ => error,
                })
            }
        }
    }

    /// The error for a change that may have been applied before the record became what it is.
    fn overtaken(&self, key: &KeyHash) -> Error {
        let error = Error::new(ErrorKind::Superseded).would_repeat();
        self.error(key, error.with_text(OVERTAKEN.0, OVERTAKEN.1))
    }

    /// Rejects the removal of a record on which a step has ended. `text`: what is said about it.
    fn has_no_results(
        &self,
        key: &KeyHash,
        record: &Record,
        text: (&'static str, &'static str),
    ) -> Result<(), Error> {
        if !matches!(record.state, State::InProgress | State::InDoubt) {
            return Ok(());
        }
        let detail = match steps::shown(&record.body) {
            Some(steps) => {
                let ended = |step: &&StepView| step.outcome != StepOutcome::Started;
                let Some(step) = steps.iter().find(ended) else { return Ok(()) };
                let step = StepId { name: step.name.clone(), index: step.index };
                format!("`{step}` has ended")
            }
            None => "its steps cannot be read by this release".to_owned(),
        };
        Err(self.error(key, Error::config(detail).with_text(text.0, text.1)))
    }

    fn answer(
        &self,
        key: &KeyHash,
        record: &Record,
        resolution: Resolution,
    ) -> Result<ResolveAnswer, Error> {
        let (state, body) = match resolution.0 {
            Kind::Finished(state, body) => (state, body),
            Kind::Impossible(why) => return Err(self.error(key, Error::config(why))),
            Kind::NotExecuted => return Ok(ResolveAnswer::NotExecuted),
        };
        let body = body.map_err(|error| {
            let detail = format!("{error}; the answer was not stored");
            self.error(key, Error::new(ErrorKind::Encode).with_source(error).with_detail(detail))
        })?;
        let limit = self.engine.settings.max_result_size;
        if body.len() > limit {
            let detail = format!("it takes {} bytes and the limit is {limit}", body.len());
            let error = Error::new(ErrorKind::TooLarge).with_detail(detail);
            return Err(self.error(key, error.with_text(TOO_LARGE.0, TOO_LARGE.1)));
        }
        Ok(ResolveAnswer::Finished { state, body, schema: record.schema, ttl: record.linger })
    }

    fn changed(&self, key: &KeyHash) -> Error {
        let happened = "the record differs from the one that was seen, or is neither in doubt nor \
            an operator's answer, so it was left as it is; an earlier request that got no answer may \
            have changed it";
        let error = Error::new(ErrorKind::Superseded).would_repeat();
        self.error(key, error.with_text(happened, "inspect it again"))
    }

    /// Removes the record: the next call with this key runs the body. Does nothing if there is
    /// none. The tombstone that an expired record leaves
    /// ([`after_expiry`](crate::Call::after_expiry)) is removed too.
    ///
    /// # Errors
    /// [`InProgress`](ErrorKind::InProgress) if its body runs, or may run although its record was
    /// removed by force. [`Superseded`](ErrorKind::Superseded) if it changed meanwhile.
    /// [`NotStored`](ErrorKind::NotStored) if the store does not say whether it was removed.
    /// Neither is [retryable](Error::is_retryable): the record may be that of a later call by then,
    /// which this would remove too. Inspect it first. The store's other errors.
    pub async fn forget(&self) -> Result<(), Error> {
        let removed = self.removed().await;
        self.operated(Operation::Remove, &removed);
        removed
    }

    /// Reports what an operator has done, or was refused.
    fn operated(&self, action: Operation, done: &Result<(), Error>) {
        let result = done.as_ref().copied().map_err(Error::kind);
        let what = What::Operated { action, result };
        self.engine.observers.tell(self.operation(), self.hash().ok().as_ref(), what);
    }

    async fn removed(&self) -> Result<(), Error> {
        let key = self.queryable_key()?;
        let engine = &self.engine;
        let Some(record) = self.read(key).await? else { return Ok(()) };
        let remove = Remove::new(key, record.owner);
        let _changes = Changes { engine, key };
        let sent = self.sent(&key, async |tries| engine.store.remove(remove, tries).await).await;
        let (changed, tries) = sent.map_err(|error| match error.kind() {
            // Without a view, it may meet the record of a later call the next time.
            ErrorKind::NotStored => error.would_repeat(),
            _ => error,
        })?;
        match changed {
            AdminOutcome::Applied | AdminOutcome::Absent => Ok(()),
            AdminOutcome::Running => {
                let left = record.lease_until.saturating_duration_since(record.read_at);
                Err(self.error(&key, Error::new(ErrorKind::InProgress).with_retry_after(left)))
            }
            AdminOutcome::Conflict if tries.may_be_applied() => Err(self.overtaken(&key)),
            AdminOutcome::Conflict => Err(self.changed(&key)),
        }
    }
}

/// For an operator's answer, which is not a body's result.
const TOO_LARGE: (&str, &str) = (
    "the answer is larger than the limit, and nothing has changed",
    "answer with a smaller one or raise `max_result_size`",
);
/// For a read without an answer. The messages of calls are about bodies that did not run, and no
/// body is requested here.
const UNREAD: (&str, &str) = ("the record could not be read", "try again later");
/// For a change without any answer.
const UNKNOWN: (&str, &str) = (
    "the store did not answer, and it is not known whether it was applied",
    "inspect the record: if it is still as it was seen, try again",
);
/// The error for a change that got no answer at all.
fn unknown(error: Error) -> Error {
    error.may_be_done().with_text(UNKNOWN.0, UNKNOWN.1)
}

/// For a change that was rejected.
const REFUSED: (&str, &str) =
    ("the store did not accept it, and nothing has changed", "try again later");
/// For an answer that was rejected after the record had been marked in doubt.
const MARKED: (&str, &str) = (
    "the store did not accept the answer, and the record is in doubt until it has one",
    "answer again later",
);
/// For an answer that would remove the results of steps.
const HAS_RESULTS: (&str, &str) = (
    "the call has steps that did happen, and the next one would run them again; nothing has changed",
    "answer `completed` or `failed` with what is known of the others, or let all of them run again \
     with `forget`",
);
/// For the same after the record had been marked in doubt.
const HAS_RESULTS_AND_IS_MARKED: (&str, &str) = (
    "a step was recorded meanwhile that did happen, and the next call would run it again; the record \
     is in doubt until it has an answer",
    HAS_RESULTS.1,
);
/// For a change without an answer to the first try, when a later try found another record.
const OVERTAKEN: (&str, &str) = (
    "the record is no longer as it was seen, the store did not answer at first, and it is not \
     known whether it was applied before that",
    "inspect it: a record with a later `created` than the one that was seen was created after that \
     one had been removed, and its call has run or is running",
);

/// Removes a record from the near cache when its removal or its correction has ended, whatever the
/// outcome.
struct Changes<'engine> {
    engine: &'engine Inner,
    key: KeyHash,
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        if let Some(near_cache) = &self.engine.near_cache {
            near_cache.forget(&self.key);
        }
    }
}

impl fmt::Debug for RecordHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordHandle")
            .field("operation", &self.operation())
            .field("key", &self.hash().ok())
            .finish()
    }
}
