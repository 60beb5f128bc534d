//! Releases that the background owes the store.
//!
//! A request that was sent to a stalled server is applied when the server continues. That includes
//! a claim whose caller was refused long ago: under `hold`, its record would be in doubt although
//! no body has begun. So the release is repeated for as long as the background would continue to
//! store results. An outage leaves many of them at once. A single task has them all, and sends one
//! at a time until the store answers.
//!
//! A claim without an answer may also arrive after its release, which then found nothing: one
//! connection is slow, or a commit waits for its standby. So it is released again, after pauses
//! that double.
//!
//! Each release gets one bounded try and then queues behind the others: a release that the store
//! refuses for long, because of a locked row for example, costs the others no more than its own
//! tries.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::busy::Busy;
use super::{Inner, retry};
use crate::lock::Mutex;
use crate::store::{Release, StoreError};

/// The maximum number of releases of either kind that are owed, some ten megabytes. A release
/// beyond it is logged, and its claim ends with its lease.
const MOST: usize = 100_000;

/// The releases that are owed, and whether a task sends them.
#[derive(Default)]
pub(super) struct Owed {
    debts: Mutex<Debts>,
    /// Wakes the payer when there is more to do, and when the engine is gone.
    news: watch::Sender<()>,
}

#[derive(Default)]
struct Debts {
    /// Due at once, sent in order.
    first: VecDeque<Owing>,
    /// Sorted by due time, then in the order in which they were added.
    again: BTreeMap<(Duration, u64), Owing>,
    added: u64,
    /// The kind whose turn it is: neither keeps the other from the store.
    is_turn_of_again: bool,
    /// True while a payer is running.
    has_payer: bool,
}

/// One release. Times are monotonic.
struct Owing {
    release: Release,
    until: Duration,
    /// The claim may still be on its way: after its release it is released again, after this pause.
    again: Option<Duration>,
    /// Only for the first release: a shutdown waits for it, and it keeps the engine alive.
    first: Option<First>,
}

/// Kept until the release is answered or given up, or no payer is left.
struct First {
    _engine: Arc<Inner>,
    _busy: Busy,
}

/// The next thing to do.
enum Next {
    Release(Owing),
    /// None is due before this monotonic time.
    Wait(Duration),
    Nothing,
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, Debts> {
        self.debts.lock()
    }
}

impl Debts {
    /// Adds a release that is not due before `not_before`, unless there are too many of its kind.
    fn add(&mut self, owing: Owing, not_before: Duration) -> bool {
        let kind = if owing.first.is_some() { self.first.len() } else { self.again.len() };
        let has_room = kind < MOST;
        if has_room {
            self.put(owing, not_before);
        }
        has_room
    }

    fn put(&mut self, owing: Owing, not_before: Duration) {
        if owing.first.is_some() {
            self.first.push_back(owing);
        } else {
            self.added += 1;
            self.again.insert((not_before, self.added), owing);
        }
    }

    fn next(&mut self, now: Duration) -> Next {
        let due = |again: &mut BTreeMap<(Duration, u64), Owing>| {
            let is_due =
                again.first_key_value().is_some_and(|((not_before, _), _)| *not_before <= now);
            is_due.then(|| again.pop_first()).flatten().map(|(_, owing)| owing)
        };
        let next = if self.is_turn_of_again {
            due(&mut self.again).or_else(|| self.first.pop_front())
        } else {
            self.first.pop_front().or_else(|| due(&mut self.again))
        };
        if let Some(owing) = next {
            self.is_turn_of_again = owing.first.is_some();
            return Next::Release(owing);
        }
        self.again
            .first_key_value()
            .map_or(Next::Nothing, |((not_before, _), _)| Next::Wait(*not_before))
    }

    fn len(&self) -> usize {
        self.first.len() + self.again.len()
    }
}

/// Continues with `release`, which failed with `error`, in the background. If the claim was
/// `repeated`, one of its tries may still be on its way.
pub(super) fn add(engine: &Arc<Inner>, release: Release, repeated: bool, error: &StoreError) {
    let now = engine.clock.monotonic();
    let until = now.saturating_add(engine.settings.background_commit);
    if until == now {
        log_given_up(&release, error);
        return;
    }
    let again = repeated.then_some(engine.settings.claim_timeout);
    let first = Some(First { _engine: engine.clone(), _busy: engine.keeper.busy() });
    if owe(engine, Owing { release, until, again, first }, now) {
        tracing::warn!(key = %release.key, %error,
            "a claim could not be released; this continues in the background");
    }
}

