//! Claims whose owner is gone: takeover, doubt, and repeated verification (T5, T5b, T6, rule 3).

use super::Scene;
use super::claims::race;
use super::scene::{KEY, fingerprint, token};
use crate::store::{Claim, CrashPolicy, Park, Reason, State, WriteOutcome};
use crate::testing::Subject;

const TAKING: [CrashPolicy; 3] = [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify];

/// T5: every policy except hold grants the claim to the next caller.
pub async fn an_orphan_is_taken_over<S: Subject>(scene: Scene<S>) {
    let rule = "T5: a claim whose lease has expired is taken over, with fence and attempts counted \
        up";
    let mut fence = scene.orphaned(CrashPolicy::Retry).await.record.fence;
    for (attempts, policy) in (2..).zip(TAKING) {
        let taker = scene.claim_under(attempts.into(), policy);
        let claim = Claim { trace: Some("taker".into()), schema: attempts, ..taker };
        let grant = scene.mine(&claim, rule).await;
        let record = &grant.record;
        assert_eq!(grant.taken_over, Some(State::InProgress), "{rule}");
        assert_eq!(
            (record.state, record.owner, record.policy),
            (State::InProgress, claim.token, policy),
            "{rule}"
        );
        assert_eq!((record.attempts, record.trace.as_deref()), (attempts, Some("taker")), "{rule}");
        assert_eq!(record.schema, attempts, "{rule}");
        assert!(record.fence > fence, "{rule}");
        assert!(record.is_running(), "{rule}: the taker has a lease of its own");
        fence = record.fence;
        scene.held(&scene.claim_under(99, CrashPolicy::Retry), rule).await;
        scene.pass(2).await;
    }
}

/// T5: the progress of the first owner is not lost.
pub async fn a_takeover_keeps_the_checkpoint<S: Subject>(scene: Scene<S>) {
    let rule = "T5: a takeover keeps the checkpoint and its count";
    scene.running(CrashPolicy::Resume).await;
    assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
    scene.pass(2).await;
    let grant = scene.mine(&scene.claim_under(2, CrashPolicy::Resume), rule).await;
    assert_eq!((&grant.record.body[..], grant.record.checkpoints), (&b"half"[..], 1), "{rule}");
    assert_eq!(scene.checkpoint(2, 1, "whole").await, WriteOutcome::Applied, "{rule}");
    assert_eq!(&scene.record().await.body[..], b"whole", "{rule}");
}

