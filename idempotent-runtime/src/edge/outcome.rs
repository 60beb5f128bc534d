//! The end of a body, and what becomes of a call.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::resolution;
use super::turn::NotBegun;
use crate::clock::whole_millis;
use crate::context::Context;
use crate::engine::Resolution;
use crate::error::{Error, ErrorKind};
use crate::outcome::{Answer, Codec, Ending, ErrorPolicy, Outcome, Upgrades};
use crate::policy::ErrorAction;
use crate::store::State;

/// The result of a call in the edge's own encoding: bytes, and whether they are a failure.
///
/// The engine stores the bytes and returns them to every later caller. A failure that is stored is
/// a result too, for example a declined card: the body does not run again.
///
/// ```
/// # use std::time::Duration;
/// use idempotency::edge::EdgeResult;
///
/// let declined = EdgeResult::failed(&b"declined"[..]).with_ttl(Duration::from_secs(3600));
/// assert!(declined.is_failed());
/// assert_eq!(declined.bytes(), &b"declined"[..]);
/// // Results do not belong in logs.
/// assert_eq!(format!("{declined:?}"), "EdgeResult(failed, 8 bytes)");
/// ```
#[derive(Clone, PartialEq, Eq)]
#[must_use = "a result that is dropped is not stored"]
pub struct EdgeResult {
    is_failed: bool,
    bytes: Bytes,
    ttl: Option<Duration>,
    unless_refused: bool,
}

impl EdgeResult {
    /// Creates the result of a call that succeeded.
    pub fn completed(bytes: impl Into<Bytes>) -> Self {
        Self { is_failed: false, bytes: bytes.into(), ttl: None, unless_refused: false }
    }

    /// Creates the result of a call that failed, and that is not to run again.
    pub fn failed(bytes: impl Into<Bytes>) -> Self {
        Self { is_failed: true, ..Self::completed(bytes) }
    }

    /// Sets the retention of this result, in place of the call's. It is rounded up to whole
    /// milliseconds, and brought into the bounds of the engine: a millisecond, and the
    /// [largest retention](super::Limits::max_ttl). A result of a key with a
    /// [window](crate::key::window) is kept for at least the length of that.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Keeps a failure from being stored where it may say no more than that the engine has refused
    /// the body a [step](crate::Context::step), or did not confirm one: because the claim was lost,
    /// the engine shut down, or the store did not answer. The record is then left to its policy, and
    /// the caller gets [`Refused`](EdgeOutcome::Refused), with
    /// [`NotStored`](ErrorKind::NotStored) or [`InDoubt`](ErrorKind::InDoubt).
    ///
    /// For edges that take the error of a body as its result. Without it, a failure is stored
    /// whatever the body came to before.
    ///
    /// ```
    /// use idempotency::edge::{EdgeResult, End};
    ///
    /// fn end(result: Result<(), std::io::Error>) -> End {
    ///     match result {
    ///         Ok(()) => EdgeResult::completed("").into(),
    ///         // It may be the error of a step that the engine has refused.
    ///         Err(error) => EdgeResult::failed(error.to_string()).unless_refused().into(),
    ///     }
    /// }
    /// # assert!(matches!(end(Ok(())), End::Finished(_)));
    /// ```
    pub fn unless_refused(self) -> Self {
        Self { unless_refused: true, ..self }
    }

    /// Returns true if it is a failure.
    pub fn is_failed(&self) -> bool {
        self.is_failed
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the bytes.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    pub(crate) fn within(mut self, max_ttl: Duration) -> Self {
        // Bounded before, because the longest duration has no next millisecond, and after.
        let bounded = |ttl: Duration| ttl.clamp(Duration::from_millis(1), max_ttl);
        self.ttl = self.ttl.map(|ttl| bounded(whole_millis(bounded(ttl))));
        self
    }

    pub(super) fn state(&self) -> State {
        if self.is_failed { State::Failed } else { State::Completed }
    }

    /// Returns the result as one that is written before its body runs.
    #[cfg(feature = "__sql")]
    pub(crate) fn first(&self) -> crate::engine::FirstResult {
        crate::engine::FirstResult { state: self.state(), body: self.bytes.clone(), ttl: self.ttl }
    }

    fn ending(&self) -> Ending {
        Ending::Reported {
            state: self.state(),
            body: self.bytes.clone(),
            ttl: self.ttl,
            unless_refused: self.unless_refused,
        }
    }
}

/// Shows only the size: results do not belong in logs.
impl fmt::Debug for EdgeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_failed { "failed" } else { "completed" };
        write!(f, "EdgeResult({kind}, {} bytes)", self.bytes.len())
    }
}

/// An operator's answer to a record in doubt. Its retention is the record's.
impl From<EdgeResult> for Resolution {
    fn from(result: EdgeResult) -> Self {
        resolution(Ok(result))
    }
}

