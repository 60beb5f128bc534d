//! Claims of absent, held and finished records (T1–T4, rule 5).

use std::time::Duration;

use super::Scene;
use super::scene::{KEY, NAMESPACE, OPERATION, fingerprint, key, token};
use crate::key::KeyHash;
use crate::store::{
    Claim, ClaimOutcome, CrashPolicy, Record, Release, State, Store as _, WriteOutcome,
};
use crate::testing::Subject;

/// Longer than 64 claims take on any store.
const RACE: Duration = Duration::from_secs(3_600);

/// T1: there is no record, and the caller owns a new one with the values of its claim.
pub async fn a_first_claim_is_granted<S: Subject>(scene: Scene<S>) {
    let rule = "T1: a claim of no record is granted and writes what was asked for";
    assert_eq!(scene.read().await, None, "the store under test must be empty");
    let claim = Claim {
        fingerprint: Some(fingerprint(1, 7)),
        policy: CrashPolicy::Verify,
        schema: 5,
        after_expiry: scene.leases(3),
        trace: Some("00-trace-01".into()),
        ..scene.claim_by(1)
    };
    let grant = scene.mine(&claim, rule).await;
    let record = scene.record().await;
    for record in [&grant.record, &record] {
        assert_eq!(record.key, KEY, "{rule}");
        assert_eq!(record.state, State::InProgress, "{rule}");
        assert_eq!(record.owner, token(1), "{rule}");
        assert_eq!(&*record.operation, OPERATION, "{rule}");
        assert_eq!(record.fingerprint, Some(fingerprint(1, 7)), "{rule}");
        assert_eq!(record.policy, CrashPolicy::Verify, "{rule}");
        assert_eq!(record.attempts, 1, "{rule}");
        assert_eq!(record.reason, None, "{rule}");
        assert_eq!(record.linger, scene.leases(16), "{rule}");
        assert_eq!(record.after_expiry, scene.leases(3), "{rule}");
        assert_eq!((record.schema, record.checkpoints), (5, 0), "{rule}");
        assert_eq!((&*record.namespace, &*record.holder), (NAMESPACE, "conformance/1"), "{rule}");
        assert_eq!(record.trace.as_deref(), Some("00-trace-01"), "{rule}");
        assert!(record.body.is_empty(), "{rule}");
        assert!(record.is_running(), "{rule}");
        assert!(record.created <= record.read_at, "{rule}");
        scene.kept_for(record, scene.leases(17), rule);
    }
    assert_eq!((grant.taken_over, record.taken_over), (None, None), "{rule}");
}

/// One record per key.
pub async fn keys_are_independent<S: Subject>(scene: Scene<S>) {
    let rule = "a record of one key is not in the way of another key";
    let mut neighbour = *KEY.as_bytes();
    neighbour[31] += 1;
    scene.running(CrashPolicy::Hold).await;
    for (caller, other) in [(2, key(1)), (3, KeyHash::from_bytes(neighbour))] {
        scene.mine(&Claim { key: other, ..scene.claim_by(caller) }, rule).await;
    }
    assert_eq!(scene.complete(scene.commit_by(1, "one")).await, WriteOutcome::Applied, "{rule}");
    for (caller, other) in [(2, key(1)), (3, KeyHash::from_bytes(neighbour))] {
        let record = scene.read_key(other).await.expect(rule);
        assert_eq!(
            (record.key, record.state, record.owner),
            (other, State::InProgress, token(caller)),
            "{rule}"
        );
    }
}

/// T3: a running claim is held against every other caller, whatever the policies.
pub async fn a_running_claim_is_held<S: Subject>(scene: Scene<S>) {
    let rule = "T3: a claim whose lease runs is held";
    scene.running(CrashPolicy::Retry).await;
    let before = scene.record().await;
    for policy in [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify, CrashPolicy::Hold]
    {
        let record = scene.held(&scene.claim_under(2, policy), rule).await;
        assert_eq!((record.state, record.owner), (State::InProgress, token(1)), "{rule}");
        assert!(record.is_running(), "{rule}");
    }
    scene.unchanged(&before, rule).await;
}

/// T4: the response was lost, and the claim is sent again.
pub async fn a_repeated_claim_is_granted_again<S: Subject>(scene: Scene<S>) {
    let rule = "T4: a claim by the token that owns it is granted again, and nothing changes";
    let claim = scene.claim_by(1);
    scene.mine(&claim, rule).await;
    let before = scene.record().await;
    let longer = Claim { lease: scene.leases(8), linger: scene.leases(64), ..claim };
    let grant = scene.mine(&longer, rule).await;
    assert_eq!(
        (grant.record.attempts, grant.record.fence, grant.taken_over),
        (1, before.fence, None),
        "{rule}"
    );
    scene.unchanged(&before, rule).await;
}