/// T5 then T4: a caller that took over and whose response was lost must not think that it is the
/// first.
pub async fn a_repeated_takeover_tells_that_it_was_one<S: Subject>(scene: Scene<S>) {
    let rule = "T4: the answer to a repeated takeover states again from which state it took over";
    scene.orphaned(CrashPolicy::Verify).await;
    let claim = scene.claim_under(2, CrashPolicy::Verify);
    let grant = scene.mine(&claim, rule).await;
    assert_eq!(scene.mine(&claim, rule).await.taken_over, Some(State::InProgress), "{rule}");
    assert_eq!(scene.record().await.attempts, grant.record.attempts, "{rule}");
    assert_eq!(
        scene.park(Park::own(KEY, token(2), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    let claim = scene.claim_under(3, CrashPolicy::Verify);
    scene.mine(&claim, rule).await;
    assert_eq!(scene.mine(&claim, rule).await.taken_over, Some(State::InDoubt), "{rule}");
}

/// Rule 2: the record has the values of the claim that took it over, and does not expire earlier
/// than before.
pub async fn a_takeover_writes_its_own_linger<S: Subject>(scene: Scene<S>) {
    let rule = "T5: a takeover writes the caller's linger and after_expiry and never shortens how long the record is kept";
    scene.orphaned(CrashPolicy::Retry).await;
    let before = scene.record().await;
    let shorter = Claim { linger: scene.leases(2), ..scene.claim_under(2, CrashPolicy::Retry) };
    let record = scene.mine(&shorter, rule).await.record;
    assert_eq!(record.linger, scene.leases(2), "{rule}");
    assert!(record.expires + scene.leases(1) > before.expires, "{rule}");
    scene.pass(2).await;
    let longer = Claim {
        linger: scene.leases(64),
        after_expiry: scene.leases(32),
        ..scene.claim_under(3, CrashPolicy::Retry)
    };
    let record = scene.mine(&longer, rule).await.record;
    assert_eq!(record.linger, scene.leases(64), "{rule}");
    assert_eq!(record.after_expiry, scene.leases(32), "{rule}");
    scene.kept_for(&record, scene.leases(65), rule);
}

/// T6: under hold the record is in doubt, and stays in doubt.
pub async fn an_orphan_under_hold_is_parked<S: Subject>(scene: Scene<S>) {
    let rule = "T6: under hold a claim whose lease has expired is parked as crashed and held";
    scene.running(CrashPolicy::Hold).await;
    assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
    scene.pass(2).await;
    let held = scene.held(&scene.claim_by(2), rule).await;
    assert_eq!(
        (held.state, held.owner, held.reason),
        (State::InDoubt, token(1), Some(Reason::Crashed)),
        "{rule}"
    );
    let record = scene.record().await;
    assert_eq!(
        (record.state, record.owner, record.reason),
        (State::InDoubt, token(1), Some(Reason::Crashed)),
        "{rule}"
    );
    assert_eq!((&record.body[..], record.attempts), (&b"half"[..], 1), "{rule}");
    assert_eq!(scene.held(&scene.claim_by(3), rule).await.state, State::InDoubt, "{rule}");
}

/// Rule 3: the stricter one of the record's and the caller's policy decides.
pub async fn the_stricter_policy_decides<S: Subject>(scene: Scene<S>) {
    let rule = "rule 3: where caller and record differ, the stricter policy wins";
    let all = [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify, CrashPolicy::Hold];
    for recorded in all {
        for asked in all {
            let rule = format!("{rule} (record {recorded:?}, caller {asked:?})");
            scene.orphaned(recorded).await;
            let claim = scene.claim_under(2, asked);
            let owner = if recorded == CrashPolicy::Hold || asked == CrashPolicy::Hold {
                assert_eq!(scene.held(&claim, &rule).await.state, State::InDoubt, "{rule}");
                token(1)
            } else if recorded == CrashPolicy::Verify && asked != CrashPolicy::Verify {
                scene.held(&claim, &rule).await;
                token(1)
            } else {
                assert_eq!(
                    scene.mine(&claim, &rule).await.record.policy,
                    recorded.max(asked),
                    "{rule}"
                );
                token(2)
            };
            scene.cleared(owner, &rule).await;
        }
    }
}

/// Rule 3: verify grants a dead owner's claim only to callers with a verification callback.
pub async fn who_has_no_question_changes_nothing<S: Subject>(scene: Scene<S>) {
    let rule =
        "T5: a claim without a question changes nothing on a record that is to be asked about";
    for is_abandoned in [false, true] {
        scene.running(CrashPolicy::Verify).await;
        let reason = is_abandoned.then_some(Reason::Panicked);
        if let Some(reason) = reason {
            assert_eq!(scene.abandon(1, reason).await, WriteOutcome::Applied, "{rule}");
        } else {
            scene.pass(2).await;
        }
        let before = scene.record().await;
        for (caller, policy) in [(2, CrashPolicy::Retry), (3, CrashPolicy::Resume)] {
            let held = scene.held(&scene.claim_under(caller, policy), rule).await;
            assert_eq!(
                (held.state, held.owner, held.policy),
                (State::InProgress, token(1), CrashPolicy::Verify),
                "{rule}"
            );
            assert_eq!((held.attempts, held.reason), (1, reason), "{rule}");
            assert!(held.is_orphaned(), "{rule}");
            scene.unchanged(&before, rule).await;
        }
        let grant = scene.mine(&scene.claim_under(4, CrashPolicy::Verify), rule).await;
        assert_eq!(
            (grant.taken_over, grant.record.attempts),
            (Some(State::InProgress), 2),
            "{rule}"
        );
        scene.cleared(token(4), rule).await;
    }
}

/// T5, T6: another request may not continue this one, nor keep it from being continued.
pub async fn a_contradicting_fingerprint_takes_nothing_over<S: Subject>(scene: Scene<S>) {
    let rule = "T5, T6: a claim with another fingerprint takes nothing over, and parks nothing that \
        may run again";
    let all = [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify, CrashPolicy::Hold];
    for recorded in [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify] {
        let first =
            Claim { fingerprint: Some(fingerprint(1, 7)), ..scene.claim_under(1, recorded) };
        scene.mine(&first, "T1: a claim of no record is granted").await;
        scene.pass(2).await;
        let before = scene.record().await;
        for (caller, asked) in (2..).zip(all) {
            let rule = format!("{rule} (record {recorded:?}, caller {asked:?})");
            let other = Some(fingerprint(1, 8));
            let claim = Claim { fingerprint: other, ..scene.claim_under(caller, asked) };
            let record = scene.held(&claim, &rule).await;
            assert_eq!(
                (record.state, record.owner, record.fingerprint, record.policy),
                (State::InProgress, token(1), first.fingerprint, recorded),
                "{rule}"
            );
            scene.unchanged(&before, &rule).await;
        }
        scene.cleared(token(1), rule).await;
    }
}

/// T5: a request whose fingerprint cannot be compared is not known to be the same.
pub async fn an_absent_fingerprint_or_one_of_another_version_takes_nothing_over<S: Subject>(
    scene: Scene<S>,
) {
    let rule = "T5: only an equal fingerprint takes over, and only none where the record has none";
    let (none, some, zero) = (None, Some(fingerprint(1, 7)), Some(fingerprint(0, 0)));
    let mut caller = 10;
    for (recorded, others) in [
        (some, vec![none, Some(fingerprint(2, 7)), zero]),
        (none, vec![some, zero]),
        (zero, vec![none]),
    ] {
        let rule = format!("{rule} (record {recorded:?})");
        let first =
            Claim { fingerprint: recorded, ..scene.claim_under(caller, CrashPolicy::Retry) };
        scene.mine(&first, "T1: a claim of no record is granted").await;
        scene.pass(2).await;
        for other in others {
            caller += 1;
            let claim =
                Claim { fingerprint: other, ..scene.claim_under(caller, CrashPolicy::Retry) };
            let record = scene.held(&claim, &rule).await;
            assert_eq!(
                (record.owner, record.fingerprint),
                (first.token, recorded),
                "{rule} (caller {other:?})"
            );
        }
        caller += 1;
        let equal =
            Claim { fingerprint: recorded, ..scene.claim_under(caller, CrashPolicy::Retry) };
        assert_eq!(scene.mine(&equal, &rule).await.record.fingerprint, recorded, "{rule}");
        scene.cleared(equal.token, &rule).await;
    }
}

/// T5b: the outside world is queried again once the backoff has passed, not before.
pub async fn a_doubt_is_asked_again_after_its_backoff<S: Subject>(scene: Scene<S>) {
    let rule = "T5b: under verify a record in doubt is taken over once its backoff has ended";
    let first = scene.running(CrashPolicy::Verify).await;
    let park = Park { ask_again_after: scene.leases(4), ..Park::own(KEY, token(1), Reason::Error) };
    assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
    scene.pass(2).await;
    assert_eq!(
        scene.held(&scene.claim_under(2, CrashPolicy::Verify), rule).await.state,
        State::InDoubt,
        "{rule}"
    );
    scene.pass(3).await;
    let grant = scene.mine(&scene.claim_under(2, CrashPolicy::Verify), rule).await;
    assert_eq!(grant.taken_over, Some(State::InDoubt), "{rule}");
    assert_eq!(
        (grant.record.state, grant.record.owner, grant.record.attempts),
        (State::InProgress, token(2), 2),
        "{rule}"
    );
    assert_eq!(grant.record.reason, None, "{rule}");
    assert!(grant.record.is_running() && grant.record.fence > first.record.fence, "{rule}");
}

/// T5b: only under verify.
pub async fn a_doubt_is_held_under_every_other_policy<S: Subject>(scene: Scene<S>) {
    let rule =
        "T5b: a record in doubt is held unless the caller has a question and the record allows it";
    let all = [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify, CrashPolicy::Hold];
    for recorded in all {
        for asked in all {
            let rule = format!("{rule} (record {recorded:?}, caller {asked:?})");
            scene.in_doubt(recorded).await;
            scene.pass(2).await;
            let claim = scene.claim_under(2, asked);
            let owner = if asked == CrashPolicy::Verify && recorded != CrashPolicy::Hold {
                scene.mine(&claim, &rule).await;
                token(2)
            } else {
                assert_eq!(scene.held(&claim, &rule).await.state, State::InDoubt, "{rule}");
                token(1)
            };
            scene.cleared(owner, &rule).await;
        }
    }
}

/// T5b: the owner is gone, and a claim of its own that still arrives is late.
pub async fn a_repeated_claim_asks_nothing_about_itself<S: Subject>(scene: Scene<S>) {
    let rule =
        "T5b: a claim that arrives again after its owner has left the record in doubt is held";
    for policy in [CrashPolicy::Verify, CrashPolicy::Retry] {
        scene.in_doubt(policy).await;
        scene.pass(1).await;
        let before = scene.record().await;
        let held = scene.held(&scene.claim_under(1, CrashPolicy::Verify), rule).await;
        assert_eq!(
            (held.state, held.owner, held.attempts),
            (State::InDoubt, token(1), 1),
            "{rule}"
        );
        scene.unchanged(&before, rule).await;
        scene
            .mine(&scene.claim_under(2, CrashPolicy::Verify), "T5b: the next caller asks at once")
            .await;
        scene.cleared(token(2), rule).await;
    }
}

/// T5b: a verdict applies to one request.
pub async fn a_contradicting_fingerprint_asks_nothing_again<S: Subject>(scene: Scene<S>) {
    let rule =
        "T5b: a claim with another fingerprint, or none, does not take a record in doubt over";
    let recorded =
        Claim { fingerprint: Some(fingerprint(1, 7)), ..scene.claim_under(1, CrashPolicy::Verify) };
    scene.mine(&recorded, "T1: a claim of no record is granted").await;
    assert_eq!(
        scene.park(Park::own(KEY, token(1), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    scene.pass(1).await;
    for other in [Some(fingerprint(1, 8)), Some(fingerprint(2, 7)), None] {
        let claim = Claim { fingerprint: other, ..scene.claim_under(2, CrashPolicy::Verify) };
        assert_eq!(scene.held(&claim, rule).await.owner, token(1), "{rule} ({other:?})");
    }
}

/// T5, T11: the panic of an owner that was replaced says nothing about the next one.
pub async fn a_takeover_forgets_the_reason<S: Subject>(scene: Scene<S>) {
    let rule = "T5: the reason of the owner before does not stay on a claim that was taken over";
    scene.running(CrashPolicy::Retry).await;
    assert_eq!(scene.abandon(1, Reason::Panicked).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(
        scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await.record.reason,
        None,
        "{rule}"
    );
    scene.pass(2).await;
    assert_eq!(scene.held(&scene.claim_by(3), rule).await.reason, Some(Reason::Crashed), "{rule}");
}

/// T6: the owner's reason is more precise than an observer's.
pub async fn parking_an_abandoned_record_keeps_its_reason<S: Subject>(scene: Scene<S>) {
    let rule = "T6: a record that its owner abandoned keeps that reason when it is parked";
    for by_claim in [true, false] {
        scene.running(CrashPolicy::Retry).await;
        assert_eq!(scene.abandon(1, Reason::Panicked).await, WriteOutcome::Applied, "{rule}");
        if by_claim {
            scene.held(&scene.claim_by(2), rule).await;
        } else {
            assert_eq!(
                scene.park(Park::orphan(KEY, token(1))).await,
                WriteOutcome::Applied,
                "{rule}"
            );
        }
        let record = scene.record().await;
        assert_eq!(
            (record.state, record.reason),
            (State::InDoubt, Some(Reason::Panicked)),
            "{rule}"
        );
        assert_eq!(
            scene.release(crate::store::Release::new(KEY, token(1))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
}

/// One `Granted` among 64 concurrent takeovers.
pub async fn one_of_64_concurrent_takeovers_is_granted<S: Subject>(scene: Scene<S>) {
    let rule = "T5: of 64 takeovers at once one is granted, and the others see its owner";
    scene.orphaned(CrashPolicy::Retry).await;
    let claims = (2..=65).map(|caller| scene.claim_under(caller, CrashPolicy::Retry)).collect();
    race(&scene, claims, rule).await;
    assert_eq!(scene.record().await.attempts, 2, "{rule}");
}

/// S4: a body passes its fence to a resource that checks fences.
pub async fn fences_grow_over_takeovers<S: Subject>(scene: Scene<S>) {
    let rule = "the fence of a claim is one figure, and larger than that of every earlier claim";
    scene.running(CrashPolicy::Retry).await;
    let mut last = None;
    for caller in 1..=5 {
        let fence = scene.fence(caller).await;
        assert!(fence.is_some() && fence > last, "{rule}: {fence:?} after {last:?}");
        assert_eq!(scene.fence(caller).await, fence, "{rule}");
        if caller % 2 == 0 {
            scene.pass(2).await;
        } else {
            assert_eq!(
                scene.abandon(caller, Reason::Dropped).await,
                WriteOutcome::Applied,
                "{rule}, also without any time"
            );
        }
        scene.mine(&scene.claim_under(caller + 1, CrashPolicy::Retry), rule).await;
        assert_eq!(scene.fence(caller).await, None, "{rule}: an owner that was replaced has none");
        last = fence;
    }
}

/// S4: a counted attempt has a record that was released, and no time need have passed.
pub async fn fences_grow_over_kept_releases<S: Subject>(scene: Scene<S>) {
    let rule = "the fence of a claim is larger than that of the one before, also after a release that keeps the attempts, \
                and whatever the clock does";
    scene.running(CrashPolicy::Retry).await;
    let mut last = scene.fence(1).await;
    for caller in 2..=5 {
        let release = crate::store::Release {
            keep_attempts: true,
            ..crate::store::Release::new(KEY, token(caller - 1))
        };
        assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
        if caller == 4 {
            scene.jump(crate::testing::ClockJump::Back(scene.leases(2)));
        }
        scene.mine(&scene.claim_under(caller, CrashPolicy::Retry), rule).await;
        let fence = scene.fence(caller).await;
        assert!(fence.is_some() && fence > last, "{rule}: {fence:?} after {last:?}");
        last = fence;
    }
}

/// S4: a resource that checks fences has seen those of records that are gone.
pub async fn fences_grow_over_records_that_are_gone<S: Subject>(scene: Scene<S>) {
    let rule = "the fence of a new record is larger than those of the key's earlier records";
    scene.orphaned(CrashPolicy::Retry).await;
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    let before = scene.fence(2).await;
    scene.cleared(token(2), rule).await;
    scene.pass(1).await;
    scene.mine(&scene.claim_by(3), rule).await;
    let after = scene.fence(3).await;
    assert!(before.is_some() && after > before, "{rule}: {after:?} after {before:?}");
}
