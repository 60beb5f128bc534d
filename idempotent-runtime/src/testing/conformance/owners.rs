//! Operations that only an owner may apply to its claim: renew, release, abandon, park, checkpoint
//! (T6b, T7, T10, T11, rules 1 and 6).

use bytes::Bytes;

use super::Scene;
use super::scene::{KEY, key, token};
use crate::store::{
    Checkpoint, Claim, CrashPolicy, Park, Reason, Record, Release, Renewal, State, Store as _,
    WriteOutcome,
};
use crate::testing::Subject;

/// Rule 1: after a takeover the old owner cannot write anything.
pub async fn a_stale_owner_writes_nothing_after_a_takeover<S: Subject>(scene: Scene<S>) {
    let rule = "rule 1: after a takeover every write of the old owner is lost";
    scene.orphaned(CrashPolicy::Retry).await;
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    let before = scene.record().await;
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
    scene.unchanged(&before, rule).await;
    assert_eq!(scene.complete(scene.commit_by(2, "second")).await, WriteOutcome::Applied, "{rule}");
}

/// Rule 1: a token that never owned the record cannot write anything, whatever the state.
pub async fn a_stranger_writes_nothing<S: Subject>(scene: Scene<S>) {
    let rule = "rule 1: every write is guarded by the owner's token";
    scene.running(CrashPolicy::Retry).await;
    let before = scene.record().await;
    scene.refuses_owner(2, WriteOutcome::Lost, rule).await;
    scene.unchanged(&before, rule).await;
    scene.pass(2).await;
    assert_eq!(
        scene.park(Park::orphan(KEY, token(2))).await,
        WriteOutcome::Lost,
        "{rule}: park of an orphan"
    );
    assert_eq!(
        scene.park(Park::own(KEY, token(1), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    let before = scene.record().await;
    scene.refuses_owner(2, WriteOutcome::Lost, rule).await;
    scene.unchanged(&before, rule).await;
    assert_eq!(
        scene.release(Release { keep_attempts: true, ..Release::new(KEY, token(1)) }).await,
        WriteOutcome::Applied
    );
    let before = scene.record().await;
    scene.refuses_owner(2, WriteOutcome::Lost, rule).await;
    scene.unchanged(&before, rule).await;
}

/// Rule 1: writes to an absent record are reported as such.
pub async fn an_owner_without_record_is_told_so<S: Subject>(scene: Scene<S>) {
    let rule = "rule 1: a write without a record is answered with gone, and writes nothing";
    scene.refuses_owner(1, WriteOutcome::Gone, rule).await;
    assert_eq!(scene.read().await, None, "{rule}");
    scene.buried(8).await;
    let before = scene.record().await;
    assert_eq!(before.state, State::Tombstone, "{rule}");
    scene.refuses_owner(1, WriteOutcome::Gone, rule).await;
    scene.unchanged(&before, rule).await;
}

/// T7: a lease that is renewed does not expire.
pub async fn a_renewal_prolongs_the_lease<S: Subject>(scene: Scene<S>) {
    let rule = "T7: a renewal makes the lease end so long after now";
    scene.running(CrashPolicy::Retry).await;
    assert_eq!(scene.renew(1, scene.leases(4)).await, WriteOutcome::Applied, "{rule}");
    scene.pass(2).await;
    assert!(
        scene.held(&scene.claim_under(2, CrashPolicy::Retry), rule).await.is_running(),
        "{rule}"
    );
    assert_eq!(scene.renew(1, scene.leases(4)).await, WriteOutcome::Applied, "{rule}");
    scene.pass(3).await;
    scene.held(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    scene.pass(2).await;
    assert_eq!(
        scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await.taken_over,
        Some(State::InProgress)
    );
}

/// T7: the renewal is late, but no other caller has taken over.
pub async fn a_late_renewal_revives_the_lease<S: Subject>(scene: Scene<S>) {
    let rule = "T7: a renewal counts also when the lease had expired and no caller has taken over";
    for policy in [CrashPolicy::Hold, CrashPolicy::Retry] {
        scene.orphaned(policy).await;
        assert_eq!(scene.renew(1, scene.leases(2)).await, WriteOutcome::Applied, "{rule}");
        assert!(scene.held(&scene.claim_under(2, policy), rule).await.is_running(), "{rule}");
        assert_eq!(
            scene.release(Release::new(KEY, token(1))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
}

/// T7: only a claim in progress has a lease.
pub async fn only_a_claim_in_progress_is_renewed<S: Subject>(scene: Scene<S>) {
    let rule = "T7: what is not in progress is not renewed, not even by its owner";
    let doubt = scene.in_doubt(CrashPolicy::Verify).await;
    assert_eq!(scene.renew(1, scene.leases(8)).await, WriteOutcome::Lost, "{rule}: in doubt");
    scene.unchanged(&doubt, rule).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    let released = scene.released().await;
    assert_eq!(scene.renew(1, scene.leases(8)).await, WriteOutcome::Lost, "{rule}: released");
    scene.unchanged(&released, rule).await;
}

/// Rule 2: renewals extend the time for which the record is kept.
pub async fn a_renewal_extends_the_expiry_and_never_shortens_it<S: Subject>(scene: Scene<S>) {
    let rule = "rule 2: a renewal keeps the record at least its linger beyond the lease, and never shortens that";
    let claim = Claim { linger: scene.leases(2), ..scene.claim_by(1) };
    scene.mine(&claim, rule).await;
    assert_eq!(scene.renew(1, scene.leases(8)).await, WriteOutcome::Applied, "{rule}");
    let long = scene.record().await;
    scene.kept_for(&long, scene.leases(10), rule);
    assert_eq!(scene.renew(1, scene.leases(1)).await, WriteOutcome::Applied, "{rule}");
    assert!(scene.record().await.expires + scene.leases(1) > long.expires, "{rule}");
    scene.pass(5).await;
    assert_eq!(scene.renew(1, scene.leases(8)).await, WriteOutcome::Applied, "{rule}");
    scene.pass(7).await;
    assert!(
        scene.record().await.is_running(),
        "{rule}: the record lives on although its first expiry has passed"
    );
}

/// T7: one round trip renews for many owners, each with its own result.
pub async fn renewals_are_answered_one_by_one<S: Subject>(scene: Scene<S>) {
    let rule = "T7: every renewal of a batch has its own answer, in order";
    for (number, caller) in [(1, 1), (2, 2), (4, 4)] {
        scene
            .mine(
                &Claim { key: key(number), ..scene.claim_under(caller, CrashPolicy::Retry) },
                rule,
            )
            .await;
    }
    let renewal = |number, caller| Renewal::new(key(number), token(caller), scene.leases(4));
    let answers =
        scene.renew_all(vec![renewal(4, 4), renewal(2, 1), renewal(3, 3), renewal(1, 1)]).await;
    assert_eq!(
        answers,
        [WriteOutcome::Applied, WriteOutcome::Lost, WriteOutcome::Gone, WriteOutcome::Applied],
        "{rule}"
    );
    scene.pass(2).await;
    for (number, runs) in [(1, true), (2, false), (4, true)] {
        assert_eq!(scene.read_key(key(number)).await.expect(rule).is_running(), runs, "{rule}");
    }
    assert_eq!(scene.renew_all(Vec::new()).await, [], "{rule}: also none");
}

/// T10: from P and from X, also by an owner whose record is in doubt.
pub async fn an_owner_releases_its_claim<S: Subject>(scene: Scene<S>) {
    let rule = "T10: a release by the owner removes the record, or leaves its attempts";
    for keep_attempts in [false, true] {
        for parked in [false, true] {
            scene.running(CrashPolicy::Hold).await;
            assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
            if parked {
                assert_eq!(
                    scene.park(Park::own(KEY, token(1), Reason::Error)).await,
                    WriteOutcome::Applied,
                    "{rule}"
                );
            }
            let release = Release { keep_attempts, ..Release::new(KEY, token(1)) };
            assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
            if keep_attempts {
                let record = scene.record().await;
                assert_eq!(
                    (record.state, record.attempts, record.reason),
                    (State::Released, 1, None),
                    "{rule}"
                );
                assert_eq!(
                    (record.owner, record.body.len(), record.checkpoints),
                    (token(1), 0, 0),
                    "{rule}"
                );
                assert_eq!(
                    scene.release(release).await,
                    WriteOutcome::AlreadyApplied,
                    "{rule}: asked again"
                );
                let grant = scene.mine(&scene.claim_by(2), rule).await;
                assert_eq!((grant.record.checkpoints, grant.record.body.len()), (0, 0), "{rule}");
                assert_eq!(
                    scene.release(Release::new(KEY, token(2))).await,
                    WriteOutcome::Applied,
                    "{rule}"
                );
            } else {
                assert_eq!(scene.read().await, None, "{rule}");
                assert_eq!(scene.release(release).await, WriteOutcome::Gone, "{rule}: asked again");
            }
        }
    }
}

/// T10: "nothing happened" refers to the owner's own attempt. The effects of the one before, and
/// its checkpoint, stay.
pub async fn a_release_leaves_what_was_taken_over<S: Subject>(scene: Scene<S>) {
    let rule = "T10: a release of a record that was taken over leaves it to the next caller";
    for policy in [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify] {
        for keep_attempts in [false, true] {
            scene.running(policy).await;
            assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
            scene.pass(2).await;
            let claim = scene.claim_under(2, policy);
            let taken_over = scene.mine(&claim, rule).await;
            let release = Release { keep_attempts, ..Release::new(KEY, token(2)) };
            for _ in 0..2 {
                assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
                let record = scene.record().await;
                assert!(record.is_orphaned(), "{rule}: {record:?}");
                assert_eq!((record.owner, record.attempts), (token(2), 2), "{rule}");
                assert_eq!(
                    (record.reason, record.fence),
                    (Some(Reason::Crashed), taken_over.record.fence),
                    "{rule}"
                );
            }
            // A duplicate of the claim arrives late and is released as well.
            scene.mine(&claim, rule).await;
            assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
            let next = scene.mine(&scene.claim_under(3, policy), rule).await;
            assert_eq!(
                (next.taken_over, next.record.attempts),
                (Some(State::InProgress), 3),
                "{rule}"
            );
            assert_eq!(
                (next.record.checkpoints, &next.record.body[..]),
                (1, &b"half"[..]),
                "{rule}"
            );
            assert!(
                next.record.is_running() && next.record.fence > taken_over.record.fence,
                "{rule}"
            );
            scene.cleared(token(3), rule).await;
        }
    }
}

/// T10, T5b: the same if the record was in doubt before, and is again.
pub async fn a_release_leaves_a_doubt<S: Subject>(scene: Scene<S>) {
    let rule = "T10: a release of a record that was in doubt before leaves it in doubt, to be asked about at once";
    scene.in_doubt(CrashPolicy::Verify).await;
    scene.mine(&scene.claim_under(2, CrashPolicy::Verify), rule).await;
    let park =
        Park { ask_again_after: scene.leases(16), ..Park::own(KEY, token(2), Reason::Unverified) };
    assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.release(Release::new(KEY, token(2))).await, WriteOutcome::Applied, "{rule}");
    let record = scene.record().await;
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Unverified)), "{rule}");
    assert_eq!(
        scene.mine(&scene.claim_under(3, CrashPolicy::Verify), rule).await.taken_over,
        Some(State::InDoubt)
    );
}

/// T10: also after the lease has expired, as long as the token is current.
pub async fn a_late_owner_releases_its_claim<S: Subject>(scene: Scene<S>) {
    let rule = "T10: a release counts also when the lease has expired, or an observer has parked \
        the record";
    scene.orphaned(CrashPolicy::Hold).await;
    scene.held(&scene.claim_by(2), rule).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    scene.mine(&scene.claim_by(2), rule).await;
}

/// T10: a released claim stays released.
pub async fn a_released_claim_is_written_no_more<S: Subject>(scene: Scene<S>) {
    let rule =
        "T10: after its release an owner writes nothing, and releasing again is applied already";
    let before = scene.released().await;
    for (write, written) in scene.owner_writes(1).await {
        let expected =
            if write == "release" { WriteOutcome::AlreadyApplied } else { WriteOutcome::Lost };
        assert_eq!(written, expected, "{rule} ({write})");
    }
    scene.pass(2).await;
    assert_eq!(
        scene.park(Park::orphan(KEY, token(1))).await,
        WriteOutcome::Lost,
        "{rule} (park by an observer)"
    );
    assert_eq!(scene.fence(1).await, None, "{rule} (fence)");
    scene.unchanged(&before, rule).await;
}

/// T11: the next caller need not wait for the lease to expire.
pub async fn an_abandoned_claim_is_taken_over_at_once<S: Subject>(scene: Scene<S>) {
    let rule = "T11: under every policy but hold an abandoned claim is taken over at once";
    for policy in [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify] {
        scene.running(policy).await;
        assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Applied, "{rule}");
        let record = scene.record().await;
        assert_eq!(
            (record.state, record.owner, record.reason),
            (State::InProgress, token(1), Some(Reason::Dropped))
        );
        assert!(record.is_orphaned(), "{rule}");
        let grant = scene.mine(&scene.claim_under(2, policy), rule).await;
        assert_eq!(grant.taken_over, Some(State::InProgress), "{rule}");
        scene.cleared(token(2), rule).await;
    }
}

/// T7, T10, T11: a renewal that was in flight when the lease was given up does not restore it.
pub async fn a_lease_that_was_given_up_is_not_renewed<S: Subject>(scene: Scene<S>) {
    let rule = "T7: a lease that its owner gave up is not renewed";
    scene.running(CrashPolicy::Retry).await;
    assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.renew(1, scene.leases(2)).await, WriteOutcome::Lost, "{rule} (abandoned)");
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    assert_eq!(
        scene.renew(2, scene.leases(2)).await,
        WriteOutcome::Applied,
        "{rule}: the next owner renews its own"
    );
    assert_eq!(scene.release(Release::new(KEY, token(2))).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.renew(2, scene.leases(2)).await, WriteOutcome::Lost, "{rule} (released)");
    assert!(scene.record().await.is_orphaned(), "{rule}");
}

/// T11: hold has no next caller, so nothing is abandoned.
pub async fn nothing_is_abandoned_under_hold<S: Subject>(scene: Scene<S>) {
    let rule = "T11: under hold an abandonment changes nothing";
    scene.running(CrashPolicy::Hold).await;
    let before = scene.record().await;
    assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Lost, "{rule}");
    scene.unchanged(&before, rule).await;
    assert!(scene.held(&scene.claim_by(2), rule).await.is_running(), "{rule}");
}

