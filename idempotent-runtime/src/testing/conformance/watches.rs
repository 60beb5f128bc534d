//! Watches: no caller waits for a change that has already happened.

use std::time::Duration;

use super::Scene;
use super::scene::{KEY, token};
use crate::store::{
    AdminOutcome, CrashPolicy, Park, Reason, Release, Remove, Resolve, ResolveAnswer, State, Watch,
    WriteOutcome,
};
use crate::testing::Subject;

/// Real time, far more than any store needs: reached only if a watch is never woken.
pub(super) const FOR_EVER: Duration = Duration::from_secs(20);

/// Returns true if the watch is woken at all.
#[expect(
    clippy::disallowed_methods,
    reason = "a watch that is never woken waits on no clock that a test could move"
)]
pub(super) async fn is_woken(watch: Watch) -> bool {
    tokio::time::timeout(FOR_EVER, watch).await.is_ok()
}

/// Asserts that both watches resolve: the one polled before the change, and the one polled only
/// after it.
async fn woken(watches: [Watch; 2], rule: &str) {
    for watch in watches {
        assert!(is_woken(watch).await, "{rule}");
    }
}

/// Returns two watches, one of which was polled before the change.
async fn watches<S: Subject>(scene: &Scene<S>) -> [Watch; 2] {
    let mut polled = scene.watch().await;
    std::future::poll_fn(|cx| {
        let _ = Future::poll(std::pin::Pin::new(&mut polled), cx);
        std::task::Poll::Ready(())
    })
    .await;
    let fresh = scene.watch().await;
    if polled.record == fresh.record { [polled, fresh] } else { [fresh, scene.watch().await] }
}

/// The watch starts with the record.
pub async fn a_watch_begins_with_the_record<S: Subject>(scene: Scene<S>) {
    let rule = "a watch returns the record as it is";
    assert_eq!(scene.watch().await.record, None, "{rule}");
    scene.running(CrashPolicy::Hold).await;
    let record = scene.watch().await.record.expect(rule);
    assert_eq!((record.state, record.owner), (State::InProgress, token(1)), "{rule}");
    assert_eq!(scene.complete(scene.commit_by(1, "first")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(&scene.watch().await.record.expect(rule).body[..], b"first", "{rule}");
}

/// The result is what waiters usually wait for.
pub async fn a_watch_is_woken_by_a_result<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken when a result is stored";
    scene.running(CrashPolicy::Hold).await;
    let watches = watches(&scene).await;
    assert_eq!(scene.complete(scene.commit_by(1, "first")).await, WriteOutcome::Applied, "{rule}");
    woken(watches, rule).await;
}

/// After a release it is the waiter's turn.
pub async fn a_watch_is_woken_by_a_release<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken when the claim is released";
    for keep_attempts in [false, true] {
        scene.running(CrashPolicy::Hold).await;
        let watches = watches(&scene).await;
        let release = Release { keep_attempts, ..Release::new(KEY, token(1)) };
        assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
        woken(watches, rule).await;
    }
}

/// After an abandonment it is the waiter's turn too.
pub async fn a_watch_is_woken_by_an_abandonment<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken when the claim is abandoned";
    scene.running(CrashPolicy::Retry).await;
    let watches = watches(&scene).await;
    assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Applied, "{rule}");
    woken(watches, rule).await;
}

/// In doubt, there is nothing left to wait for.
pub async fn a_watch_is_woken_by_parking<S: Subject>(scene: Scene<S>) {
    let rule =
        "a watch is woken when the record is parked, by its owner, by an observer or by a claim";
    scene.running(CrashPolicy::Hold).await;
    let by_owner = watches(&scene).await;
    assert_eq!(
        scene.park(Park::own(KEY, token(1), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    woken(by_owner, rule).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    scene.orphaned(CrashPolicy::Hold).await;
    let by_observer = watches(&scene).await;
    assert_eq!(scene.park(Park::orphan(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    woken(by_observer, rule).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    scene.orphaned(CrashPolicy::Hold).await;
    let by_claim = watches(&scene).await;
    scene.held(&scene.claim_by(2), rule).await;
    woken(by_claim, rule).await;
}

/// After a claim or a takeover there is another lease to wait for.
pub async fn a_watch_is_woken_by_claims_and_takeovers<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken when a record is claimed, and when it is taken over";
    let first = watches(&scene).await;
    scene.running(CrashPolicy::Retry).await;
    woken(first, rule).await;
    scene.pass(2).await;
    let second = watches(&scene).await;
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    woken(second, rule).await;
}

/// Operators change records too.
pub async fn a_watch_is_woken_by_operators<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken when the record is resolved or removed";
    scene.in_doubt(CrashPolicy::Hold).await;
    let resolved = watches(&scene).await;
    let resolve = Resolve::new(KEY, token(1), token(9), ResolveAnswer::NotExecuted);
    assert_eq!(scene.resolve(resolve).await, AdminOutcome::Applied, "{rule}");
    woken(resolved, rule).await;
    scene.running(CrashPolicy::Hold).await;
    let removed = watches(&scene).await;
    let remove = Remove { force: true, ..Remove::new(KEY, token(1)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    woken(removed, rule).await;
}

/// Time changes records too.
pub async fn a_watch_is_woken_by_expiry<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken when the record expires, also if no request notices it";
    scene.in_doubt(CrashPolicy::Hold).await;
    let watches = watches(&scene).await;
    scene.pass(20).await;
    woken(watches, rule).await;
}
