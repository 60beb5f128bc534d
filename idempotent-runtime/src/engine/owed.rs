//! Releases that the background owes the store.
//!
//! What was sent to a server that stands still is applied when it goes on, also a claim whose caller has long been told
//! that there is none: under `hold` its record would be in doubt, and no body has begun. So the release goes on for as
//! long as the background goes on storing results. An outage leaves many of them at once: one task has them all, and asks
//! with one until the store answers.
//!
//! A claim without an answer may also arrive after its release, which then found nothing: one connection is slow, or a
//! commit waits for its standby. So it is released again, after pauses that double.
//!
//! Each gets one bounded try and then stands behind the others: one that the store refuses for long, a locked row for
//! example, costs the others no more than its own tries.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::keeper::Busy;
use super::{Inner, retry};
use crate::store::{Release, StoreError, StoreErrorKind};

/// How many releases are owed at most, some ten megabytes; what comes beyond is logged, and ends with its lease.
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
    releases: VecDeque<Owing>,
    is_paid: bool,
}

/// One release, in monotonic time.
struct Owing {
    release: Release,
    not_before: Duration,
    until: Duration,
    /// The claim may still be on its way: after its release it is released again, after this pause.
    again: Option<Duration>,
    /// A shutdown waits for the first release, and not for those that follow.
    _busy: Option<Busy>,
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
    /// Adds one, unless there are too many.
    fn add(&mut self, owing: Owing) -> bool {
        let has_room = self.releases.len() < MOST;
        if has_room {
            self.releases.push_back(owing);
        }
        has_room
    }

    /// The first that is due.
    fn next(&mut self, now: Duration) -> Next {
        if let Some(due) = self.releases.iter().position(|owing| owing.not_before <= now)
            && let Some(owing) = self.releases.remove(due)
        {
            return Next::Release(owing);
        }
        self.releases.iter().map(|owing| owing.not_before).min().map_or(Next::Nothing, Next::Wait)
    }
}

/// Goes on with `release`, which failed with `error`, in the background. The claim may be `repeated`: one try of it is
/// perhaps still on its way.
pub(super) fn add(engine: &Arc<Inner>, release: Release, repeated: bool, error: &StoreError) {
    let now = engine.clock.monotonic();
    let until = now.saturating_add(engine.settings.background_commit);
    if until == now {
        give_up(&release, error);
        return;
    }
    let again = repeated.then_some(engine.settings.claim_timeout);
    if owe(engine, Owing { release, not_before: now, until, again, _busy: Some(engine.keeper.busy()) }) {
        tracing::warn!(key = %release.key, %error, "a claim could not be released; this goes on in the background");
    }
}

/// Releases the claim of `release` again, and again: it was released, and a try of it is perhaps still on its way.
pub(super) fn repeat(engine: &Arc<Inner>, release: Release) {
    let now = engine.clock.monotonic();
    let until = now.saturating_add(engine.settings.background_commit);
    if let Some(owing) = repetition(release, engine.settings.claim_timeout, now, until) {
        owe(engine, owing);
    }
}

/// The release after `pause`, unless that is later than `until`.
fn repetition(release: Release, pause: Duration, now: Duration, until: Duration) -> Option<Owing> {
    let not_before = now.saturating_add(pause);
    // Late, the claim is one that nothing began under, whatever was before.
    let release = Release::unused(release.key, release.token);
    let again = Some(pause.saturating_mul(2));
    (not_before <= until).then_some(Owing { release, not_before, until, again, _busy: None })
}

/// False if it is owed with others, or not at all.
fn owe(engine: &Arc<Inner>, owing: Owing) -> bool {
    let release = owing.release;
    let payer = {
        let mut debts = engine.owed.lock();
        if !debts.add(owing) {
            drop(debts);
            tracing::warn!(key = %release.key, "too many claims are to be released; this one ends with its lease");
            return false;
        }
        if std::mem::replace(&mut debts.is_paid, true) {
            engine.owed.news.send_replace(());
            return false;
        }
        // From here on its end, whatever that is, makes room for another.
        Payer { engine: Arc::downgrade(engine), news: engine.owed.news.subscribe(), at: None, has_paid: false }
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
    /// The background has ended in the middle. What is left waits for the next that fails, which also starts another
    /// payer; the two cannot run beside each other, because the place is given back under the lock.
    fn drop(&mut self) {
        let Some(engine) = self.engine.upgrade().filter(|_| !self.has_paid) else { return };
        let mut debts = engine.owed.lock();
        debts.releases.extend(self.at.take());
        debts.is_paid = false;
        let left = debts.releases.len();
        drop(debts);
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
                    let again = owing.again.and_then(|pause| repetition(release, pause, now, owing.until));
                    // It has its place, which is still free.
                    engine.owed.lock().releases.extend(again);
                }
                Err(error) => {
                    // Each has a try of its own at the end, however long it has stood behind others.
                    if owing.until <= now {
                        give_up(&release, &error);
                    } else {
                        engine.owed.lock().releases.push_back(owing);
                    }
                    clock.sleep(pauses.next().unwrap_or_default()).await;
                }
            }
        }
    }
}

/// Sends `release` once. A try that takes longer than `claim_timeout` is dropped, and one that panics has failed: its task
/// has it alone.
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

    use super::{Debts, MOST, Next, Owing, Payer};
    use crate::Idempotency;
    use crate::key::KeyHash;
    use crate::store::{MemoryStore, Release, Token};

    fn owing(number: u8, not_before: u64) -> Owing {
        let release = Release::new(KeyHash::from_bytes([number; 32]), Token::from_bits(number.into()));
        let not_before = Duration::from_secs(not_before);
        Owing { release, not_before, until: Duration::from_secs(600), again: None, _busy: None }
    }

    #[test]
    fn one_that_is_not_due_holds_up_none_behind_it() {
        let mut debts = Debts::default();
        assert!(debts.add(owing(1, 9)) && debts.add(owing(2, 5)) && debts.add(owing(3, 0)));
        let due =
            |next| matches!(next, Next::Release(Owing { release, .. }) if release.key == KeyHash::from_bytes([3; 32]));
        assert!(due(debts.next(Duration::from_secs(1))));
        assert!(matches!(debts.next(Duration::from_secs(1)), Next::Wait(until) if until == Duration::from_secs(5)));
    }

    #[test]
    fn what_is_owed_has_a_bound() {
        let mut debts = Debts::default();
        assert!((0..MOST).all(|_| debts.add(owing(1, 0))));
        assert!(!debts.add(owing(1, 0)));
    }

    #[test]
    fn a_background_that_ends_in_the_middle_leaves_what_is_owed_and_its_place() {
        let engine = Idempotency::new(MemoryStore::new()).inner;
        let owed = || {
            let debts = engine.owed.lock();
            (debts.is_paid, debts.releases.len())
        };
        let news = || engine.owed.news.subscribe();
        let payer = |at, has_paid| Payer { engine: Arc::downgrade(&engine), news: news(), at, has_paid };
        engine.owed.lock().is_paid = true;
        drop(payer(Some(owing(1, 0)), false));
        assert_eq!(owed(), (false, 1));
        engine.owed.lock().is_paid = true;
        drop(payer(None, true));
        assert_eq!(owed(), (true, 1), "the place is another's by now");
    }
}
