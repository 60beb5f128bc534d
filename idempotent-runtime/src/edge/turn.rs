//! The running attempt, as an edge sees it, and its turn.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::context::Context;
use crate::error::{Error, ErrorKind};

/// The running attempt of a call, for edges: what a [`Context`] does not show to bodies.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::edge::{Attempt, EdgeCall, EdgeResult};
/// use idempotency::key::Key;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
/// call.run(async |_| {
///     let attempt = Attempt::current().expect("this is a body");
///     assert!(attempt.is_protected() && !attempt.is_verification());
///     assert_eq!(attempt.context().attempt(), 1);
///     ((), EdgeResult::completed("").into())
/// })
/// .await;
/// assert!(Attempt::current().is_none());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Attempt(Context);

impl Attempt {
    /// Returns the innermost attempt that runs the current code, or `None` outside of one. It can
    /// be one of any call, not only of an edge's.
    pub fn current() -> Option<Self> {
        Context::try_current().map(Self)
    }

    pub(super) fn of(context: Context) -> Self {
        Self(context)
    }

    /// The context that the body has.
    pub fn context(&self) -> &Context {
        &self.0
    }

    /// Returns true if the attempt has a claim. Without one, because the operation is
    /// [disabled](crate::Idempotency::disable) or the edge
    /// [fails open](super::EdgeCall::run_unprotected), nothing is recorded, and a repetition runs
    /// the body again.
    pub fn is_protected(&self) -> bool {
        self.0.attempt() > 0
    }

    /// Returns true in the verification of an earlier attempt, and false in a body.
    pub fn is_verification(&self) -> bool {
        self.0.is_question()
    }

    /// Returns true if the call has a verification callback, which the next caller calls if this
    /// attempt breaks off.
    ///
    /// The callback runs outside of every step. What an edge derives inside a step has to have a name
    /// that the callback knows too, such as that of
    /// [`Context::derive_key_in_step`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, Verdict, store::MemoryStore};
    /// use idempotency::edge::{Attempt, EdgeCall, EdgeResult};
    /// use idempotency::key::Key;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60))
    ///     .on_crash_verify(async |_: Attempt| Verdict::Unknown)
    ///     .run(async |_| {
    ///         assert!(Attempt::current().unwrap().may_be_verified());
    ///         ((), EdgeResult::completed("").into())
    ///     })
    ///     .await;
    /// # }
    /// ```
    pub fn may_be_verified(&self) -> bool {
        self.0.may_be_verified()
    }

    /// Returns true if the body runs in a transaction, and was
    /// refused a [step](Context::step), which there is none there: an edge that takes the error of a
    /// body as its result does not do so then.
    pub fn was_refused_a_step(&self) -> bool {
        self.0.was_refused_a_step()
    }

    /// The number of the try of the [step](Context::step) that runs here: 1 in the first, and one
    /// more in each that [`retry`](crate::step::Step::retry) adds. `None` outside of a step of this
    /// attempt.
    ///
    /// A try repeats the one before, as an attempt of the body repeats an earlier one. What an edge
    /// keeps with the attempt to distinguish things that a body does once is to be forgotten with
    /// the try.
    pub fn step_try(&self) -> Option<u32> {
        self.0.try_of_step()
    }

    /// The store's time, or slightly earlier: the time of the claim, and what has passed since on
    /// this machine. `None` if the engine is gone.
    ///
    /// A lifetime that is counted from it never ends after the record: a wrong clock of this
    /// machine has no effect.
    pub fn store_time(&self) -> Option<Timestamp> {
        self.0.store_time()
    }

    /// The value of type `T` of this attempt, created when it is first requested. It ends with the
    /// attempt: the next one has a value of its own.
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, store::MemoryStore};
    /// use idempotency::edge::Attempt;
    ///
    /// /// Numbers the messages that a body publishes.
    /// #[derive(Default)]
    /// struct Published(AtomicU32);
    ///
    /// fn next_message() -> Option<u32> {
    ///     Some(Attempt::current()?.extension::<Published>().0.fetch_add(1, Ordering::Relaxed))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("orders.pay", 7).ttl(Duration::from_secs(60)).run(async || {
    ///     assert_eq!([next_message(), next_message()], [Some(0), Some(1)]);
    ///     Ok::<_, Error>(())
    /// });
    /// call.await
    /// # }
    /// ```
    pub fn extension<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.0.extension()
    }
}

