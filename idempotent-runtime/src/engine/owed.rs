//! Claims that could not be given back in time, because the store did not answer.
//!
//! What was sent to a server that stands still is applied when it goes on, also a claim whose caller has long been told
//! that there is none: under `hold` its record would be in doubt, and no body has begun. So the release goes on for as
//! long as the background goes on storing results. An outage leaves many of them at once: one task has them all, and asks
//! with one until the store answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Inner, retry};
use crate::store::{Release, StoreError};

/// How many releases are owed at most, some ten megabytes; what comes beyond is told, and ends with its lease.
const MOST: usize = 100_000;

/// What is owed, and whether somebody is at it.
#[derive(Default)]
pub(super) struct Owed(Mutex<Debts>);

#[derive(Default)]
struct Debts {
    releases: VecDeque<Owing>,
    is_paid: bool,
}

/// One release, in monotonic time.
#[derive(Clone, Copy)]
struct Owing {
    release: Release,
    not_before: Duration,
    until: Duration,
    /// The claim may still be on its way: it is given back twice.
    repeated: bool,
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, Debts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that has waited longest. With the last one, whoever pays is no longer at it.
    fn next(&self) -> Option<Owing> {
        let mut debts = self.lock();
        let next = debts.releases.pop_front();
        debts.is_paid = next.is_some();
        next
    }
}

/// Goes on with `release`, which failed with `error`, in the background.
pub(super) fn add(engine: &Arc<Inner>, release: Release, repeated: bool, error: &StoreError) {
    let now = engine.clock.monotonic();
    let until = now.saturating_add(engine.settings.background_commit);
    if !error.is_transient() || until == now {
        give_up(&release, error);
        return;
    }
    let is_paid = {
        let mut debts = engine.owed.lock();
        if debts.releases.len() >= MOST {
            drop(debts);
            give_up(&release, error);
            return;
        }
        debts.releases.push_back(Owing { release, not_before: now, until, repeated });
        std::mem::replace(&mut debts.is_paid, true)
    };
    if !is_paid {
        tracing::warn!(key = %release.key, %error, "a claim could not be released; this goes on in the background");
        let payer = engine.clone();
        engine.keeper.spawn(async move { pay(&payer).await });
    }
}

/// Whoever is at it. A store that panics ends it, and not those that come after.
struct Payer<'engine>(&'engine Owed);

impl Drop for Payer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().is_paid = false;
        }
    }
}

async fn pay(engine: &Inner) {
    let (clock, _payer) = (&engine.clock, Payer(&engine.owed));
    while let Some(owing) = engine.owed.next() {
        let Owing { release, not_before, until, repeated } = owing;
        let early = not_before.saturating_sub(clock.monotonic());
        if !early.is_zero() {
            clock.sleep(early).await;
        }
        let left = until.saturating_sub(clock.monotonic());
        match retry::until(engine, left, || engine.store.clone().release(release)).await {
            Ok(_) if repeated => {
                let not_before = clock.monotonic().saturating_add(engine.settings.claim_timeout);
                let until = until.max(not_before.saturating_add(engine.settings.claim_timeout));
                engine.owed.lock().releases.push_back(Owing { release, not_before, until, repeated: false });
            }
            Ok(_) => {}
            Err(error) => give_up(&release, &error),
        }
    }
}

fn give_up(release: &Release, error: &StoreError) {
    tracing::warn!(key = %release.key, %error, "a claim could not be released; it ends with its lease");
}
