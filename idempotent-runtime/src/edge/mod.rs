//! Edges: layers that take calls from elsewhere, such as requests of a protocol or messages of a
//! queue, and guard them with the engine.
//!
//! An edge differs from an annotated function in what it brings along. It has computed the key, the
//! scope and the fingerprint itself ([`EdgeCall`]); it encodes results in its own way
//! ([`EdgeResult`]); it decides about the claim by more than `Ok` and `Err` ([`End`]); and it turns
//! every [`EdgeOutcome`] into an answer of its protocol. Everything else is true of its calls as of
//! all others: one result per key, leases, policies, operators. The `http` layer is an edge, and
//! uses nothing of the engine that is not public.
//!
//! # A small edge
//!
//! It does jobs from a channel. Their producers may send one again, at any time and to any process.
//!
//! ```
#![doc = include_str!("jobs.rs")]
//! # use idempotency::store::MemoryStore;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let (sender, jobs) = mpsc::channel(2);
//! # let engine = Idempotency::new(MemoryStore::new());
//! # let done = std::cell::Cell::new(0);
//! # let send = async {
//! #     for _ in 0..2 {
//! #         let (reply, replied) = oneshot::channel();
//! #         sender.send(Job { id: "7".into(), payload: b"a".into(), reply }).await.unwrap();
//! #         assert_eq!(replied.await.unwrap().unwrap().unwrap(), b"done");
//! #     }
//! #     drop(sender);
//! # };
//! # let work = async |_| { done.set(done.get() + 1); Some(b"done".to_vec()) };
//! # tokio::join!(serve(engine, jobs, work), send);
//! # assert_eq!(done.get(), 1);
//! # }
//! ```
//!
//! # What a body decides
//!
//! | end | the record | the next call |
//! |---|---|---|
//! | [`Finished`](End::Finished) | has the result | gets it |
//! | [`Released`](End::Released) | is gone, but for the count of attempts | runs the body |
//! | [`Dismissed`](End::Dismissed) | is gone, with the count of attempts | runs the body |
//! | [`Held`](End::Held) | is in doubt | is refused until an operator decides; under `verify`, asks |
//! | [`Unknown`](End::Unknown), a panic, a dropped future | by the policy | by the policy |
//! | [`NotBegun`](End::NotBegun) | is gone, but for the count of earlier attempts | runs the body |
//!
//! A record that was taken over from an earlier attempt is not gone after `Released`, `Dismissed` and
//! `NotBegun`:
//! what that attempt did is as unknown as before. It is left as after a crash, with the reason
//! [`Crashed`](crate::record::Reason::Crashed), and its policy decides about the next call.
//!
//! **An edge that says too little about an effect repeats it.** `Released`, `Dismissed` and
//! `NotBegun` promise
//! that there was none. `NotBegun` is the stronger promise: the attempt does not even count. So only
//! a body that waits for its [`Turn`] can make it, and the type [`NotBegun`] says what it means to
//! break it.
//!
//! # What an edge answers
//!
//! | outcome | the caller gets |
//! |---|---|
//! | [`Executed`](EdgeOutcome::Executed) | the body's own answer |
//! | [`Unprotected`](EdgeOutcome::Unprotected) | the same, and a repetition runs the body again |
//! | [`Replayed`](EdgeOutcome::Replayed) | the result on the record |
//! | [`Lost`](EdgeOutcome::Lost) | an error: it was done, and its result can never be shown |
//! | [`Refused`](EdgeOutcome::Refused) without `own` | the error: the body did not run, but see below |
//! | [`Refused`](EdgeOutcome::Refused) with `own` | the error, or the body's own answer |
//!
//! The value of a body that runs in a task of its own is lost with the runtime of that task. There
//! is no `own` then, and the error is [`InDoubt`](crate::ErrorKind::InDoubt): the body may have run,
//! and even stored its result. The record says what became of it.
//!
//! In the last case the body ran, and its result is not what the next caller gets. Its own answer is
//! still true if no other attempt can give another one: the result was too large, or it is not
//! stored and the policy is [`OnCrash::Hold`](crate::OnCrash::Hold).
//!
//! A protocol in which an answer acknowledges something, so that it is never sent again, does so
//! for `Replayed`, and for `Executed` if its body ended in [`Finished`](End::Finished): the value of
//! the body says so. A refusal that is
//! [stored late](EdgeOutcome::is_stored_late), and one because another caller is at work
//! ([`InProgress`](crate::ErrorKind::InProgress)), acknowledge nothing.