/// T4, also when the lease has expired: the claim is not put in doubt by its own token.
pub async fn a_repeated_claim_is_granted_after_its_lease<S: Subject>(scene: Scene<S>) {
    let rule = "T4: a claim by the token that owns it is granted again also when the lease has \
        expired";
    for policy in [CrashPolicy::Hold, CrashPolicy::Retry] {
        let grant = scene.orphaned(policy).await;
        let before = scene.record().await;
        let again = scene.mine(&scene.claim_under(1, policy), rule).await;
        assert_eq!((again.record.attempts, again.record.fence), (1, grant.record.fence), "{rule}");
        assert_eq!(again.taken_over, None, "{rule}");
        scene.unchanged(&before, rule).await;
        assert_eq!(
            scene.release(Release::new(KEY, token(1))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
}

/// T2: a finished record is returned with its body to every caller, also to its owner and with
/// another fingerprint.
pub async fn an_answer_is_replayed<S: Subject>(scene: Scene<S>) {
    let rule = "T2: a claim of a finished record returns it and changes nothing";
    for state in [State::Completed, State::Failed] {
        let claim = Claim {
            fingerprint: Some(fingerprint(1, 7)),
            ..scene.claim_under(1, CrashPolicy::Retry)
        };
        scene.mine(&claim, "T1: a claim of no record is granted").await;
        scene
            .complete(crate::store::Commit { state, schema: 3, ..scene.commit_by(1, "first") })
            .await;
        let before = scene.record().await;
        scene.pass(2).await;
        for (caller, bits) in [(1, 7), (2, 7), (3, 8)] {
            let claim = Claim {
                fingerprint: Some(fingerprint(1, bits)),
                ..scene.claim_under(caller, CrashPolicy::Retry)
            };
            let record = scene.held(&claim, rule).await;
            assert_eq!(
                (record.state, record.schema, &record.body[..]),
                (state, 3, &b"first"[..]),
                "{rule}"
            );
            assert_eq!(
                (record.owner, record.fingerprint),
                (token(1), Some(fingerprint(1, 7))),
                "{rule}"
            );
        }
        let after = scene.record().await;
        assert!(
            after.expires.saturating_duration_since(before.expires) < scene.leases(1),
            "{rule}: expiry stays"
        );
        assert_eq!(after.attempts, before.attempts, "{rule}");
        scene.pass_expiry().await;
    }
}

/// Rule 5: a claim that was transmitted twice and arrives after its release can be released again.
pub async fn a_late_duplicate_claim_can_be_released_again<S: Subject>(scene: Scene<S>) {
    let rule =
        "rule 5: a claim that arrives again after its release is released by a second release";
    for keep_attempts in [false, true] {
        let claim = scene.claim_by(1);
        let release = Release { keep_attempts, ..Release::new(KEY, token(1)) };
        scene.mine(&claim, rule).await;
        assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
        scene.mine(&claim, rule).await;
        scene.held(&scene.claim_by(2), rule).await;
        assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
        scene.mine(&scene.claim_by(2), rule).await;
        assert_eq!(
            scene.release(Release::new(KEY, token(2))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
}

/// Rule 5: a late duplicate that meets another owner does not affect it.
pub async fn a_late_duplicate_claim_harms_nobody<S: Subject>(scene: Scene<S>) {
    let rule = "rule 5: a claim that arrives again after its release does not touch the next owner";
    let claim = scene.claim_by(1);
    scene.mine(&claim, rule).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    scene.mine(&scene.claim_by(2), rule).await;
    let before = scene.record().await;
    scene.held(&claim, rule).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Lost, "{rule}");
    scene.unchanged(&before, rule).await;
}

/// T1 from R: the count of attempts continues.
pub async fn a_released_record_is_claimed_with_its_attempts<S: Subject>(scene: Scene<S>) {
    let rule =
        "T1: a released record is claimed; created stays, fence and attempts grow, the rest is new";
    let released = scene.released().await;
    scene.pass(1).await;
    let claim =
        Claim { fingerprint: Some(fingerprint(1, 9)), ..scene.claim_under(2, CrashPolicy::Retry) };
    let grant = scene.mine(&claim, rule).await;
    let Record { state, owner, attempts, created, policy, .. } = grant.record;
    assert_eq!((state, owner, attempts), (State::InProgress, token(2), 2), "{rule}");
    assert_eq!((created, policy), (released.created, CrashPolicy::Retry), "{rule}");
    assert_eq!(grant.record.fingerprint, Some(fingerprint(1, 9)), "{rule}");
    assert!(grant.record.fence > released.fence, "{rule}");
    assert!(grant.record.is_running(), "{rule}");
    assert_eq!(grant.taken_over, None, "{rule}: it was not taken over");
}

/// T1 from no record, after a release that keeps nothing.
pub async fn a_release_forgets_the_attempts_unless_asked<S: Subject>(scene: Scene<S>) {
    let rule = "T10: a release that keeps no attempts leaves nothing";
    scene.running(CrashPolicy::Hold).await;
    assert_eq!(scene.release(Release::new(KEY, token(1))).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.read().await, None, "{rule}");
    assert_eq!(scene.mine(&scene.claim_by(2), rule).await.record.attempts, 1, "{rule}");
}

/// T10: nothing began, so no attempt counts, and no earlier one is lost.
pub async fn a_claim_given_back_unused_is_no_attempt<S: Subject>(scene: Scene<S>) {
    let rule = "T10: a claim that is released unused counts as no attempt, and leaves those before \
        it counted";
    let unused = |caller| Release::unused(KEY, token(caller));
    scene.running(CrashPolicy::Retry).await;
    assert_eq!(scene.release(unused(1)).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.read().await, None, "{rule}: it was the first");
    assert_eq!(scene.release(unused(1)).await, WriteOutcome::Gone, "{rule}: sent again");

    let released = scene.released().await;
    let claim = scene.claim_by(2);
    assert_eq!(scene.mine(&claim, rule).await.record.attempts, 2, "{rule}");
    for expected in [WriteOutcome::Applied, WriteOutcome::AlreadyApplied] {
        assert_eq!(scene.release(unused(2)).await, expected, "{rule}");
        let record = scene.record().await;
        assert_eq!(
            (record.state, record.attempts, record.created),
            (State::Released, 1, released.created),
            "{rule}"
        );
    }
    // A duplicate of the claim arrives late and is released as well.
    assert_eq!(scene.mine(&claim, rule).await.record.attempts, 2, "{rule}");
    assert_eq!(scene.release(unused(2)).await, WriteOutcome::Applied, "{rule}");
    let next = scene.mine(&scene.claim_under(3, CrashPolicy::Retry), rule).await;
    assert_eq!((next.record.attempts, next.taken_over), (2, None), "{rule}");

    scene.pass(2).await;
    let taken_over = scene.mine(&scene.claim_under(4, CrashPolicy::Retry), rule).await;
    assert_eq!(taken_over.record.attempts, 3, "{rule}");
    for _ in 0..2 {
        assert_eq!(scene.release(unused(4)).await, WriteOutcome::Applied, "{rule}");
        let record = scene.record().await;
        assert!(record.is_orphaned(), "{rule}: what was taken over stays for the next");
        assert_eq!((record.owner, record.attempts), (token(4), 2), "{rule}: once");
    }
    let next = scene.mine(&scene.claim_under(5, CrashPolicy::Retry), rule).await;
    assert_eq!((next.record.attempts, next.taken_over), (3, Some(State::InProgress)), "{rule}");
}

/// One `Granted` among 64 concurrent claims.
pub async fn one_of_64_concurrent_claims_is_granted<S: Subject>(scene: Scene<S>) {
    let rule = "T1: of 64 claims at once one is granted, and the others see its owner";
    let claims = (1..=64).map(|caller| scene.claim_by(caller)).collect();
    race(&scene, claims, rule).await;
}

/// Sends a claim and returns the response. A claim that the store refuses because it is busy is
/// sent again.
async fn claimed<S: Subject>(scene: &Scene<S>, claim: &Claim) -> ClaimOutcome {
    for _ in 0..20 {
        match scene.store().claim(claim.clone()).await {
            Ok(claimed) => return claimed,
            Err(error) => assert!(error.is_transient(), "the store failed: {error} ({error:?})"),
        }
    }
    panic!("the store stays busy")
}

/// Sends all claims concurrently. Exactly one may be granted, and the record must be its own.
pub(super) async fn race<S: Subject>(scene: &Scene<S>, mut claims: Vec<Claim>, rule: &str) {
    // No lease may expire while the other claims are in flight.
    for claim in &mut claims {
        claim.lease = RACE;
    }
    scene.is_timeless();
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(claims.len()));
    let tasks: Vec<_> = claims
        .into_iter()
        .map(|claim| {
            let (scene, start) = (scene.clone(), std::sync::Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                (claim.token, claimed(&scene, &claim).await)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("the store panicked"));
    }
    let winners: Vec<_> =
        answers.iter().filter(|(_, claimed)| matches!(claimed, ClaimOutcome::Granted(_))).collect();
    assert_eq!(winners.len(), 1, "{rule}");
    let winner = winners[0].0;
    for (_, claimed) in &answers {
        let (ClaimOutcome::Existing(record)
        | ClaimOutcome::Granted(crate::store::Grant { record, .. })) = claimed;
        assert_eq!((record.owner, record.state), (winner, State::InProgress), "{rule}");
    }
    assert_eq!(scene.record().await.owner, winner, "{rule}");
}
