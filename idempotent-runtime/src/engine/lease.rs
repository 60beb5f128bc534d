//! The lease of a claim, as its owner knows it: how long nobody else can own the claim, and what
//! was begun under it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::key::KeyHash;
use crate::steps::Journal;
use crate::store::{CrashPolicy, Token};

/// A renewal that failed is tried again after this share of the lease.
const RETRY_SHARE: u32 = 10;
/// A store may round the time of a request down by this much.
const ROUNDING: Duration = Duration::from_millis(1);

/// Nothing was done under a claim so far.
const WAITING: u8 = 0;
/// The body, or the question about an earlier one, has begun.
const BEGUN: u8 = 1;
/// A shutdown has taken the claim away.
const SHUT_DOWN: u8 = 2;

/// One claim of this process, from its grant to the end of its commit.
pub(crate) struct Lease {
    pub(crate) key: KeyHash,
    pub(crate) token: Token,
    pub(crate) policy: CrashPolicy,
    length: Duration,
    /// Monotonic time at which the claim was known to be granted.
    granted: Duration,
    /// Monotonic time after which the lease is not renewed any more.
    renew_until: Duration,
    /// Monotonic time before which nobody else can own the claim, in nanoseconds.
    valid_until: AtomicU64,
    /// Monotonic time of the next renewal, in nanoseconds.
    due: AtomicU64,
    lost: AtomicBool,
    /// Wakes those who wait for the end in the order in which they came, as a simulation needs it.
    given_up: Notify,
    stage: AtomicU8,
    /// Whether the body has come to its end.
    body_ended: AtomicBool,
    /// Whether nobody may run the call again, whatever the policy.
    held: AtomicBool,
    /// The steps of the body, for who gives the claim up from elsewhere.
    journal: OnceLock<Weak<Journal>>,
    clock: Arc<dyn Clock>,
}

impl Lease {
    /// The lease of a claim that was sent first at `sent` on the monotonic clock.
    pub(crate) fn new(
        (key, token): (KeyHash, Token),
        policy: CrashPolicy,
        length: Duration,
        sent: Duration,
        max_run: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            key,
            token,
            policy,
            length,
            granted: clock.monotonic(),
            renew_until: sent.saturating_add(max_run),
            valid_until: AtomicU64::new(end_of(sent, length)),
            due: AtomicU64::new(nanos(sent + length / 3)),
            lost: AtomicBool::new(false),
            given_up: Notify::new(),
            stage: AtomicU8::new(WAITING),
            body_ended: AtomicBool::new(false),
            held: AtomicBool::new(false),
            journal: OnceLock::new(),
            clock,
        }
    }

    /// Whether another caller may own the claim by now.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
            || nanos(self.clock.monotonic()) >= self.valid_until.load(Ordering::Acquire)
    }

    /// Monotonic time from which the lease is known to have run, at the latest.
    pub(crate) fn known_since(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire)).saturating_sub(self.length)
    }

    /// How long nobody else can own the claim, from when it was known to be granted.
    pub(crate) fn lasts(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire)).saturating_sub(self.granted)
    }

    pub(crate) async fn ended(&self) {
        loop {
            // Before the look: a lease that is given up in between wakes it too.
            let given_up = self.given_up.notified();
            if self.is_lost() {
                return;
            }
            let left = self
                .valid_until
                .load(Ordering::Acquire)
                .saturating_sub(nanos(self.clock.monotonic()));
            tokio::select! {
                biased;
                () = given_up => {}
                () = self.clock.sleep(Duration::from_nanos(left)) => {}
            }
        }
    }

    /// From now on another caller may own the claim.
    pub(crate) fn give_up(&self) {
        self.lost.store(true, Ordering::Release);
        self.given_up.notify_waiters();
    }

    /// From now on something may have happened under the claim. False when a shutdown was faster:
    /// then nothing may.
    ///
    /// Body and shutdown meet here alone: either the body has begun and its outcome is unknown to
    /// the shutdown, or the shutdown gives the claim back and the body never begins.
    pub(crate) fn begin(&self) -> bool {
        let before =
            self.stage.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire);
        matches!(before, Ok(_) | Err(BEGUN))
    }

    /// Nothing has happened under the claim yet, though its body is there: it waits for its turn.
    #[cfg(feature = "http")]
    pub(crate) fn wait(&self) {
        // One that a shutdown has taken away stays away.
        let _ = self.stage.compare_exchange(BEGUN, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The shutdown takes the claim away. True when something may have happened under it.
    pub(crate) fn shut_down(&self) -> bool {
        let has_begun = self.stage.swap(SHUT_DOWN, Ordering::AcqRel) == BEGUN;
        self.give_up();
        has_begun
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.stage.load(Ordering::Acquire) == SHUT_DOWN
    }

    pub(crate) fn end_body(&self) {
        self.body_ended.store(true, Ordering::Release);
    }

    /// The body has ended in an error that may hide an effect.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Whether the next caller may run the call again when this owner gives it up.
    pub(crate) fn may_be_taken_over(&self) -> bool {
        self.policy.allows_takeover() && !self.held.load(Ordering::Acquire)
    }

    pub(crate) fn has_body_ended(&self) -> bool {
        self.body_ended.load(Ordering::Acquire)
    }

    /// The body has started, and this is where its steps are known.
    pub(crate) fn has_steps(&self, journal: &Arc<Journal>) {
        // A claim has one body.
        let _ = self.journal.set(Arc::downgrade(journal));
    }

    pub(crate) fn journal(&self) -> Option<Arc<Journal>> {
        self.journal.get()?.upgrade()
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// The body has run for as long as it may. What comes after the body has bounds of its own.
    pub(super) fn is_renewed_no_more(&self, now: Duration) -> bool {
        !self.has_body_ended() && now >= self.renew_until
    }

    pub(super) fn renewed(&self, sent: Duration) {
        self.valid_until.store(end_of(sent, self.length), Ordering::Release);
        self.due.store(nanos(sent + self.length / 3), Ordering::Release);
    }

    pub(super) fn retry_renewal(&self, now: Duration) {
        self.due.store(
            nanos(now + (self.length / RETRY_SHARE).max(Duration::from_millis(1))),
            Ordering::Release,
        );
    }

    /// The lease runs out unless somebody gives it back.
    pub(super) fn stop_renewal(&self) {
        self.due.store(u64::MAX, Ordering::Release);
    }

    pub(super) fn due(&self) -> u64 {
        self.due.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// When to stop believing in a lease that was asked for at `sent`, in monotonic nanoseconds: a
/// little before a store that counts whole milliseconds gives it to somebody else.
fn end_of(sent: Duration, length: Duration) -> u64 {
    let whole = Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    nanos(sent.saturating_add(whole.saturating_sub(ROUNDING.min(whole / 10))))
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