mod call;
mod outcome;
mod run;
mod turn;

use std::sync::Arc;
use std::time::Duration;

pub use crate::engine::Extensions;
pub use call::EdgeCall;
#[cfg(feature = "__sql")]
pub(crate) use outcome::codec;
pub use outcome::{EdgeOutcome, EdgeResult, End};
pub use turn::{Attempt, NotBegun, Turn, Waiting};

use crate::clock::Clock;
use crate::engine::{Idempotency, Resolution};

/// Bounds of an engine that concern results of edges.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::edge::limits;
///
/// let engine = Idempotency::builder(MemoryStore::new()).max_result_size(64 * 1024).build()?;
/// assert_eq!(limits(&engine).max_result_size, 64 * 1024);
/// assert_eq!(limits(&engine).max_ttl, Duration::from_secs(400 * 86_400));
/// # Ok::<(), idempotency::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest result in bytes. A marker is stored in place of a larger one, and its callers
    /// get [`TooLarge`](crate::ErrorKind::TooLarge).
    pub max_result_size: usize,
    /// The longest retention of a result.
    pub max_ttl: Duration,
    /// The time for which a claim lives without renewal, where a call sets no other.
    pub lease: Duration,
    /// The time for which a claim is renewed: a body that runs for longer loses it.
    pub max_run: Duration,
}

/// Returns the [`Limits`] of `engine`.
pub fn limits(engine: &Idempotency) -> Limits {
    let settings = &engine.inner.settings;
    let (max_result_size, max_ttl) = (settings.max_result_size, settings.max_ttl);
    Limits { max_result_size, max_ttl, lease: settings.lease, max_run: settings.max_run }
}

/// Returns the [namespace](crate::Builder::namespace) of `engine`: what an edge makes of the name of
/// one of its calls, for other engines, contains it.
///
/// ```
/// # use idempotency::{Idempotency, store::MemoryStore};
/// let engine = Idempotency::builder(MemoryStore::new()).namespace("shop").build()?;
/// assert_eq!(&*idempotency::edge::namespace(&engine), "shop");
/// # Ok::<(), idempotency::Error>(())
/// ```
pub fn namespace(engine: &Idempotency) -> Arc<str> {
    engine.inner.settings.namespace.clone()
}

/// Returns the clock of `engine`, for the waits of an edge: under a test's clock they take as long
/// as those of the engine.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let clock = idempotency::edge::clock(&engine);
/// clock.sleep(Duration::from_millis(1)).await;
/// # }
/// ```
pub fn clock(engine: &Idempotency) -> Arc<dyn Clock> {
    engine.inner.clock.clone()
}

/// Returns an operator's answer in the edge's encoding, for
/// [`resolve`](crate::record::RecordHandle::resolve). `Err` is the reason why no caller can have received
/// such an answer: `resolve` rejects it with [`Config`](crate::ErrorKind::Config) and changes
/// nothing.
///
/// ```
/// use idempotency::record::Resolution;
/// use idempotency::edge::{EdgeResult, resolution};
///
/// /// The provider's books show the receipt.
/// fn sent(receipt: &str) -> Resolution {
///     if receipt.is_empty() {
///         return resolution(Err("a receipt is never empty"));
///     }
///     resolution(Ok(EdgeResult::completed(receipt.to_owned())))
/// }
/// # assert_eq!(format!("{:?}", sent("receipt 7")), "Resolution(Completed)");
/// # assert_eq!(format!("{:?}", sent("")), "Resolution(Impossible)");
/// ```
pub fn resolution(result: Result<EdgeResult, &'static str>) -> Resolution {
    match result {
        Ok(result) => Resolution::finished(result.state(), result.into_bytes()),
        Err(why) => Resolution::impossible(why),
    }
}