/// The end of a body: what becomes of its claim.
///
/// A body that panics, or whose future is dropped, ends as [`Unknown`](Self::Unknown).
///
/// ```
/// use idempotency::edge::{EdgeResult, End};
///
/// enum Answer { Sent(String), Refused, NoAnswer }
///
/// fn end(answer: Answer) -> End {
///     match answer {
///         Answer::Sent(receipt) => EdgeResult::completed(receipt).into(),
///         // The other side did nothing: the next call may try again.
///         Answer::Refused => End::Released,
///         // It may have done it.
///         Answer::NoAnswer => End::Held,
///     }
/// }
/// # assert!(matches!(end(Answer::Sent(String::new())), End::Finished(_)));
/// # assert!(matches!(end(Answer::Refused), End::Released));
/// # assert!(matches!(end(Answer::NoAnswer), End::Held));
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "an end that is dropped decides nothing"]
pub enum End {
    /// The call has this result, which is stored and replayed.
    Finished(EdgeResult),
    /// Nothing happened: the claim is released, and the next call runs the body. [Steps] on the
    /// record contradict it, and keep the call from being run as a new one.
    ///
    /// [Steps]: crate::Context::step
    Released,
    /// Nothing happened, as with `Released`, and the edge does not bring the call again by itself:
    /// also the [count of attempts](super::EdgeCall::count_attempts) is gone. A call that is made
    /// again, by a person for example, begins at one. Where recorded steps keep the record, as with
    /// `Released`, the count stays with it.
    Dismissed,
    /// There may be an effect, and no other attempt is to repeat it unasked: the record is in doubt
    /// under every policy. Under `verify`, the next call asks.
    Held,
    /// It is not known how far the body got: the policy decides, as after a crash.
    Unknown,
    /// The body's turn did not come, and it **had no effect**: see [`NotBegun`] for what follows if
    /// it had one. It counts as [`Unknown`](Self::Unknown) if the steps of the attempt contradict
    /// it, or if it is another attempt's.
    NotBegun(NotBegun),
}

impl From<EdgeResult> for End {
    fn from(result: EdgeResult) -> Self {
        Self::Finished(result)
    }
}

impl End {
    pub(super) fn within(self, max_ttl: Duration) -> Self {
        match self {
            Self::Finished(result) => Self::Finished(result.within(max_ttl)),
            end => end,
        }
    }
}

/// The outcome of a call, for the caller that waits for it. `T` is the value that the body returned
/// for that caller.
///
/// Where `own` is present, the body ran here too, and ended in something else than what the record
/// says now. The caller that asks next gets what the record says.
///
/// All variants are listed: an edge decides about each.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult};
/// use idempotency::key::Key;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let send = || {
///     let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
///     call.run(async |_| ("sent", EdgeResult::completed("sent").into()))
/// };
/// assert!(matches!(send().await, EdgeOutcome::Executed("sent")));
/// let EdgeOutcome::Replayed { result, own: None } = send().await else { panic!("it was sent") };
/// assert_eq!(result.bytes(), &b"sent"[..]);
/// # }
/// ```
#[derive(Debug)]
#[must_use = "an edge decides about each outcome"]
pub enum EdgeOutcome<T> {
    /// The body ran here, and no other party decided the call: the record ends as the body decided,
    /// or as unknown where its recorded steps or the store do not allow that.
    Executed(T),
    /// The body ran here without a claim, because the operation is
    /// [disabled](crate::Idempotency::disable). Nothing was recorded, whatever its end.
    Unprotected(T),
    /// The record has this result: of another call, of an operator, or of the verification of an
    /// earlier attempt.
    Replayed {
        /// The result.
        result: EdgeResult,
        /// The value of this call's body, which was overtaken.
        own: Option<T>,
    },
    /// There was a result, and the engine has stored a marker in its place, because it is larger
    /// than [`max_result_size`](super::Limits::max_result_size). It can never be replayed.
    Lost {
        /// The error that the marker stands for.
        error: Error,
        /// The value of this call's body, which was overtaken.
        own: Option<T>,
    },
    /// The call was refused.
    Refused {
        /// The reason.
        error: Error,
        /// The value of this call's body. It ran, and its result is not what the next caller gets:
        /// it is [stored late](EdgeOutcome::is_stored_late) or never, it is larger than the limit
        /// ([`TooLarge`](ErrorKind::TooLarge)), it leaves out a recorded step
        /// ([`Decode`](ErrorKind::Decode)), or the call was taken over
        /// ([`Superseded`](ErrorKind::Superseded)).
        ///
        /// `None` if the body did not run here, or ran in a task of its own whose runtime has ended
        /// ([`InDoubt`](ErrorKind::InDoubt)).
        own: Option<T>,
    },
}

