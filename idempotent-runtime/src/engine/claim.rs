//! Sending a claim, and settling the ones whose answer came too late or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::keeper::Followed;
use super::retry;
use super::scope::Scope;
use crate::paused::explain;
use crate::store::{Claim, Claimed, Release, StoreError, StoreErrorKind};

/// The answer to a claim.
pub(crate) struct Answered {
    pub(crate) claimed: Claimed,
    /// An earlier try may still be on its way, and be applied after a release.
    pub(crate) repeated: bool,
}

/// Sends `claim` until its answer is known, for at most `claim_timeout`.
///
/// A claim that was sent is followed to its answer: if the caller goes, or the time is over, the background releases
/// what was granted to nobody.
///
/// Once a shutdown has begun, nothing is sent again from `scope`.
pub(crate) async fn send(engine: &Arc<Inner>, claim: Claim, scope: &Scope) -> Result<Answered, StoreError> {
    let (release, lease) = (Release::unused(claim.key, claim.token), claim.lease);
    let for_release = engine.clone();
    let mut followed = Followed::new(&engine.keeper, repeat(engine.clone(), claim, scope.clone())).and_if_dropped(
        move |answer| async move {
            match answer {
                Ok(Answered { claimed: Claimed::Held(_), repeated: false }) => {}
                Ok(Answered { repeated, .. }) => give_back(&for_release, release, lease, repeated).await,
                Err(_) => give_back(&for_release, release, lease, true).await,
            }
        },
    );
    let (timeout, start) = (engine.settings.claim_timeout, engine.clock.monotonic());
    let answer = tokio::select! {
        biased;
        answer = &mut followed => answer,
        () = engine.clock.sleep(timeout) => {
            let error = StoreError::new(StoreErrorKind::Unavailable, "claim").with_detail(format!("no answer within {timeout:?}"));
            return Err(explain(error, timeout, engine.clock.monotonic().saturating_sub(start)));
        }
    };
    if answer.as_ref().is_err_and(StoreError::is_outcome_unknown) {
        let for_release = engine.clone();
        engine.keeper.spawn(async move { give_back(&for_release, release, lease, true).await });
    }
    answer
}

/// Repeats the claim with its token while it fails in a way that can pass.
async fn repeat(engine: Arc<Inner>, claim: Claim, scope: Scope) -> Result<Answered, StoreError> {
    let start = engine.clock.monotonic();
    let end = start.saturating_add(engine.settings.claim_timeout);
    let (mut unknown, mut slept) = (None, Duration::ZERO);
    for pause in retry::pauses() {
        match engine.store.clone().claim(claim.clone()).await {
            Err(error) if error.is_transient() && engine.clock.monotonic() + pause < end => {
                engine.clock.sleep(pause).await;
                slept += pause;
                if scope.is_shut_out(&engine) {
                    return Err(unknown.unwrap_or(error));
                }
                if error.is_outcome_unknown() {
                    unknown = Some(error);
                }
            }
            // An earlier try may have been applied: this refusal does not tell.
            Err(error) => {
                let error = unknown.unwrap_or(error);
                return Err(explain(error, slept, engine.clock.monotonic().saturating_sub(start)));
            }
            Ok(claimed) => return Ok(Answered { claimed, repeated: unknown.is_some() }),
        }
    }
    Err(unknown.unwrap_or_else(|| StoreError::new(StoreErrorKind::Unavailable, "claim")))
}

/// Gives back what the owner may hold, for at most `budget`. Without success the lease runs out.
///
/// A claim that was `repeated` is given back again later: a try that was believed lost may arrive after the release, and
/// would leave a record that nobody owns.
pub(crate) async fn give_back(engine: &Inner, release: Release, budget: Duration, repeated: bool) {
    if let Err(error) = retry::until(engine, budget, || engine.store.clone().release(release)).await {
        tracing::warn!(key = %release.key, %error, "a claim could not be released; it ends with its lease");
    }
    if repeated {
        engine.clock.sleep(engine.settings.claim_timeout).await;
        if let Err(error) = retry::until(engine, budget, || engine.store.clone().release(release)).await {
            tracing::warn!(key = %release.key, %error, "a claim that was sent twice could not be released again");
        }
    }
}
