//! The lease of a claim, as its owner knows it: the time during which no other caller can own the
//! claim, and what was begun under it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::key::KeyHash;
use crate::steps::Journal;
use crate::store::{CrashPolicy, Token};

/// The share of the lease after which a failed renewal is tried again.
const RETRY_SHARE: u32 = 10;
/// A store may round the time of a request down by this much.
const ROUNDING: Duration = Duration::from_millis(1);

/// Nothing has been done under the claim yet.
const UNUSED: u8 = 0;
/// The body, or the verification of an earlier one, has begun.
const BEGUN: u8 = 1;
/// A shutdown has taken the claim away, and leaves an unknown outcome.
const SHUT_DOWN: u8 = 2;
/// A shutdown has taken the claim away before anything was done under it, and releases it.
const SHUT_DOWN_UNUSED: u8 = 3;

/// One claim of this process, from its grant to the end of its commit.
pub(crate) struct Lease {
    pub(crate) key: KeyHash,
    pub(crate) token: Token,
    pub(crate) operation: Arc<str>,
    pub(crate) policy: CrashPolicy,
    length: Duration,
    /// Monotonic time at which the claim was known to be granted.
    granted: Duration,
    /// Monotonic time after which the lease is no longer renewed while the body runs.
    renew_until: Duration,
    /// The time for which it is renewed after the body has ended.
    after_body: Duration,
    /// Monotonic time after which it is no longer renewed once the body has ended, in nanoseconds.
    settled_by: AtomicU64,
    /// Monotonic time before which no other caller can own the claim, in nanoseconds.
    valid_until: AtomicU64,
    /// Monotonic time of the next renewal, in nanoseconds.
    due: AtomicU64,
    lost: AtomicBool,
    /// Wakes those that wait for the end in order of arrival, as a simulation requires.
    given_up: Notify,
    stage: AtomicU8,
    /// True once the body has ended.
    body_ended: AtomicBool,
    /// True if the record is to be in doubt, whatever the policy.
    held: AtomicBool,
    /// True once observers know that the record is in doubt.
    is_in_doubt: AtomicBool,
    /// The steps of the body, for code elsewhere that gives the claim up.
    journal: OnceLock<Weak<Journal>>,
    clock: Arc<dyn Clock>,
}

/// How long a lease is, and how long it is renewed.
pub(crate) struct Term {
    pub(crate) length: Duration,
    pub(crate) max_run: Duration,
    /// The time for which it is renewed after the body has ended: as long as storing its result may
    /// take. A call that is neither polled nor dropped then would keep its key for ever.
    pub(crate) after_body: Duration,
}

