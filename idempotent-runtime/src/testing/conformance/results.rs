//! Results: stored, stored again, stored too late, stored after the record vanished (T8, T9, rules
//! 1, 2 and 7).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use super::scene::{KEY, OPERATION, fingerprint, key, token};
use crate::store::{
    AdminOutcome, Adoption, Checkpoint, Claim, Commit, CrashPolicy, Park, Reason, Release, Remove,
    Resolve, ResolveAnswer, State, Store as _, WriteOutcome,
};
use crate::testing::Subject;

/// T8: the owner stores its result.
pub async fn an_owner_stores_its_result<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a commit by the owner stores state, body, schema and reason";
    for state in [State::Completed, State::Failed] {
        let grant = scene.running(CrashPolicy::Hold).await;
        let commit = Commit {
            state,
            schema: 5,
            reason: Some(Reason::TooLarge),
            ..scene.commit_by(1, "first")
        };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
        let record = scene.record().await;
        assert_eq!((record.state, record.owner), (state, token(1)), "{rule}");
        assert_eq!((record.schema, record.reason), (5, Some(Reason::TooLarge)), "{rule}");
        assert_eq!((&record.body[..], record.attempts), (&b"first"[..], 1), "{rule}");
        assert_eq!(
            (record.created, &*record.operation),
            (grant.record.created, OPERATION),
            "{rule}"
        );
        let watched = scene.watch().await.record.expect(rule);
        for seen in [record, watched, scene.held(&scene.claim_by(2), rule).await] {
            let latest = seen.read_at.max(grant.record.lease_until);
            assert!(
                seen.lease_until <= latest,
                "{rule}, and the lease has ended or is as it was: {:?}",
                seen.lease_until
            );
        }
        scene.pass_expiry().await;
    }
}

/// T8: the result replaces the checkpoint.
pub async fn a_result_replaces_the_checkpoint<S: Subject>(scene: Scene<S>) {
    let rule = "T8: the body of a finished record is the result, also an empty one";
    scene.running(CrashPolicy::Resume).await;
    assert_eq!(scene.checkpoint(1, 0, "half").await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.complete(scene.commit_by(1, "")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.record().await.body, Bytes::new(), "{rule}");
}

/// T8: bodies are opaque.
pub async fn bodies_are_opaque<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a body is any bytes, up to a mebibyte and more";
    let all: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..1 << 20)
        .map(|position: u32| position.to_le_bytes()[usize::from(position.is_multiple_of(3))])
        .collect();
    for body in [
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from_static(b"'\"\\{}\r\n"),
        all.into(),
        large.into(),
    ] {
        scene.running(CrashPolicy::Hold).await;
        let checkpoint = Checkpoint::new(KEY, token(1), 0, body.clone());
        let written = scene.store().checkpoint(checkpoint).await;
        assert_eq!(written.ok(), Some(WriteOutcome::Applied), "{rule}");
        assert!(scene.record().await.body == body, "{rule}: {} bytes as checkpoint", body.len());
        let commit = Commit { body: body.clone(), ..scene.commit_by(1, "") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
        assert!(scene.record().await.body == body, "{rule}: {} bytes", body.len());
        assert!(
            scene.held(&scene.claim_by(2), rule).await.body == body,
            "{rule}: {} bytes replayed",
            body.len()
        );
        scene.pass_expiry().await;
    }
}