/// Releases the claim of `release` again, and again: it was released, and one of its tries may
/// still be on its way.
pub(super) fn repeat(engine: &Arc<Inner>, release: Release) {
    let now = engine.clock.monotonic();
    let pause = engine.settings.claim_timeout;
    let (owing, not_before) = first_repetition(
        release,
        pause,
        now,
        now.saturating_add(engine.settings.background_commit),
    );
    owe(engine, owing, not_before);
}

/// Returns the release after `pause`, however little time is left.
fn first_repetition(
    release: Release,
    pause: Duration,
    now: Duration,
    until: Duration,
) -> (Owing, Duration) {
    let not_before = now.saturating_add(pause);
    // A claim that arrives late is one that nothing began under, whatever happened before.
    let release = Release::unused(release.key, release.token);
    let again = Some(pause.saturating_mul(2));
    (Owing { release, until: until.max(not_before), again, first: None }, not_before)
}

/// Returns false if an active payer takes it along, or if it is not owed at all.
fn owe(engine: &Arc<Inner>, owing: Owing, not_before: Duration) -> bool {
    let release = owing.release;
    let payer = {
        let mut debts = engine.owed.lock();
        if !debts.add(owing, not_before) {
            drop(debts);
            tracing::warn!(key = %release.key,
                "too many claims are waiting to be released; this one expires with its lease");
            return false;
        }
        if std::mem::replace(&mut debts.has_payer, true) {
            engine.owed.news.send_replace(());
            return false;
        }
        // From here on, the payer's end, however it comes, frees the place for another.
        Payer {
            engine: Arc::downgrade(engine),
            news: engine.owed.news.subscribe(),
            at: None,
            left_nothing: false,
        }
    };
    engine.keeper.spawn_unawaited(payer.pay());
    true
}

/// The task that sends what is owed.
struct Payer {
    /// Weak: releases that are only repeated do not keep the engine alive.
    engine: Weak<Inner>,
    news: watch::Receiver<()>,
    /// The release that is on its way to the store.
    at: Option<Owing>,
    left_nothing: bool,
}

impl Drop for Payer {
    /// Handles a background that ended in the middle. What is left waits for the next release that
    /// fails, which also starts another payer. Two payers cannot run side by side, because the
    /// place is freed under the lock.
    fn drop(&mut self) {
        let Some(engine) = self.engine.upgrade().filter(|_| !self.left_nothing) else { return };
        let mut debts = engine.owed.lock();
        debts.first.extend(self.at.take().filter(|owing| owing.first.is_some()));
        debts.has_payer = false;
        let left = debts.len();
        // Without a payer they keep neither a shutdown nor the engine waiting. What they held is
        // dropped outside the lock.
        let kept: Vec<_> = debts.first.iter_mut().filter_map(|owing| owing.first.take()).collect();
        drop(debts);
        drop(kept);
        tracing::warn!(releases = left, "the background ended before these claims were released");
    }
}