impl Lease {
    /// Creates the lease of a claim that was first sent at `sent` on the monotonic clock.
    pub(crate) fn new(
        (key, token): (KeyHash, Token),
        operation: Arc<str>,
        policy: CrashPolicy,
        Term { length, max_run, after_body }: Term,
        sent: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            key,
            token,
            operation,
            policy,
            length,
            granted: clock.monotonic(),
            renew_until: sent.saturating_add(max_run),
            after_body,
            settled_by: AtomicU64::new(u64::MAX),
            valid_until: AtomicU64::new(end_of(sent, length)),
            due: AtomicU64::new(nanos(sent + length / 3)),
            lost: AtomicBool::new(false),
            given_up: Notify::new(),
            stage: AtomicU8::new(UNUSED),
            body_ended: AtomicBool::new(false),
            held: AtomicBool::new(false),
            is_in_doubt: AtomicBool::new(false),
            journal: OnceLock::new(),
            clock,
        }
    }

    /// Returns true if another caller may own the claim by now.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
            || nanos(self.clock.monotonic()) >= self.valid_until.load(Ordering::Acquire)
    }

    /// The monotonic time since when, at the latest, the lease is known to run.
    pub(crate) fn term_began(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire)).saturating_sub(self.length)
    }

    /// The time during which no other caller can own the claim, from when it was known to be
    /// granted.
    pub(crate) fn valid_for(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire)).saturating_sub(self.granted)
    }

    pub(crate) async fn ended(&self) {
        loop {
            // Created before the check: a lease that is given up in between wakes it too.
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

    /// Gives the claim up: from now on another caller may own it. Writes nothing to the store.
    pub(crate) fn give_up(&self) {
        self.lost.store(true, Ordering::Release);
        self.given_up.notify_waiters();
    }

    /// Marks that something may have happened under the claim from now on. Returns false if a
    /// shutdown was faster: then nothing may happen.
    ///
    /// This exchange is the only point where a body and a shutdown meet. Either the body begins
    /// first, and the shutdown treats its outcome as unknown; or the shutdown takes the claim first
    /// and releases it, and the body never begins. So a claim whose body runs is never released as
    /// unused.
    pub(crate) fn begin(&self) -> bool {
        let before =
            self.stage.compare_exchange(UNUSED, BEGUN, Ordering::AcqRel, Ordering::Acquire);
        matches!(before, Ok(_) | Err(BEGUN))
    }

    /// Marks that nothing has happened under the claim yet, although its body exists: it waits for
    /// its turn.
    pub(crate) fn mark_waiting(&self) {
        // A claim that a shutdown has taken away stays taken away.
        let _ = self.stage.compare_exchange(BEGUN, UNUSED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Takes the claim away for a shutdown. Returns true if something may have happened under it, and
    /// `None` if another shutdown has taken it away, which alone knows that.
    pub(crate) fn shut_down(&self) -> Option<bool> {
        let taken_away = |stage| match stage {
            UNUSED => Some(SHUT_DOWN_UNUSED),
            BEGUN => Some(SHUT_DOWN),
            _ => None,
        };
        let before = self.stage.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken_away);
        self.give_up();
        before.ok().map(|before| before == BEGUN)
    }

    /// Returns true if nothing was done under the claim: its body waits for its turn, or a shutdown
    /// was faster.
    pub(crate) fn is_unused(&self) -> bool {
        matches!(self.stage.load(Ordering::Acquire), UNUSED | SHUT_DOWN_UNUSED)
    }

    /// Returns true if something may have happened under the claim, and no shutdown has taken it
    /// away.
    pub(crate) fn has_begun(&self) -> bool {
        self.stage.load(Ordering::Acquire) == BEGUN
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        matches!(self.stage.load(Ordering::Acquire), SHUT_DOWN | SHUT_DOWN_UNUSED)
    }

    pub(crate) fn end_body(&self) {
        let settled_by = nanos(self.clock.monotonic().saturating_add(self.after_body));
        self.settled_by.store(settled_by, Ordering::Release);
        self.body_ended.store(true, Ordering::Release);
    }

    /// Marks that the body has ended in an error that may hide an effect.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Returns true if the next caller may run the call again when this owner gives it up.
    pub(crate) fn may_be_taken_over(&self) -> bool {
        self.policy.allows_takeover() && !self.held.load(Ordering::Acquire)
    }

    /// Marks that the record is in doubt. Returns true the first time.
    pub(crate) fn note_doubt(&self) -> bool {
        !self.is_in_doubt.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn has_body_ended(&self) -> bool {
        self.body_ended.load(Ordering::Acquire)
    }

    /// Marks that the body has started, and records its steps' journal.
    pub(crate) fn set_journal(&self, journal: &Arc<Journal>) {
        // A claim has only one body.
        let _ = self.journal.set(Arc::downgrade(journal));
    }

    pub(crate) fn journal(&self) -> Option<Arc<Journal>> {
        self.journal.get()?.upgrade()
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// Returns true if a body may start: no other caller can own the claim, and enough of the lease
    /// is left.
    pub(crate) fn may_start(&self) -> bool {
        !self.is_lost() && is_early(&*self.clock, self.term_began(), self.length)
    }

    /// Returns true if the body has run for as long as it may, or its result has been on its way to
    /// the store for as long as that may take.
    pub(super) fn term_is_over(&self, now: Duration) -> bool {
        if self.has_body_ended() {
            nanos(now) >= self.settled_by.load(Ordering::Acquire)
        } else {
            now >= self.renew_until
        }
    }

    pub(super) fn note_renewed(&self, sent: Duration) {
        self.valid_until.store(end_of(sent, self.length), Ordering::Release);
        self.due.store(nanos(sent + self.length / 3), Ordering::Release);
    }

    pub(super) fn retry_renewal(&self, now: Duration) {
        self.due.store(
            nanos(now + (self.length / RETRY_SHARE).max(Duration::from_millis(1))),
            Ordering::Release,
        );
    }

    /// Stops renewing: the lease expires unless it is released before.
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

/// Returns true if little enough of a lease that began at `sent` has elapsed for a body to start.
pub(super) fn is_early(clock: &dyn Clock, sent: Duration, lease: Duration) -> bool {
    clock.monotonic().saturating_sub(sent) <= lease / 5 * 4
}

/// Returns the time at which to stop trusting a lease that was requested at `sent`, in monotonic
/// nanoseconds. It is slightly before a store that counts whole milliseconds grants it to another
/// caller.
fn end_of(sent: Duration, length: Duration) -> u64 {
    let whole = Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    nanos(sent.saturating_add(whole.saturating_sub(ROUNDING.min(whole / 10))))
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Lease, Term};
    use crate::clock::SystemClock;
    use crate::key::KeyHash;
    use crate::store::{CrashPolicy, Token};

    fn lease() -> Lease {
        let owner = (KeyHash::from_bytes([7; 32]), Token::from_bits(9));
        let minute = Duration::from_secs(60);
        let term = Term { length: minute, max_run: minute, after_body: minute };
        let clock = Arc::new(SystemClock::new());
        Lease::new(owner, "payments.charge".into(), CrashPolicy::Hold, term, minute, clock)
    }

    #[test]
    fn only_the_first_of_two_shutdowns_takes_a_claim_away() {
        let begun = lease();
        assert!(begun.begin());
        assert_eq!([begun.shut_down(), begun.shut_down()], [Some(true), None]);
        assert!(begun.is_shut_down() && !begun.is_unused());

        let unused = lease();
        assert_eq!([unused.shut_down(), unused.shut_down()], [Some(false), None]);
        assert!(unused.is_shut_down() && unused.is_unused() && !unused.begin());
    }
}