impl<T> EdgeOutcome<T> {
    /// The error, if there is one.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{ErrorKind, Idempotency, store::MemoryStore};
    /// use idempotency::edge::{EdgeCall, EdgeResult};
    /// use idempotency::key::Key;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = EdgeCall::new(&engine, "mail", Key::of(&None::<u32>), Duration::from_secs(60));
    /// let outcome = call.run(async |_| ((), EdgeResult::completed("sent").into())).await;
    /// assert_eq!(outcome.error().unwrap().kind(), ErrorKind::MissingKey);
    /// # }
    /// ```
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Lost { error, .. } | Self::Refused { error, .. } => Some(error),
            Self::Executed(_) | Self::Unprotected(_) | Self::Replayed { .. } => None,
        }
    }

    /// Returns true if the body ran here and its result could not be stored yet
    /// ([`NotStored`](ErrorKind::NotStored)). The background goes on trying if it has a place for it;
    /// if it never succeeds, the policy decides.
    ///
    /// An edge that acknowledges something on the strength of the result does not do so now. The
    /// next call learns what became of it.
    pub fn is_stored_late(&self) -> bool {
        self.error().is_some_and(|error| error.kind() == ErrorKind::NotStored)
    }

    /// Returns true if the store failed before anything was known about the key: an edge that fails
    /// open can then [run the body without protection](super::EdgeCall::run_unprotected).
    ///
    /// False for two refusals of the same kind. A store that answered, but too late for the lease,
    /// may have reported an earlier attempt; and a store that failed after it had reported another
    /// call, for example while this one waited for it or looked at the window before, has told of
    /// that one. In both cases the body could repeat an effect of which there is a record.
    pub fn may_fail_open(&self) -> bool {
        match self {
            Self::Refused { error, own: None } => {
                error.kind() == ErrorKind::StoreUnavailable && error.knows_nothing()
            }
            _ => false,
        }
    }

    fn own(self) -> Option<T> {
        match self {
            Self::Executed(value) | Self::Unprotected(value) => Some(value),
            Self::Replayed { own, .. } | Self::Lost { own, .. } | Self::Refused { own, .. } => own,
        }
    }
}

/// The return type of the guarded call behind an [`EdgeCall`](super::EdgeCall).
pub(crate) enum Raw<T> {
    /// The body ended.
    Ended(T, End),
    /// The verification callback knows the result of an earlier attempt.
    Verified(EdgeResult),
    /// The engine has decided.
    Decided(EdgeOutcome<T>),
}

impl<T> From<Raw<T>> for EdgeOutcome<T> {
    fn from(raw: Raw<T>) -> Self {
        match raw {
            // Of a body without a claim, which has no ending.
            Raw::Ended(value, _) => Self::Unprotected(value),
            Raw::Verified(result) => Self::Replayed { result, own: None },
            Raw::Decided(outcome) => outcome,
        }
    }
}

impl<T> Outcome for Raw<T> {
    type Value = EdgeResult;
    // A callback without an answer returns `Verdict::Unknown`, not an error.
    type Failure = Infallible;

    fn completed(value: EdgeResult) -> Self {
        Self::Verified(value)
    }

    fn failed(error: Infallible) -> Self {
        match error {}
    }

    fn codec<P: ErrorPolicy<Infallible>>(policy: P) -> Codec<Self, P> {
        Codec::of(policy, ending, answer)
    }
}

pub(crate) fn codec<T>() -> Codec<Raw<T>> {
    Raw::codec(ErrorAction::Release)
}

fn ending<T, P>(raw: Raw<T>, _: P) -> (Raw<T>, Ending) {
    match raw {
        Raw::Ended(value, End::NotBegun(not_begun)) if is_true(&not_begun) => {
            drop(value);
            let refused = EdgeOutcome::Refused { error: not_begun.error().of_call(), own: None };
            (Raw::Decided(refused), Ending::NotBegun)
        }
        Raw::Ended(value, end) => {
            let ending = match end {
                End::Finished(result) => result.ending(),
                End::Released => Ending::Release,
                End::Dismissed => Ending::Dismiss,
                End::Held => Ending::Hold,
                End::Unknown | End::NotBegun(_) => Ending::GiveUp,
            };
            (Raw::Decided(EdgeOutcome::Executed(value)), ending)
        }
        Raw::Verified(result) => {
            let ending = result.ending();
            (Raw::Verified(result), ending)
        }
        // No body returns it.
        Raw::Decided(outcome) => (Raw::Decided(outcome), Ending::GiveUp),
    }
}

/// Returns true if `not_begun` is about the attempt that ends here, and nothing contradicts it.
fn is_true(not_begun: &NotBegun) -> bool {
    Context::try_current().is_some_and(|attempt| not_begun.is_of(&attempt))
        && !not_begun.has_steps()
}

fn answer<T>(answer: Answer, own: Option<Raw<T>>, _: &Upgrades<Raw<T>>) -> Raw<T> {
    let own = own.and_then(|raw| EdgeOutcome::from(raw).own());
    Raw::Decided(match answer {
        Answer::Refused(error) => EdgeOutcome::Refused { error: error.of_call(), own },
        Answer::Stored(stored) => match stored.marker() {
            Some(error) => EdgeOutcome::Lost { error: error.of_call(), own },
            None if stored.record.schema == stored.version => {
                let is_failed = stored.record.state == State::Failed;
                let bytes = stored.record.body.clone();
                let result = EdgeResult { is_failed, ..EdgeResult::completed(bytes) };
                EdgeOutcome::Replayed { result, own }
            }
            None => {
                let detail = format!(
                    "it has schema version {}, this call reads {}",
                    stored.record.schema, stored.version
                );
                EdgeOutcome::Refused { error: stored.unreadable(&detail).of_call(), own }
            }
        },
    })
}
