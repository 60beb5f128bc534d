//! The answer to a broker about one delivery, and how it came about.

use std::time::Duration;

use crate::Error;
use crate::key::KeyHash;

/// The answer to the broker about one delivery.
///
/// ```
/// # use std::time::Duration;
/// use idempotency::inbox::Disposition;
///
/// /// Answers in the manner of a broker that knows `ack` and `nack` alone.
/// fn answer(disposition: Disposition) -> &'static str {
///     match disposition {
///         Disposition::Ack => "ack",
///         Disposition::DeadLetter(_) => "publish to the dead letters, wait for the broker, ack",
///         Disposition::Retry(_) | Disposition::Postpone(_) | _ => "wait, nack",
///     }
/// }
/// # assert_eq!(answer(Disposition::Ack), "ack");
/// # assert_eq!(answer(Disposition::Postpone(Duration::ZERO)), "wait, nack");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// The message was handled, now or before: it must not be delivered again.
    Ack,
    /// The attempt failed: the message is to be delivered again after this time.
    Retry(Duration),
    /// The message was not tried, or it is not known yet what became of it: it is to be delivered
    /// again after this time. Not an attempt.
    Postpone(Duration),
    /// Another delivery will not help: the message belongs to the dead letters. It is acknowledged
    /// only after the broker has confirmed the dead letter.
    DeadLetter(DeadReason),
}

/// The reason why a message is a dead letter.
///
/// ```
/// assert_eq!(idempotency::inbox::DeadReason::InDoubt.as_str(), "in-doubt");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadReason {
    /// The handler said that another attempt will not help. Nothing is on record, and a redrive runs,
    /// unless an attempt has recorded [steps](crate::Context::step) or has broken off before: that
    /// record is left to the [policy](super::Inbox::with_on_crash).
    Failed,
    /// There were as many attempts as the inbox allows. If all of them failed, nothing is on record
    /// and a redrive runs. If one broke off, the record says so, and a redrive is a dead letter
    /// again until an operator has [resolved](crate::record::RecordHandle::resolve) it. If one has
    /// recorded a [step](crate::Context::step), it is too: a higher limit lets the message continue
    /// from there, and [`forget`](crate::record::RecordHandle::forget) lets it begin again.
    Attempts,
    /// An attempt began, and it is not known whether it finished. An operator
    /// [resolves](crate::record::RecordHandle::resolve) the record; a redrive then runs or is
    /// acknowledged.
    InDoubt,
    /// The key was used before by a message with another payload, or the record is the result of
    /// something else than this inbox.
    Mismatch,
    /// The message has no key.
    MissingKey,
    /// The key cannot be used: it is too long, or the code of the [`Message`](super::Message) that
    /// reads it panics.
    InvalidKey,
    /// The record of the message has expired, and the inbox
    /// [refuses](super::Inbox::with_refusal_after_expiry) it.
    Expired,
}

impl DeadReason {
    /// The name of the reason, for the header of a dead letter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Attempts => "attempts",
            Self::InDoubt => "in-doubt",
            Self::Mismatch => "mismatch",
            Self::MissingKey => "missing-key",
            Self::InvalidKey => "invalid-key",
            Self::Expired => "expired",
        }
    }
}

/// What became of one delivery.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::inbox::{Delivery, Disposition, Inbox, Outcome};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
/// let handled = inbox.handle(Delivery::new("m-1"), || async { Err("no connection") }).await;
/// assert!(matches!(handled.disposition, Disposition::Retry(_)));
/// assert!(matches!(handled.outcome, Outcome::Failed("no connection")));
/// assert_eq!(handled.attempt, 1);
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the broker has to get the disposition"]
pub struct Handled<E> {
    /// The answer to the broker.
    pub disposition: Disposition,
    /// How it came about.
    pub outcome: Outcome<E>,
    /// The number of the attempt that ran here; zero if none did, or if the operation is
    /// [disabled](crate::Idempotency::disable).
    pub attempt: u32,
    /// The record of the message, for [`record_by_hash`](crate::Idempotency::record_by_hash).
    /// `None` if the message has no usable key.
    pub record: Option<KeyHash>,
}

/// How a delivery was decided.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome<E> {
    /// The handler ran here and succeeded.
    Processed,
    /// The message had been handled before, or was by another consumer meanwhile.
    Duplicate,
    /// The handler ran here and returned this error.
    Failed(E),
    /// The handler did not run: there were as many attempts as the inbox allows.
    Exhausted,
    /// The engine refused the call. If the handler ran here, its result is not known to be on
    /// record.
    Refused(Error),
}
