//! Changes of the wall clock, for stores that use an injected one. A lease may then end early or
//! late, but the rules hold.

use super::Scene;
use super::scene::{KEY, token};
use crate::store::{CrashPolicy, Park, Reason, State, WriteOutcome};
use crate::testing::{ClockJump, Subject};

/// A clock that is set back makes leases longer, and the owner keeps its claim.
pub async fn a_clock_set_back_keeps_the_owner<S: Subject>(scene: Scene<S>) {
    let rule = "after the clock was set back the owner continues and no other caller does";
    scene.running(CrashPolicy::Retry).await;
    let before = scene.record().await;
    if !scene.jump(ClockJump::Back(scene.leases(100))) {
        return;
    }
    scene.mine(&scene.claim_under(1, CrashPolicy::Retry), rule).await;
    scene.held(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    assert_eq!(scene.renew(1, scene.leases(1)).await, WriteOutcome::Applied, "{rule}");
    assert!(
        scene.record().await.expires >= before.expires,
        "{rule}: renewing never shortens how long it is kept"
    );
    scene.held(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    assert_eq!(scene.complete(scene.commit_by(1, "first")).await, WriteOutcome::Applied, "{rule}");
    scene.kept_for(&scene.record().await, scene.leases(16), rule);
    scene.pass_expiry().await;
    assert_eq!(scene.read().await, None, "{rule}: and the result expires");
}

/// An abandoned lease stays abandoned.
pub async fn a_clock_set_back_revives_no_abandoned_claim<S: Subject>(scene: Scene<S>) {
    let rule = "T11: an abandoned claim is taken over at once, also after the clock was set back";
    scene.running(CrashPolicy::Retry).await;
    assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Applied, "{rule}");
    let before = scene.record().await.fence;
    if scene.jump(ClockJump::Back(scene.leases(100))) {
        let grant = scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
        assert!(grant.record.fence > before, "{rule}, and the fence grows");
    }
}

/// A clock that is set forward ends leases early: the running owner finds its record in doubt or
/// taken over, never with a second owner beside it.
pub async fn a_clock_set_forward_makes_no_second_result<S: Subject>(scene: Scene<S>) {
    let rule = "after the clock was set forward there is still one result";
    scene.running(CrashPolicy::Retry).await;
    if !scene.jump(ClockJump::Forward(scene.leases(4))) {
        return;
    }
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
    scene.jump(ClockJump::Back(scene.leases(8)));
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    scene.held(&scene.claim_under(1, CrashPolicy::Retry), rule).await;
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
    assert_eq!(scene.complete(scene.commit_by(2, "winner")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(&scene.held(&scene.claim_by(1), rule).await.body[..], b"winner", "{rule}");
}

/// Under hold, a clock that is set forward only puts the record in doubt, which the owner resolves.
pub async fn a_clock_set_forward_loses_no_result_under_hold<S: Subject>(scene: Scene<S>) {
    let rule = "T8: an owner whose record was parked by a jump of the clock stores its result";
    scene.running(CrashPolicy::Hold).await;
    if !scene.jump(ClockJump::Forward(scene.leases(4))) {
        return;
    }
    assert_eq!(scene.held(&scene.claim_by(2), rule).await.state, State::InDoubt, "{rule}");
    assert_eq!(scene.complete(scene.commit_by(1, "first")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(&scene.held(&scene.claim_by(2), rule).await.body[..], b"first", "{rule}");
}

/// The owner's renewal arrives first.
pub async fn a_renewal_after_a_jump_keeps_the_claim<S: Subject>(scene: Scene<S>) {
    let rule = "T7: an owner that renews after the clock was set forward, before anybody claims, keeps its claim";
    scene.running(CrashPolicy::Retry).await;
    if !scene.jump(ClockJump::Forward(scene.leases(4))) {
        return;
    }
    assert_eq!(scene.renew(1, scene.leases(1)).await, WriteOutcome::Applied, "{rule}");
    scene.held(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    assert_eq!(scene.park(Park::orphan(KEY, token(1))).await, WriteOutcome::Lost, "{rule}");
}
