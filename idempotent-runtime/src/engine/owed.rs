//! Releases that the background owes the store.
//!
//! What was sent to a server that stands still is applied when it goes on, also a claim whose
//! caller has long been told that there is none: under `hold` its record would be in doubt, and no
//! body has begun. So the release goes on for as long as the background goes on storing results. An
//! outage leaves many of them at once: one task has them all, and asks with one until the store
//! answers.
//!
//! A claim without an answer may also arrive after its release, which then found nothing: one
//! connection is slow, or a commit waits for its standby. So it is released again, after pauses
//! that double.
//!
//! Each gets one bounded try and then stands behind the others: one that the store refuses for
//! long, a locked row for example, costs the others no more than its own tries.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::keeper::Busy;
use super::{Inner, retry};
use crate::store::{Release, StoreError, StoreErrorKind};

/// How many releases of either kind are owed at most, some ten megabytes; what comes beyond is
/// logged, and ends with its lease.
const MOST: usize = 100_000;

/// What is owed, and whether somebody is at it.
#[derive(Default)]
pub(super) struct Owed {
    debts: Mutex<Debts>,
    /// Wakes whoever is at it when there is more, and when the engine is gone.
    news: watch::Sender<()>,
}

#[derive(Default)]
struct Debts {
    /// Due at once, and in turn.
    first: VecDeque<Owing>,
    /// By when they are due, and in the order in which they came.
    again: BTreeMap<(Duration, u64), Owing>,
    added: u64,
    /// Whose turn it is: neither kind keeps the other from the store.
    is_turn_of_again: bool,
    is_paid: bool,
}

/// One release, in monotonic time.
struct Owing {
    release: Release,
    until: Duration,
    /// The claim may still be on its way: after its release it is released again, after this pause.
    again: Option<Duration>,
    /// Only for the first release: a shutdown waits for it, and so does the end of the engine.
    first: Option<First>,
}

/// Kept until the release is answered or given up, or nobody is at it any more.
struct First {
    _engine: Arc<Inner>,
    _busy: Busy,
}