/// The turn of a body that has just been called. There is one for each attempt.
///
/// An edge whose bodies start at once ignores it. One that first waits for something else, a permit
/// or a connection, gives it to [`wait`](Self::wait): until the wait is over, a shutdown or the drop
/// of the call releases the claim instead of leaving an unknown outcome, and the claim that ends
/// meanwhile leads to [`End::NotBegun`](super::End::NotBegun).
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult, End, Turn};
/// use idempotency::key::Key;
/// use tokio::sync::Semaphore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let slots = Semaphore::new(1);
/// let send = async |turn: Turn| {
///     let waiting = turn.wait();
///     let _slot = tokio::select! {
///         biased;
///         () = waiting.claim_ended() => return ((), End::NotBegun(waiting.leave())),
///         slot = slots.acquire() => slot,
///     };
///     if let Err(not_begun) = waiting.begin() {
///         return ((), End::NotBegun(not_begun));
///     }
///     // … the effect …
///     ((), EdgeResult::completed("sent").into())
/// };
/// let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
/// assert!(matches!(call.run(send).await, EdgeOutcome::Executed(())));
/// # }
/// ```
#[derive(Debug)]
pub struct Turn(Context);

impl Turn {
    /// Returns the turn of the body that runs the current code, which has just been called.
    pub(super) fn here() -> Self {
        Self(Context::current())
    }

    /// The attempt whose turn it is.
    pub fn attempt(&self) -> Attempt {
        Attempt(self.0.clone())
    }

    /// Waits for the turn: nothing has happened under the claim until [`Waiting::begin`] returns
    /// `Ok`.
    ///
    /// **Call it before the first effect of the body.** What was done before, and what is done
    /// during the wait, is done without protection: a shutdown, or the drop of the call, releases the
    /// claim of a body that waits, and the next caller runs the body again, under every policy.
    #[must_use = "nothing is protected before `Waiting::begin` is called"]
    pub fn wait(self) -> Waiting {
        self.0.stands_in_line();
        Waiting(self.0)
    }
}

/// A body that waits for its [`Turn`]. Nothing has happened under its claim yet.
///
/// The example of [`Turn`] shows the whole wait.
#[derive(Debug)]
#[must_use = "nothing is protected before `begin` is called"]
pub struct Waiting(Context);

impl Waiting {
    /// Resolves when the claim has ended as far as this process knows: a shutdown has taken it, its
    /// lease has expired, or the call has ended without this turn. Never resolves in an attempt
    /// without a claim.
    pub async fn claim_ended(&self) {
        self.0.lease_ended().await;
    }

    /// Ends the wait: something may happen from now on. A shutdown that begins later treats the
    /// outcome as unknown.
    ///
    /// # Errors
    /// [`NotBegun`] if the claim has ended, also by the end of the body or the drop of the call, or
    /// if more than 80 % of the lease have elapsed without a renewal: nothing may happen then,
    /// because another caller may own the call, or soon will.
    pub fn begin(self) -> Result<(), NotBegun> {
        if self.0.begins() { Ok(()) } else { Err(NotBegun(self.0)) }
    }

    /// Ends the body without its turn.
    pub fn leave(self) -> NotBegun {
        NotBegun(self.0)
    }
}

/// The statement that a body has not begun, for [`End::NotBegun`](super::End::NotBegun). Only a
/// body that [waits](Waiting) can make it: there is no other way to get this value.
///
/// **It is a promise about effects.** The claim is released as one that was never used: the attempt
/// does not count, and the next caller runs the body at once, under every policy, `hold` included.
/// Only a record that was taken over from an earlier attempt is left to its policy, as after a crash.
/// An effect that the body had before or during its wait happens a second time then, and no record
/// shows it. A body that may have had one ends in [`End::Unknown`](super::End::Unknown) instead.
///
/// The example of [`Turn`] shows both ways to get one.
#[derive(Debug)]
#[must_use = "return it as `End::NotBegun`"]
pub struct NotBegun(Context);

impl NotBegun {
    /// Returns true if it is about the attempt of `context`.
    pub(super) fn is_of(&self, context: &Context) -> bool {
        self.0.is(context)
    }

    /// Returns true if the body has come to a step, which contradicts it. From here on no task that
    /// the body has left behind comes to one.
    pub(super) fn has_steps(&self) -> bool {
        self.0.journal().is_ok_and(|(_, journal)| journal.is_some_and(|journal| journal.close()))
    }

    /// The error of the call.
    pub(super) fn error(&self) -> Error {
        self.0.refused(ErrorKind::StoreUnavailable).with_text(
            "the claim ended, or most of its lease elapsed, before the body's turn came, and the \
             body did not run",
            "retry with the same key",
        )
    }
}
