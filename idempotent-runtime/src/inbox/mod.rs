//! Messages: what a consumer has handled, it does not handle again.
//!
//! Brokers deliver at least once: after a lost acknowledgement, a restart, a rebalance, an expired
//! deadline, a message comes again. An [`Inbox`] runs the handler of each message under a claim in
//! the engine's store, as an annotated function runs its body, and returns the answer for the
//! broker. **Each message has its effect once**, as far as the [policy](crate::OnCrash) says so for
//! processes that die in the middle. It is not exactly-once delivery, which no broker has.
//!
//! - [`Inbox::handle`] decides about one delivery, for a loop of your own.
//! - [`Consumer`] is the loop, over a [`Source`]: an adapter for a broker.
//!
//! # The answer to the broker
//!
//! | what the claim finds | the handler | [`Disposition`] |
//! |---|---|---|
//! | nothing, or what a failed attempt left | returns `Ok` | `Ack` |
//! | | returns an `Err`: [`OnFailure::Retry`] | `Retry`; after the last attempt `DeadLetter` |
//! | | … [`DeadLetter`](OnFailure::DeadLetter) | `DeadLetter(Failed)` |
//! | | … [`Hold`](OnFailure::Hold) | `DeadLetter(InDoubt)` |
//! | | … [`Done`](OnFailure::Done) | `Ack` |
//! | | succeeded, and the result is not stored yet | `Postpone` |
//! | | was overtaken by another consumer | `Ack` with its result; `Postpone` while that is at work; `DeadLetter(InDoubt)` if the next delivery would run as the first |
//! | another consumer is at work | does not run | `Ack` once that has finished, else `Postpone` |
//! | an attempt that broke off, under `retry` or `resume` | runs | as above |
//! | the same, under `hold` | does not run | `DeadLetter(InDoubt)` |
//! | a result | does not run | `Ack`, every time |
//! | a message with another payload | does not run | `DeadLetter(Mismatch)` |
//! | a record that has expired, and is refused | does not run | `DeadLetter(Expired)` |
//! | no answer of the store | does not run | `Postpone` |
//!
//! A delivery is never acknowledged because another consumer **probably** handles the message.

mod burials;
mod calling;
mod consumer;
mod delivery;
mod drive;
mod failures;
mod handled;
mod handling;
#[cfg(feature = "__sql")]
mod in_transaction;
#[expect(clippy::module_inception, reason = "the type that the module is named after")]
mod inbox;
mod intake;
mod lanes;
mod observed;
mod offsets;
mod pauses;
mod resting;
mod source;
mod worker;

pub use consumer::{ConsumeError, Consumer, Drained};
pub use delivery::Delivery;
pub use failures::{Decide, FailurePolicy, OnFailure, RetryAll};
pub use handled::{DeadReason, Disposition, Handled, Outcome};
pub use inbox::Inbox;
pub use offsets::Offsets;
pub use source::{Message, Order, Settled, Source};

/// The header of a message that carries its key: for producers, and for dead letters that are
/// delivered again.
///
/// ```
/// assert_eq!(idempotency::inbox::KEY_HEADER, "idempotency-key");
/// ```
pub const KEY_HEADER: &str = "idempotency-key";