/// What there is to do.
enum Next {
    Release(Owing),
    /// None is due before this monotonic time.
    Wait(Duration),
    Nothing,
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, Debts> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debts {
    /// Adds one that is not due before `not_before`, unless there are too many of its kind.
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

/// Goes on with `release`, which failed with `error`, in the background. The claim may be
/// `repeated`: one try of it is perhaps still on its way.
pub(super) fn add(engine: &Arc<Inner>, release: Release, repeated: bool, error: &StoreError) {
    let now = engine.clock.monotonic();
    let until = now.saturating_add(engine.settings.background_commit);
    if until == now {
        give_up(&release, error);
        return;
    }
    let again = repeated.then_some(engine.settings.claim_timeout);
    let first = Some(First { _engine: engine.clone(), _busy: engine.keeper.busy() });
    if owe(engine, Owing { release, until, again, first }, now) {
        tracing::warn!(key = %release.key, %error, "a claim could not be released; this goes on in the background");
    }
}

/// Releases the claim of `release` again, and again: it was released, and a try of it is perhaps
/// still on its way.
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

/// The release after `pause`, however little time is left.
fn first_repetition(
    release: Release,
    pause: Duration,
    now: Duration,
    until: Duration,
) -> (Owing, Duration) {
    let not_before = now.saturating_add(pause);
    // Late, the claim is one that nothing began under, whatever was before.
    let release = Release::unused(release.key, release.token);
    let again = Some(pause.saturating_mul(2));
    (Owing { release, until: until.max(not_before), again, first: None }, not_before)
}

/// False if it is owed with others, or not at all.
fn owe(engine: &Arc<Inner>, owing: Owing, not_before: Duration) -> bool {
    let release = owing.release;
    let payer = {
        let mut debts = engine.owed.lock();
        if !debts.add(owing, not_before) {
            drop(debts);
            tracing::warn!(key = %release.key, "too many claims are to be released; this one ends with its lease");
            return false;
        }
        if std::mem::replace(&mut debts.is_paid, true) {
            engine.owed.news.send_replace(());
            return false;
        }
        // From here on its end, whatever that is, makes room for another.
        Payer {
            engine: Arc::downgrade(engine),
            news: engine.owed.news.subscribe(),
            at: None,
            has_paid: false,
        }
    };
    engine.keeper.spawn_beside(payer.pay());
    true
}

/// Whoever is at it.
struct Payer {
    /// What is only to be released again keeps no engine.
    engine: Weak<Inner>,
    news: watch::Receiver<()>,
    /// What is on its way to the store.
    at: Option<Owing>,
    has_paid: bool,
}

impl Drop for Payer {
    /// The background has ended in the middle. What is left waits for the next that fails, which
    /// also starts another payer; the two cannot run beside each other, because the place is given
    /// back under the lock.
    fn drop(&mut self) {
        let Some(engine) = self.engine.upgrade().filter(|_| !self.has_paid) else { return };
        let mut debts = engine.owed.lock();
        debts.first.extend(self.at.take().filter(|owing| owing.first.is_some()));
        debts.is_paid = false;
        let left = debts.len();
        // Nobody is at it: they keep neither a shutdown nor the engine. What they kept is dropped
        // without the lock.
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
            let next = {
                let mut debts = engine.owed.lock();
                let next = debts.next(now);
                self.has_paid = matches!(next, Next::Nothing);
                debts.is_paid = !self.has_paid;
                next
            };
            let owing = match next {
                Next::Release(owing) => owing,
                Next::Wait(until) => {
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
            let answer = send(&engine, release).await;
            let Some(owing) = self.at.take() else { return };
            let now = clock.monotonic();
            match answer {
                Ok(()) => {
                    pauses = retry::pauses();
                    let repetition = owing.again.map(|pause| {
                        (first_repetition(release, pause, now, owing.until), owing.first.is_some())
                    });
                    match repetition {
                        // One follows the first release in any case.
                        Some(((next, not_before), is_first))
                            if is_first || not_before <= owing.until =>
                        {
                            engine.owed.lock().put(next, not_before);
                        }
                        _ => {}
                    }
                }
                Err(error) => {
                    // Each has a try of its own at the end, however long it has stood behind
                    // others.
                    if owing.until <= now {
                        give_up(&release, &error);
                    } else {
                        engine.owed.lock().put(owing, now);
                    }
                    clock.sleep(pauses.next().unwrap_or_default()).await;
                }
            }
        }
    }
}

/// Sends `release` once. A try that takes longer than `claim_timeout` is dropped, and one that
/// panics has failed: its task has it alone.
async fn send(engine: &Inner, release: Release) -> Result<(), StoreError> {
    let unavailable = || StoreError::new(StoreErrorKind::Unavailable, "release");
    let patience = engine.settings.claim_timeout;
    let mut request = tokio::spawn(engine.store.clone().release(release));
    let answer = tokio::select! {
        biased;
        answer = &mut request => answer.unwrap_or_else(|panic| Err(unavailable().with_source(panic))),
        () = engine.clock.sleep(patience) => Err(unavailable().with_detail(format!("no answer within {patience:?}"))),
    };
    request.abort();
    answer.map(drop)
}

fn give_up(release: &Release, error: &StoreError) {
    tracing::warn!(key = %release.key, %error, "a claim could not be released; it ends with its lease");
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
            (debts.is_paid, debts.len())
        };
        let news = || engine.owed.news.subscribe();
        let payer =
            |at, has_paid| Payer { engine: Arc::downgrade(&engine), news: news(), at, has_paid };
        engine.owed.lock().is_paid = true;
        drop(payer(Some(owing(1, Some(first(&engine)))), false));
        assert_eq!((owed(), Arc::strong_count(&engine)), ((false, 1), 1));
        engine.owed.lock().is_paid = true;
        drop(payer(None, true));
        assert_eq!(owed(), (true, 1), "the place is another's by now");
    }
}
