//! Sends claims, and settles those whose answer came too late or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::followed::{Followed, Following};
use super::retry::Budget;
use super::store_client::{ClaimReply, no_answer_within};
use super::task_state::TaskState;
use super::{Inner, owed};
use crate::lock::Mutex;
use crate::paused::explain;
use crate::store::{Claim, ClaimOutcome, Operation, Release, StoreError, StoreErrorKind};

/// Sends `claim` until its answer is known, for at most `claim_timeout`.
///
/// A claim that was sent is followed to its answer: if the caller goes away, or the time runs out,
/// the background releases a claim that was granted to no caller.
///
/// Once a shutdown has begun, nothing is sent again from a task in `task_state`.
pub(crate) async fn send(
    engine: &Arc<Inner>,
    claim: Arc<Claim>,
    task_state: &TaskState,
) -> Result<ClaimReply, StoreError> {
    let (release, lease) = (Release::unused(claim.key, claim.token), claim.lease);
    let for_release = engine.clone();
    let (sender, task_state) = (engine.clone(), task_state.clone());
    let failed = Arc::new(Mutex::new(None));
    let failures = failed.clone();
    let claiming = async move {
        let stops = |error: &StoreError| {
            *failures.lock() = Some(error.clone());
            task_state.is_shut_out(&sender)
        };
        sender.store.claim(claim, stops).await
    };
    let mut followed =
        Followed::new(&engine.keeper, claiming).and_if_dropped(move |claiming| async move {
            release_if_granted(&for_release, claiming, release, lease).await;
        });
    let (timeout, start) = (engine.settings.claim_timeout, engine.clock.monotonic());
    let answer = tokio::select! {
        biased;
        answer = &mut followed => answer,
        () = engine.clock.sleep(timeout) => {
            // `followed` is dropped here, and the background goes on: `release_if_granted`.
            let error = no_answer_within(Operation::Claim, timeout);
            // The last try has no answer, and the one before it may say why.
            let error = match failed.lock().take() {
                Some(before) => error
                    .with_detail(format!("no answer within {timeout:?}, and before that {before}"))
                    .with_source(before),
                None => error,
            };
            return Err(explain(error, timeout, engine.clock.monotonic().saturating_sub(start)));
        }
    };
    if answer.as_ref().is_err_and(StoreError::is_outcome_unknown) {
        let for_release = engine.clone();
        engine
            .keeper
            .spawn(async move { release_unused(&for_release, release, lease, true).await });
    }
    answer
}

/// Releases the claim that `claiming` acquires, because its caller is gone.
async fn release_if_granted(
    engine: &Arc<Inner>,
    mut claiming: Following<Result<ClaimReply, StoreError>>,
    release: Release,
    lease: Duration,
) {
    let Some(_place) = engine.bounds.followed.place() else {
        drop(claiming);
        owed::add(engine, release, true, &not_followed());
        return;
    };
    let settings = &engine.settings;
    let answer = tokio::select! {
        biased;
        answer = &mut claiming => answer,
        () = engine.clock.sleep(settings.claim_timeout) => {
            // The answer may never arrive although the claim is applied, for example if the request
            // belongs to a caller's runtime that no longer runs. So the claim is released now, and
            // the request is still followed.
            release_unused(engine, release, lease, true).await;
            tokio::select! {
                biased;
                answer = &mut claiming => answer,
                () = engine.clock.sleep(settings.background_commit) => return,
            }
        }
    };
    match answer {
        Ok(ClaimReply { claimed: ClaimOutcome::Existing(_), repeated: false }) => {}
        Ok(ClaimReply { repeated, .. }) => release_unused(engine, release, lease, repeated).await,
        Err(error) if error.is_outcome_unknown() => {
            release_unused(engine, release, lease, true).await;
        }
        Err(_) => {}
    }
}

/// Releases a claim that was granted and is not used. The caller waits for at most
/// `claim_timeout`, whatever its lease; the background then continues.
pub(super) async fn release_granted(engine: &Arc<Inner>, claim: &Claim, repeated: bool) {
    let (release, lease) = (Release::unused(claim.key, claim.token), claim.lease);
    let for_release = engine.clone();
    let released = Followed::new(&engine.keeper, async move {
        release_unused(&for_release, release, lease, repeated).await;
    });
    tokio::select! {
        biased;
        () = released => {}
        () = engine.clock.sleep(engine.settings.claim_timeout) => {}
    }
}

/// Releases a claim that was sent more than once and was not granted: a late try may still acquire
/// it.
pub(super) fn release_denied(engine: &Arc<Inner>, claim: &Claim) {
    let (release, lease) = (Release::unused(claim.key, claim.token), claim.lease);
    let for_release = engine.clone();
    engine.keeper.spawn(async move { release_unused(&for_release, release, lease, true).await });
}

/// Releases what the owner may hold, for at most `budget`. If that fails, the release is [owed] to
/// the store.
///
/// A claim that was `repeated` is released again: after `claim_timeout`, and then after pauses that
/// double. A try that was believed lost may arrive after the release, and would leave a record
/// without an owner.
pub(crate) async fn release_unused(
    engine: &Arc<Inner>,
    release: Release,
    budget: Duration,
    repeated: bool,
) {
    let Some(_place) = engine.bounds.followed.place() else {
        owed::add(engine, release, repeated, &not_followed());
        return;
    };
    match engine.store.release(Budget::of(budget), release).await {
        Ok(_) if repeated => owed::repeat(engine, release),
        Ok(_) => {}
        Err(error) => owed::add(engine, release, repeated, &error),
    }
}

fn not_followed() -> StoreError {
    let error = StoreError::new(StoreErrorKind::Unavailable, Operation::Release);
    error.with_detail("too many requests are still waiting for their answers")
}