/// T8: the values of the claim stay, whatever the body.
pub async fn a_body_of_any_size_leaves_what_the_claim_said<S: Subject>(scene: Scene<S>) {
    let rule = "T8, T12: operation, trace context, fingerprint and policy stay, whatever the size of the body";
    let bodies = [0, 100, 9_000, 100_000, 1 << 20].map(|size| Bytes::from(vec![b'x'; size]));
    for large in bodies {
        let claim = Claim {
            fingerprint: Some(fingerprint(3, u128::MAX - 1)),
            trace: Some("00-trace-01".into()),
            ..scene.claim_under(1, CrashPolicy::Verify)
        };
        scene.mine(&claim, rule).await;
        let as_claimed = async |what: &str| {
            let record = scene.record().await;
            assert!(record.body == large, "{rule} ({what} of {} bytes)", large.len());
            let words = (&*record.operation, record.trace.as_deref());
            assert_eq!(
                words,
                (OPERATION, Some("00-trace-01")),
                "{rule} ({what} of {} bytes)",
                large.len()
            );
            let guards = (record.fingerprint, record.policy);
            assert_eq!(
                guards,
                (claim.fingerprint, CrashPolicy::Verify),
                "{rule} ({what} of {} bytes)",
                large.len()
            );
        };
        for sequence in 0..2 {
            let checkpoint = Checkpoint::new(KEY, token(1), sequence, large.clone());
            assert_eq!(
                scene.store().checkpoint(checkpoint.clone()).await.ok(),
                Some(WriteOutcome::Applied),
                "{rule}"
            );
            as_claimed("checkpoint").await;
            assert_eq!(
                scene.store().checkpoint(checkpoint).await.ok(),
                Some(WriteOutcome::AlreadyApplied),
                "{rule}"
            );
        }
        assert_eq!(
            scene.park(Park::own(KEY, token(1), Reason::Error)).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        as_claimed("what was parked").await;
        let answer = ResolveAnswer::Finished {
            state: State::Completed,
            body: large.clone(),
            schema: 1,
            ttl: scene.leases(16),
        };
        assert_eq!(
            scene.resolve(Resolve::new(KEY, token(1), token(9), answer)).await,
            AdminOutcome::Applied,
            "{rule}"
        );
        as_claimed("an operator's answer").await;
        assert_eq!(scene.remove(Remove::new(KEY, token(9))).await, AdminOutcome::Applied, "{rule}");

        scene.mine(&claim, rule).await;
        let commit = Commit { body: large.clone(), ..scene.commit_by(1, "") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
        as_claimed("a result").await;
        let listed = scene.list(crate::store::Scan::default(), rule).await;
        let words: Vec<_> =
            listed.iter().map(|record| (&*record.operation, record.trace.as_deref())).collect();
        assert_eq!(
            words,
            [(OPERATION, Some("00-trace-01"))],
            "{rule} (a listed result of {} bytes)",
            large.len()
        );
        assert_eq!(scene.remove(Remove::new(KEY, token(1))).await, AdminOutcome::Applied, "{rule}");
    }
}

/// T8: the token guards a result, not the lease.
pub async fn a_late_result_is_stored<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a commit by the owner counts also when its lease has expired";
    for policy in [CrashPolicy::Hold, CrashPolicy::Retry] {
        scene.orphaned(policy).await;
        assert_eq!(
            scene.complete(scene.commit_by(1, "late")).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        assert_eq!(
            scene.held(&scene.claim_under(2, policy), rule).await.state,
            State::Completed,
            "{rule}"
        );
        scene.pass_expiry().await;
    }
}

/// T8 from X: a slow owner resolves its own doubt.
pub async fn a_parked_owner_stores_its_result<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a commit by the owner counts also when the record was parked, by itself or by an observer";
    for by_owner in [true, false] {
        scene.orphaned(CrashPolicy::Hold).await;
        if by_owner {
            assert_eq!(
                scene.park(Park::own(KEY, token(1), Reason::Error)).await,
                WriteOutcome::Applied,
                "{rule}"
            );
        } else {
            assert_eq!(scene.held(&scene.claim_by(2), rule).await.state, State::InDoubt, "{rule}");
        }
        assert_eq!(
            scene.complete(scene.commit_by(1, "mine")).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        let record = scene.record().await;
        assert_eq!(
            (record.state, record.reason, &record.body[..]),
            (State::Completed, None, &b"mine"[..]),
            "{rule}"
        );
        scene.pass_expiry().await;
    }
}

/// Rule 7: a commit whose response was lost is sent again.
pub async fn a_result_sent_twice_is_stored_once<S: Subject>(scene: Scene<S>) {
    let rule =
        "rule 7: a commit that is sent again is answered with already applied and changes nothing";
    for state in [State::Completed, State::Failed] {
        let before = scene.completed(state).await;
        for again in [State::Completed, State::Failed] {
            let commit = Commit {
                state: again,
                schema: 9,
                ttl: scene.leases(64),
                ..scene.commit_by(1, "second")
            };
            assert_eq!(scene.complete(commit).await, WriteOutcome::AlreadyApplied, "{rule}");
        }
        scene.unchanged(&before, rule).await;
        scene.pass_expiry().await;
    }
}

/// S1: C and F never change until they expire.
pub async fn an_answer_never_changes<S: Subject>(scene: Scene<S>) {
    let rule = "a finished record never changes until it expires";
    for state in [State::Completed, State::Failed] {
        let before = scene.completed(state).await;
        scene.pass(2).await;
        assert_eq!(scene.renew(1, scene.leases(64)).await, WriteOutcome::Lost, "{rule} (renew)");
        assert_eq!(scene.checkpoint(1, 0, "late").await, WriteOutcome::Lost, "{rule} (checkpoint)");
        assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Lost, "{rule} (abandon)");
        assert_eq!(
            scene.park(Park::own(KEY, token(1), Reason::Error)).await,
            WriteOutcome::Lost,
            "{rule} (park)"
        );
        assert_eq!(
            scene.park(Park::orphan(KEY, token(1))).await,
            WriteOutcome::Lost,
            "{rule} (park by an observer)"
        );
        assert_eq!(
            scene.release(Release::new(KEY, token(1))).await,
            WriteOutcome::Lost,
            "{rule} (release)"
        );
        assert_eq!(
            scene.complete(scene.commit_by(2, "other")).await,
            WriteOutcome::Lost,
            "{rule} (complete by another)"
        );
        let resolve = Resolve::new(KEY, token(1), token(9), ResolveAnswer::NotExecuted);
        assert_eq!(scene.resolve(resolve).await, AdminOutcome::Conflict, "{rule} (resolve)");
        for policy in [CrashPolicy::Retry, CrashPolicy::Verify] {
            scene.held(&scene.claim_under(2, policy), rule).await;
        }
        scene.unchanged(&before, rule).await;
        scene.pass_expiry().await;
    }
}

/// Rule 1: one result per record, that of the caller that took over.
pub async fn a_stale_owners_result_is_refused<S: Subject>(scene: Scene<S>) {
    let rule = "rule 1: a commit by an owner that was replaced is lost, before and after the taker's commit";
    scene.orphaned(CrashPolicy::Retry).await;
    scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
    assert_eq!(scene.complete(scene.commit_by(1, "stale")).await, WriteOutcome::Lost, "{rule}");
    assert_eq!(scene.complete(scene.commit_by(2, "winner")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.complete(scene.commit_by(1, "stale")).await, WriteOutcome::Lost, "{rule}");
    let record = scene.record().await;
    assert_eq!((record.owner, &record.body[..]), (token(2), &b"winner"[..]), "{rule}");
}

/// T8: P and X become C or F and nothing else.
pub async fn a_result_is_completed_or_failed<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a commit of a state that is no answer is lost";
    scene.running(CrashPolicy::Hold).await;
    let before = scene.record().await;
    for state in [State::InProgress, State::InDoubt, State::Released, State::Tombstone] {
        let commit = Commit { state, ..scene.commit_by(1, "odd") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Lost, "{rule} ({state:?})");
    }
    scene.unchanged(&before, rule).await;
}

/// Rule 2: `ttl` counts from the commit.
pub async fn a_result_is_kept_for_its_ttl<S: Subject>(scene: Scene<S>) {
    let rule = "rule 2: a result is kept for at least its ttl from the commit, whatever the linger";
    let claim = Claim { linger: scene.leases(1), ..scene.claim_by(1) };
    scene.mine(&claim, rule).await;
    assert_eq!(scene.renew(1, scene.leases(4)).await, WriteOutcome::Applied, "{rule}");
    scene.pass(3).await;
    assert_eq!(scene.complete(scene.commit_by(1, "kept")).await, WriteOutcome::Applied, "{rule}");
    scene.kept_for(&scene.record().await, scene.leases(16), rule);
    scene.pass(14).await;
    assert_eq!(&scene.held(&claim, rule).await.body[..], b"kept", "{rule}");
}

/// What a cache beside the store relies on: never longer than the record is kept.
pub async fn a_result_is_returned_with_its_expiry_if_asked<S: Subject>(scene: Scene<S>) {
    let rule = "a claim with `tell_expiry` is answered with the time at which the result expires";
    for (number, state, after_expiry) in [
        (1, State::Completed, 0),
        (2, State::Failed, 0),
        (3, State::Completed, 8),
        (4, State::Failed, 8),
    ] {
        // Neither the lease nor the linger, the plan or the tombstone is what counts.
        let claim = Claim {
            key: key(number),
            linger: scene.leases(40),
            ttl: scene.leases(80),
            after_expiry: scene.leases(after_expiry),
            ..scene.claim_by(number.into())
        };
        scene.mine(&claim, rule).await;
        let commit = Commit { key: key(number), state, ..scene.commit_by(number.into(), "kept") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    }
    scene.pass(4).await;
    for number in 1..=4 {
        let claim = Claim { key: key(number), tell_expiry: true, ..scene.claim_by(9) };
        let record = scene.held(&claim, rule).await;
        let kept = Scene::<S>::kept(&record);
        let expected = scene.leases(11)..scene.leases(13);
        assert!(expected.contains(&kept), "{rule}: {expected:?}, and not {kept:?} ({record:?})");
        assert!(!record.body.is_empty(), "{rule}: and with the result");
    }
}

/// T9: the record vanished under its living owner.
pub async fn a_vanished_record_is_written_anew<S: Subject>(scene: Scene<S>) {
    let rule =
        "T9: a commit that may adopt writes a vanished record again, with what the claim said";
    let claim = Claim {
        fingerprint: Some(fingerprint(1, 7)),
        after_expiry: scene.leases(3),
        trace: Some("trace".into()),
        ..scene.claim_under(1, CrashPolicy::Resume)
    };
    // An attempt before it, which counts.
    scene.mine(&scene.claim_under(2, CrashPolicy::Resume), rule).await;
    let counted = Release { keep_attempts: true, ..Release::new(KEY, token(2)) };
    assert_eq!(scene.release(counted).await, WriteOutcome::Applied, "{rule}");
    let grant = scene.mine(&claim, rule).await;
    assert_eq!(grant.record.attempts, 2, "{rule}");
    vanish(&scene, 1).await;
    // It is not the time of the commit that is kept.
    scene.advance(Duration::from_millis(20)).await;
    let commit = Commit {
        schema: 5,
        reason: Some(Reason::TooLarge),
        ..scene.adopting_commit(&claim, &grant)
    };
    assert_eq!(scene.complete(commit.clone()).await, WriteOutcome::Adopted, "{rule}");
    let record = scene.record().await;
    assert_eq!(
        (record.state, record.owner, &record.body[..]),
        (State::Completed, token(1), &b"adopted"[..]),
        "{rule}"
    );
    assert_eq!((record.schema, record.reason), (5, Some(Reason::TooLarge)), "{rule}");
    assert_eq!(
        (record.fence, record.attempts),
        (grant.record.fence, grant.record.attempts),
        "{rule}"
    );
    assert_eq!((record.created, &*record.operation), (grant.record.created, OPERATION), "{rule}");
    assert_eq!((&record.namespace, &record.holder), (&claim.namespace, &claim.holder), "{rule}");
    assert_eq!(
        (record.fingerprint, record.policy),
        (Some(fingerprint(1, 7)), CrashPolicy::Resume),
        "{rule}"
    );
    assert_eq!(
        (record.after_expiry, record.trace.as_deref()),
        (grant.record.after_expiry, Some("trace")),
        "{rule}"
    );
    scene.kept_for(&record, scene.leases(16), rule);
    assert_eq!(scene.complete(commit).await, WriteOutcome::AlreadyApplied, "{rule}: sent again");
    scene.held(&scene.claim_by(2), rule).await;
}

/// T9: only if the commit requests it.
pub async fn a_vanished_record_is_not_written_unless_asked<S: Subject>(scene: Scene<S>) {
    let rule = "T9: a commit without adoption writes no vanished record";
    scene.running(CrashPolicy::Hold).await;
    vanish(&scene, 1).await;
    assert_eq!(scene.complete(scene.commit_by(1, "late")).await, WriteOutcome::Gone, "{rule}");
    assert_eq!(scene.read().await, None, "{rule}");
}

/// T9: once the owner's lease has expired, a vanished record may belong to another caller next.
pub async fn an_adoption_ends<S: Subject>(scene: Scene<S>) {
    let rule = "T9: a commit that may adopt writes nothing when its adoption has ended, in the store's time";
    let claim = scene.claim_by(1);
    let grant = scene.mine(&claim, rule).await;
    vanish(&scene, 1).await;
    scene.pass(2).await;
    let renewed = scene.adopting_commit(&claim, &grant);
    let over = Commit { adopt: Some(Arc::new(Adoption::new(claim, &grant))), ..renewed.clone() };
    assert_eq!(
        scene.complete(over).await,
        WriteOutcome::Gone,
        "{rule}: with the lease that was granted"
    );
    assert_eq!(scene.read().await, None, "{rule}");
    assert_eq!(
        scene.complete(renewed).await,
        WriteOutcome::Adopted,
        "{rule}: with the lease as it was renewed"
    );
}

/// T9: a delayed duplicate of a commit arrives after the stored result has expired.
pub async fn an_adoption_brings_no_expired_result_back<S: Subject>(scene: Scene<S>) {
    let rule = "T9: a commit that arrives again when its result has expired writes nothing";
    for body in [Bytes::from_static(b"short"), Bytes::from(vec![7; 20_000])] {
        let claim = scene.claim_by(1);
        let grant = scene.mine(&claim, rule).await;
        let adopt = Some(Arc::new(Adoption::new(claim, &grant)));
        let commit =
            Commit { body, adopt, ..Commit::new(KEY, token(1), Bytes::new(), scene.leases(2)) };
        assert_eq!(scene.complete(commit.clone()).await, WriteOutcome::Applied, "{rule}");
        scene.pass_expiry().await;
        assert_eq!(scene.complete(commit).await, WriteOutcome::Gone, "{rule}");
        assert_eq!(scene.read().await, None, "{rule}");
    }
}

/// T9: only if there is no record.
pub async fn an_adoption_replaces_nobody<S: Subject>(scene: Scene<S>) {
    let rule = "T9: a commit that may adopt is lost where another owner's record is";
    let claim = scene.claim_by(1);
    let grant = scene.mine(&claim, rule).await;
    vanish(&scene, 1).await;
    scene.mine(&scene.claim_by(2), rule).await;
    let commit = scene.adopting_commit(&claim, &grant);
    assert_eq!(scene.complete(commit.clone()).await, WriteOutcome::Lost, "{rule}: running");
    assert_eq!(scene.complete(scene.commit_by(2, "winner")).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.complete(commit).await, WriteOutcome::Lost, "{rule}: completed");
    assert_eq!(&scene.record().await.body[..], b"winner", "{rule}");
}

/// T9: a tombstone says that the record must not come back.
pub async fn an_adoption_opens_no_tombstone<S: Subject>(scene: Scene<S>) {
    let rule = "T9: a commit that may adopt is answered with gone where a tombstone is";
    let claim = scene.claim_by(1);
    let grant = scene.mine(&claim, rule).await;
    scene.pass(2).await;
    let remove = Remove { tombstone: scene.leases(8), ..Remove::new(KEY, token(1)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    assert_eq!(
        scene.complete(scene.adopting_commit(&claim, &grant)).await,
        WriteOutcome::Gone,
        "{rule}"
    );
    assert_eq!(scene.record().await.state, State::Tombstone, "{rule}");
}

/// T9 does not matter while the record is there.
pub async fn an_adopting_commit_is_a_commit<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a commit that may adopt is an ordinary one while the record is there";
    let claim = scene.claim_by(1);
    let grant = scene.mine(&claim, rule).await;
    assert_eq!(
        scene.complete(scene.adopting_commit(&claim, &grant)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    assert_eq!(
        scene.complete(scene.adopting_commit(&claim, &grant)).await,
        WriteOutcome::AlreadyApplied,
        "{rule}"
    );
}

/// Makes the record vanish. The suite cannot make a store lose one, but an owner's release has the
/// same result.
async fn vanish<S: Subject>(scene: &Scene<S>, caller: u128) {
    let released = scene.release(Release::new(KEY, token(caller))).await;
    assert_eq!(released, WriteOutcome::Applied, "T10: an owner releases its claim");
    assert_eq!(scene.read().await, None, "T10: a release leaves nothing");
}