impl Payer {
    async fn pay(mut self) {
        let mut pauses = retry::pauses();
        while let Some(engine) = self.engine.upgrade() {
            let clock = engine.clock.clone();
            let now = clock.monotonic();
            // The queue is read and the place is freed under one lock. A release that is added
            // before this is seen by `next`. One that is added afterwards finds the place free and
            // starts another payer. So no release is left without a payer.
            let next = {
                let mut debts = engine.owed.lock();
                let next = debts.next(now);
                self.left_nothing = matches!(next, Next::Nothing);
                debts.has_payer = !self.left_nothing;
                next
            };
            let owing = match next {
                Next::Release(owing) => owing,
                Next::Wait(until) => {
                    // The engine is not kept alive while waiting. A watch remembers a send from
                    // before `changed` is polled, so a release added in between still wakes this.
                    drop(engine);
                    tokio::select! {
                        () = clock.sleep(until.saturating_sub(now)) => {}
                        _ = self.news.changed() => {}
                    }
                    continue;
                }
                Next::Nothing => return,
            };
            let release = owing.release;
            self.at = Some(owing);
            let answer = engine.store.release_once(release).await;
            let Some(owing) = self.at.take() else { return };
            let now = clock.monotonic();
            match answer {
                Ok(_) => {
                    pauses = retry::pauses();
                    let repetition = owing.again.map(|pause| {
                        (first_repetition(release, pause, now, owing.until), owing.first.is_some())
                    });
                    match repetition {
                        // One repetition follows the first release in any case.
                        Some(((next, not_before), is_first))
                            if is_first || not_before <= owing.until =>
                        {
                            engine.owed.lock().put(next, not_before);
                        }
                        _ => {}
                    }
                }
                Err(error) => {
                    // Each has a last try of its own at the end, however long it has queued behind
                    // others.
                    if owing.until <= now {
                        log_given_up(&release, &error);
                    } else {
                        engine.owed.lock().put(owing, now);
                    }
                    clock.sleep(pauses.next().unwrap_or_default()).await;
                }
            }
        }
    }
}

fn log_given_up(release: &Release, error: &StoreError) {
    tracing::warn!(key = %release.key, %error,
        "a claim could not be released; it expires with its lease");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Debts, First, Inner, MOST, Next, Owing, Payer};
    use crate::Idempotency;
    use crate::key::KeyHash;
    use crate::store::{MemoryStore, Release, Token};

    fn owing(number: u8, first: Option<First>) -> Owing {
        let release =
            Release::new(KeyHash::from_bytes([number; 32]), Token::from_bits(number.into()));
        Owing { release, until: Duration::from_secs(600), again: None, first }
    }

    fn first(engine: &Arc<Inner>) -> First {
        First { _engine: engine.clone(), _busy: engine.keeper.busy() }
    }

    fn number(next: &Next) -> u8 {
        match next {
            Next::Release(owing) => owing.release.key.as_bytes()[0],
            Next::Wait(_) | Next::Nothing => 0,
        }
    }

    #[test]
    fn both_kinds_have_their_turn_and_what_is_not_due_holds_up_none() {
        let engine = Idempotency::new(MemoryStore::new()).inner;
        let mut debts = Debts::default();
        let seconds = Duration::from_secs;
        assert!(debts.add(owing(1, None), seconds(9)) && debts.add(owing(2, None), seconds(1)));
        assert!(
            debts.add(owing(3, Some(first(&engine))), seconds(0))
                && debts.add(owing(4, Some(first(&engine))), seconds(0))
        );
        let order: Vec<_> = (0..4).map(|_| number(&debts.next(seconds(1)))).collect();
        assert_eq!(order, [3, 2, 4, 0]);
        assert!(matches!(debts.next(seconds(1)), Next::Wait(until) if until == seconds(9)));
    }

    #[test]
    fn what_is_owed_has_a_bound_and_repetitions_take_no_room_from_others() {
        let engine = Idempotency::new(MemoryStore::new()).inner;
        let mut debts = Debts::default();
        assert!((0..MOST).all(|_| debts.add(owing(1, None), Duration::ZERO)));
        assert!(!debts.add(owing(1, None), Duration::ZERO));
        assert!((0..MOST).all(|_| debts.add(owing(1, Some(first(&engine))), Duration::ZERO)));
        assert!(!debts.add(owing(1, Some(first(&engine))), Duration::ZERO));
    }

    #[test]
    fn a_background_that_ends_in_the_middle_leaves_what_is_owed_and_its_place() {
        let engine = Idempotency::new(MemoryStore::new()).inner;
        let owed = || {
            let debts = engine.owed.lock();
            (debts.has_payer, debts.len())
        };
        let news = || engine.owed.news.subscribe();
        let payer = |at, left_nothing| Payer {
            engine: Arc::downgrade(&engine),
            news: news(),
            at,
            left_nothing,
        };
        engine.owed.lock().has_payer = true;
        drop(payer(Some(owing(1, Some(first(&engine)))), false));
        assert_eq!((owed(), Arc::strong_count(&engine)), ((false, 1), 1));
        engine.owed.lock().has_payer = true;
        drop(payer(None, true));
        assert_eq!(owed(), (true, 1), "the place is another's by now");
    }
}