/// T11: only a claim in progress is abandoned.
pub async fn only_a_claim_in_progress_is_abandoned<S: Subject>(scene: Scene<S>) {
    let rule = "T11: what is not in progress is not abandoned, not even by its owner";
    let park = Park { ask_again_after: scene.leases(4), ..Park::own(KEY, token(1), Reason::Error) };
    scene.running(CrashPolicy::Verify).await;
    assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
    let before = scene.record().await;
    assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Lost, "{rule}");
    scene.unchanged(&before, rule).await;
}

/// T6b: the owner reports that the outcome is unknown.
pub async fn an_owner_parks_its_record<S: Subject>(scene: Scene<S>) {
    let rule = "T6b: a running owner makes its record in doubt, and the checkpoint stays";
    scene.running(CrashPolicy::Hold).await;
    assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
    assert_eq!(
        scene.park(Park::own(KEY, token(1), Reason::Panicked)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    let parked = scene.record().await;
    let Record { state, owner, reason, .. } = parked;
    assert_eq!(
        (state, owner, reason),
        (State::InDoubt, token(1), Some(Reason::Panicked)),
        "{rule}"
    );
    assert_eq!((&parked.body[..], parked.checkpoints), (&b"half"[..], 1), "{rule}");
    scene.kept_for(&parked, scene.leases(16), rule);
    assert_eq!(
        scene.park(Park::own(KEY, token(1), Reason::Dropped)).await,
        WriteOutcome::AlreadyApplied,
        "{rule}"
    );
    scene.unchanged(&parked, rule).await;
    assert_eq!(scene.held(&scene.claim_by(2), rule).await.reason, Some(Reason::Panicked), "{rule}");
}

/// T6, T6b: the observer came first, and could only see that the lease had expired.
pub async fn an_owner_says_more_than_an_observer<S: Subject>(scene: Scene<S>) {
    let rule = "T6b: the owner's reason takes the place of an observer's, and no other does";
    scene.orphaned(CrashPolicy::Hold).await;
    let parked = scene.held(&scene.claim_by(2), rule).await;
    assert_eq!((parked.state, parked.reason), (State::InDoubt, Some(Reason::Crashed)), "{rule}");
    let late =
        Park { ask_again_after: scene.leases(4), ..Park::own(KEY, token(1), Reason::LeaseLost) };
    assert_eq!(scene.park(Park { token: token(2), ..late }).await, WriteOutcome::Lost, "{rule}");
    assert_eq!(scene.park(late).await, WriteOutcome::Applied, "{rule}");
    let record = scene.record().await;
    scene.unchanged(&Record { reason: record.reason, ..parked }, rule).await;
    assert_eq!(record.reason, Some(Reason::LeaseLost), "{rule}");
    for again in [late, Park::own(KEY, token(1), Reason::Dropped), Park::orphan(KEY, token(1))] {
        assert_eq!(scene.park(again).await, WriteOutcome::AlreadyApplied, "{rule}");
    }
    scene.unchanged(&record, rule).await;
}

/// T6: an observer puts in doubt only the claim that it saw, and only if its owner is gone.
pub async fn an_observer_parks_only_an_orphan<S: Subject>(scene: Scene<S>) {
    let rule = "T6: an observer parks a record only if the lease of the owner that it saw has \
        expired";
    scene.running(CrashPolicy::Hold).await;
    let before = scene.record().await;
    assert_eq!(scene.park(Park::orphan(KEY, token(1))).await, WriteOutcome::Lost, "{rule}");
    scene.unchanged(&before, rule).await;
    scene.pass(2).await;
    assert_eq!(scene.renew(1, scene.leases(1)).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(
        scene.park(Park::orphan(KEY, token(1))).await,
        WriteOutcome::Lost,
        "{rule}: it was renewed"
    );
    scene.pass(2).await;
    assert_eq!(scene.park(Park::orphan(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    let record = scene.record().await;
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Crashed)), "{rule}");
    assert_eq!(
        scene.park(Park::orphan(KEY, token(1))).await,
        WriteOutcome::AlreadyApplied,
        "{rule}"
    );
}

/// Rule 6: checkpoints are accepted in their order.
pub async fn checkpoints_are_accepted_in_order<S: Subject>(scene: Scene<S>) {
    let rule = "rule 6: a checkpoint is accepted at the expected number only";
    scene.running(CrashPolicy::Resume).await;
    for (sequence, body, expected) in [
        (1, "ahead", WriteOutcome::Lost),
        (0, "first", WriteOutcome::Applied),
        (2, "ahead", WriteOutcome::Lost),
        (1, "second", WriteOutcome::Applied),
        (0, "first", WriteOutcome::Lost),
        (0, "second", WriteOutcome::Lost),
        (u32::MAX, "second", WriteOutcome::Lost),
        (2, "", WriteOutcome::Applied),
    ] {
        assert_eq!(
            scene.checkpoint(1, sequence, body).await,
            expected,
            "{rule} ({sequence} {body:?})"
        );
    }
    let record = scene.record().await;
    assert_eq!(
        (record.checkpoints, record.body.len(), record.state),
        (3, 0, State::InProgress),
        "{rule}"
    );
}

/// T10 after a checkpoint whose owner has found that its predecessor had begun nothing.
pub async fn a_checkpoint_can_say_that_nothing_had_begun<S: Subject>(scene: Scene<S>) {
    let rule = "a release removes a record that was taken over if a checkpoint said that nothing had begun";
    for (nothing_began, body) in [(true, ""), (true, "half"), (false, ""), (false, "half")] {
        scene.orphaned(CrashPolicy::Verify).await;
        scene.mine(&scene.claim_under(2, CrashPolicy::Verify), rule).await;
        let checkpoint = Checkpoint {
            nothing_began,
            ..Checkpoint::new(KEY, token(2), 0, Bytes::from_static(body.as_bytes()))
        };
        for expected in [WriteOutcome::Applied, WriteOutcome::AlreadyApplied] {
            let written = scene.store().checkpoint(checkpoint.clone()).await;
            assert_eq!(written.expect(rule), expected, "{rule}");
        }
        let release = Release::new(KEY, token(2));
        assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
        let left = scene.read().await.map(|record| record.state);
        let expected = (!nothing_began).then_some(State::InProgress);
        assert_eq!(left, expected, "{rule}, and only then ({checkpoint:?})");
        if left.is_some() {
            scene.cleared(token(2), rule).await;
        }
        scene.pass(1).await;
    }
}

/// Rule 6: the response was lost, and the checkpoint is sent again.
pub async fn a_checkpoint_sent_twice_counts_once<S: Subject>(scene: Scene<S>) {
    let rule = "rule 6: a checkpoint that is sent twice counts once; another one with its number is refused";
    scene.running(CrashPolicy::Resume).await;
    assert_eq!(scene.checkpoint(1, 0, "first").await, WriteOutcome::Applied, "{rule}");
    let before = scene.record().await;
    assert_eq!(scene.checkpoint(1, 0, "first").await, WriteOutcome::AlreadyApplied, "{rule}");
    assert_eq!(scene.checkpoint(1, 0, "other").await, WriteOutcome::Lost, "{rule}");
    scene.unchanged(&before, rule).await;
    assert_eq!(scene.checkpoint(1, 1, "second").await, WriteOutcome::Applied, "{rule}");
}

/// Rule 6: a checkpoint is not a renewal.
pub async fn a_checkpoint_keeps_lease_and_expiry<S: Subject>(scene: Scene<S>) {
    let rule = "rule 6: a checkpoint changes neither lease nor expiry";
    scene.running(CrashPolicy::Retry).await;
    assert_eq!(scene.renew(1, scene.leases(6)).await, WriteOutcome::Applied, "{rule}");
    let before = scene.record().await;
    scene.pass(3).await;
    assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
    let after = scene.record().await;
    for (before, after) in
        [(before.expires, after.expires), (before.lease_until, after.lease_until)]
    {
        let difference = before.max(after).saturating_duration_since(before.min(after));
        assert!(difference < scene.leases(1), "{rule}");
    }
}

/// Rules 1 and 6: only the owner writes checkpoints, and only while the claim is in progress.
pub async fn only_the_owner_in_progress_writes_checkpoints<S: Subject>(scene: Scene<S>) {
    let rule = "rule 6: only the owner of a claim in progress writes checkpoints";
    scene.running(CrashPolicy::Resume).await;
    assert_eq!(scene.checkpoint(2, 0, "stranger").await, WriteOutcome::Lost, "{rule}");
    scene.pass(2).await;
    assert_eq!(
        scene.checkpoint(1, 0, "late").await,
        WriteOutcome::Applied,
        "{rule}: the lease does not matter"
    );
    scene.mine(&scene.claim_under(2, CrashPolicy::Resume), rule).await;
    assert_eq!(scene.checkpoint(1, 1, "stale").await, WriteOutcome::Lost, "{rule}");
    assert_eq!(scene.checkpoint(1, 0, "late").await, WriteOutcome::Lost, "{rule}");
    assert_eq!(
        scene.park(Park::own(KEY, token(2), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    assert_eq!(scene.checkpoint(2, 1, "parked").await, WriteOutcome::Lost, "{rule}");
    assert_eq!(&scene.record().await.body[..], b"late", "{rule}");
}

/// A fence belongs to a claim in progress.
pub async fn only_a_claim_in_progress_has_a_fence<S: Subject>(scene: Scene<S>) {
    let rule = "only the owner of a claim in progress has a fence";
    assert_eq!(scene.fence(1).await, None, "{rule}: no record");
    scene.running(CrashPolicy::Hold).await;
    assert!(scene.fence(1).await.is_some(), "{rule}");
    assert_eq!(scene.fence(2).await, None, "{rule}: stranger");
    assert_eq!(
        scene.park(Park::own(KEY, token(1), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    assert_eq!(scene.fence(1).await, None, "{rule}: in doubt");
    assert_eq!(scene.complete(scene.commit_by(1, "first")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.fence(1).await, None, "{rule}: completed");
}
