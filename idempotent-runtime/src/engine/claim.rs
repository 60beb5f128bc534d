//! Sending a claim, and settling the ones whose answer came too late or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::keeper::Followed;
use super::retry;
use crate::key::KeyHash;
use crate::store::{Claim, Claimed, Release, StoreError, StoreErrorKind, Token};

/// Sends `claim` until its answer is known, for at most `claim_timeout`.
///
/// A claim that was sent is followed to its answer: if the caller goes, or the time is over, the background releases
/// what was granted to nobody.
pub(crate) async fn send(engine: &Arc<Inner>, claim: Claim) -> Result<Claimed, StoreError> {
    let (key, token, lease) = (claim.key, claim.token, claim.lease);
    let for_release = engine.clone();
    let mut followed =
        Followed::new(&engine.keeper, repeat(engine.clone(), claim)).and_if_dropped(move |answer| async move {
            if !matches!(answer, Ok(Claimed::Held(_))) {
                release(&for_release, key, token, lease).await;
            }
        });
    let timeout = engine.settings.claim_timeout;
    let answer = tokio::select! {
        biased;
        answer = &mut followed => answer,
        () = engine.clock.sleep(timeout) => {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "claim").with_detail(format!("no answer within {timeout:?}")));
        }
    };
    if answer.as_ref().is_err_and(StoreError::is_outcome_unknown) {
        let engine = engine.clone();
        let keeper = engine.keeper.clone();
        keeper.spawn(async move { release(&engine, key, token, lease).await });
    }
    answer
}

/// Repeats the claim with its token while it fails in a way that can pass.
async fn repeat(engine: Arc<Inner>, claim: Claim) -> Result<Claimed, StoreError> {
    let end = engine.clock.monotonic() + engine.settings.claim_timeout;
    let mut unknown = None;
    for pause in retry::pauses() {
        match engine.store.clone().claim(claim.clone()).await {
            Err(error) if error.is_transient() && engine.clock.monotonic() + pause < end => {
                if error.is_outcome_unknown() {
                    unknown = Some(error);
                }
                engine.clock.sleep(pause).await;
            }
            // An earlier try may have been applied: this refusal does not tell.
            Err(error) => return Err(unknown.unwrap_or(error)),
            answer => return answer,
        }
    }
    Err(unknown.unwrap_or_else(|| StoreError::new(StoreErrorKind::Unavailable, "claim")))
}

/// Gives back what `token` may own. Without success the lease runs out.
pub(crate) async fn release(engine: &Inner, key: KeyHash, token: Token, budget: Duration) {
    let released = retry::until(engine, budget, || engine.store.clone().release(Release::new(key, token))).await;
    if let Err(error) = released {
        tracing::warn!(%key, %error, "a claim that nobody uses could not be released; it ends with its lease");
    }
}
