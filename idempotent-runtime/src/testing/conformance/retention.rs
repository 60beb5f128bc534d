//! Retention: the time for which records are kept, and the tombstones that they leave (T13, rule
//! 2).

use std::time::Duration;

use super::Scene;
use super::scene::{KEY, key, token};
use crate::store::{
    AdminOutcome, Claim, Commit, CrashPolicy, Park, Reason, Release, Remove, Resolve,
    ResolveAnswer, Scan, State, Store as _, WriteOutcome,
};
use crate::testing::Subject;

/// T13: an expired record is absent, even while it is still in the store.
pub async fn an_expired_result_is_absent<S: Subject>(scene: Scene<S>) {
    let rule = "T13: an expired record is absent for every caller, whether or not it was removed";
    let record = scene.completed(State::Completed).await;
    scene.pass(14).await;
    assert!(scene.read().await.is_some(), "T13: a record is kept until it expires");
    scene.pass_expiry().await;
    assert_eq!(scene.read().await, None, "{rule} (read)");
    is_absent(&scene, rule).await;
    let grant = scene.mine(&scene.claim_by(1), rule).await;
    assert_eq!((grant.record.attempts, grant.taken_over), (1, None), "{rule} (claim)");
    assert!(grant.record.created > record.created, "{rule}: it is a new record");
}

/// T13 for unfinished records.
pub async fn an_expired_unfinished_record_is_absent<S: Subject>(scene: Scene<S>) {
    let rule = "T13: an expired record in progress or in doubt is absent for every caller, its \
        owner included";
    for parked in [false, true] {
        scene.running(CrashPolicy::Retry).await;
        if parked {
            assert_eq!(
                scene.park(Park::own(KEY, token(1), Reason::Error)).await,
                WriteOutcome::Applied,
                "{rule}"
            );
        }
        scene.pass_expiry().await;
        is_absent(&scene, rule).await;
        let grant = scene.mine(&scene.claim_under(2, CrashPolicy::Retry), rule).await;
        assert_eq!((grant.record.attempts, grant.taken_over), (1, None), "{rule} (claim)");
        assert_eq!(
            scene.release(Release::new(KEY, token(2))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
}

/// T13: any operation may be the first on a record that has expired and was not removed.
pub async fn no_operation_needs_another_to_notice_the_expiry<S: Subject>(scene: Scene<S>) {
    let rule = "T13: an expired record is absent for the first operation that meets it";
    // The last two operate on a record in doubt.
    for operation in 0..12 {
        let claim = Claim { linger: scene.leases(1), ..scene.claim_under(1, CrashPolicy::Retry) };
        scene.mine(&claim, rule).await;
        if operation >= 10 {
            assert_eq!(
                scene.park(Park::own(KEY, token(1), Reason::Error)).await,
                WriteOutcome::Applied,
                "{rule}"
            );
        }
        scene.pass_expiry().await;
        let written = match operation {
            0 | 11 => scene.complete(scene.commit_by(1, "late")).await,
            1 => scene.renew(1, scene.leases(8)).await,
            2 => scene.checkpoint(1, 0, "late").await,
            3 => scene.abandon(1, Reason::Dropped).await,
            4 => scene.park(Park::own(KEY, token(1), Reason::Dropped)).await,
            5 => scene.park(Park::orphan(KEY, token(1))).await,
            6 => scene.release(Release::new(KEY, token(1))).await,
            7 => scene.fence(1).await.map_or(WriteOutcome::Gone, |_| WriteOutcome::Applied),
            8 => scene.watch().await.record.map_or(WriteOutcome::Gone, |_| WriteOutcome::Applied),
            9 => removed(scene.remove(Remove::new(KEY, token(1))).await),
            _ => removed(
                scene
                    .resolve(Resolve::new(KEY, token(1), token(9), ResolveAnswer::NotExecuted))
                    .await,
            ),
        };
        assert_eq!(written, WriteOutcome::Gone, "{rule} (operation {operation} of this case)");
        assert_eq!(scene.read().await, None, "{rule} (operation {operation} of this case)");
    }
    let claim = Claim { linger: scene.leases(1), ..scene.claim_by(1) };
    let grant = scene.mine(&claim, rule).await;
    scene.pass_expiry().await;
    assert_eq!(
        scene.complete(scene.adopting_commit(&claim, &grant)).await,
        WriteOutcome::Adopted,
        "{rule} (adoption)"
    );
}

fn removed(changed: AdminOutcome) -> WriteOutcome {
    if changed == AdminOutcome::Absent { WriteOutcome::Gone } else { WriteOutcome::Applied }
}

/// T13: the attempts of a released record expire too.
pub async fn expired_attempts_are_forgotten<S: Subject>(scene: Scene<S>) {
    let rule = "T13: the attempts of a released record are forgotten when it expires";
    let claim = Claim { after_expiry: scene.leases(8), ..scene.claim_by(1) };
    scene.mine(&claim, rule).await;
    let release = Release { keep_attempts: true, ..Release::new(KEY, token(1)) };
    assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
    scene.pass_expiry().await;
    assert_eq!(scene.read().await, None, "{rule}, without a tombstone");
    assert_eq!(scene.mine(&scene.claim_by(2), rule).await.record.attempts, 1, "{rule}");
}

/// Rule 2: another `ttl` at the reader neither takes a record over nor removes it.
pub async fn the_records_own_linger_decides<S: Subject>(scene: Scene<S>) {
    let rule = "rule 2: how long an unfinished record is kept is its own figure, not the reader's";
    let patient = Claim { linger: scene.leases(16), ..scene.claim_by(1) };
    let hasty = |caller| Claim { linger: scene.leases(1), ..scene.claim_by(caller) };
    scene.mine(&patient, rule).await;
    scene.pass(6).await;
    let held = scene.held(&hasty(2), rule).await;
    assert_eq!((held.state, held.owner), (State::InDoubt, token(1)), "{rule}: not forgotten");
    scene.pass(6).await;
    let held = scene.held(&hasty(3), rule).await;
    assert_eq!((held.state, held.linger), (State::InDoubt, scene.leases(16)), "{rule}");
    scene.pass_expiry().await;
    scene.mine(&hasty(4), rule).await;
    scene.pass_expiry().await;
    let reader = Claim { linger: scene.leases(64), ..scene.claim_by(5) };
    assert_eq!(scene.mine(&reader, rule).await.taken_over, None, "{rule}: not kept any longer");
}

/// The longest times that the engine allows, all together.
pub async fn a_hundred_years_are_a_time<S: Subject>(scene: Scene<S>) {
    let rule =
        "a lease, a linger, a retention and a tombstone of a hundred years are kept as they are";
    let century = Duration::from_secs(100 * 365 * 86_400);
    let claim = Claim {
        lease: century,
        linger: century,
        ttl: century,
        after_expiry: century,
        ..scene.claim_under(1, CrashPolicy::Verify)
    };
    let grant = scene.mine(&claim, rule).await;
    assert!(grant.record.is_running(), "{rule}");
    assert_eq!(scene.record().await.linger, century, "{rule}");
    assert_eq!(scene.renew(1, century).await, WriteOutcome::Applied, "{rule}");
    let record = scene.held(&scene.claim_by(2), rule).await;
    let left = record.lease_until.saturating_duration_since(record.read_at) + scene.leases(1);
    assert!(left > century, "{rule}: the lease runs for {left:?}");
    scene.kept_for(&record, century * 2, rule);
    let park = Park { ask_again_after: century, ..Park::own(KEY, token(1), Reason::Error) };
    assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(
        scene.held(&scene.claim_under(2, CrashPolicy::Verify), rule).await.state,
        State::InDoubt,
        "{rule}"
    );
    let commit = Commit { ttl: century, ..scene.commit_by(1, "first") };
    assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    scene.kept_for(&scene.record().await, century, rule);
    assert_eq!(&scene.held(&scene.claim_by(2), rule).await.body[..], b"first", "{rule}");
    let remove = Remove { tombstone: century, ..Remove::new(KEY, token(1)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    scene.kept_for(&scene.record().await, century, rule);
    scene.purge().await;
    assert_eq!(scene.record().await.state, State::Tombstone, "{rule}");
}

/// T13 with `after_expiry`: late retries are refused for a while.
pub async fn an_expired_record_leaves_its_tombstone<S: Subject>(scene: Scene<S>) {
    let rule = "T13: an expired record that asks for it is a tombstone for that long, and absent afterwards";
    for state in [State::Completed, State::Failed, State::InDoubt, State::InProgress] {
        let rule = format!("{rule} ({state:?})");
        let claim =
            Claim { after_expiry: scene.leases(8), ..scene.claim_under(1, CrashPolicy::Retry) };
        let grant = scene.mine(&claim, &rule).await;
        match state {
            State::InProgress => {}
            State::InDoubt => {
                assert_eq!(
                    scene.park(Park::own(KEY, token(1), Reason::Error)).await,
                    WriteOutcome::Applied,
                    "{rule}"
                );
            }
            _ => {
                let commit = Commit { state, ..scene.commit_by(1, "first") };
                assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
            }
        }
        scene.pass_expiry().await;
        let tombstone = scene.held(&scene.claim_under(2, CrashPolicy::Retry), &rule).await;
        assert_eq!(
            (tombstone.state, tombstone.body.len(), tombstone.reason),
            (State::Tombstone, 0, None),
            "{rule}"
        );
        assert_eq!(scene.record().await.state, State::Tombstone, "{rule}");
        scene.refuses_owner(1, WriteOutcome::Gone, &rule).await;
        assert_eq!(
            scene.complete(scene.adopting_commit(&claim, &grant)).await,
            WriteOutcome::Gone,
            "{rule}"
        );
        scene.purge().await;
        scene.pass(5).await;
        assert_eq!(scene.record().await.state, State::Tombstone, "{rule}: purging leaves it");
        scene.pass_expiry().await;
        assert_eq!(scene.read().await, None, "{rule}");
        scene.purge().await;
        assert_eq!(scene.mine(&scene.claim_by(3), &rule).await.record.attempts, 1, "{rule}");
        assert_eq!(
            scene.release(Release::new(KEY, token(3))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
}

/// Rule 2: a purge removes expired records and nothing else.
pub async fn a_purge_takes_only_what_has_expired<S: Subject>(scene: Scene<S>) {
    let rule = "rule 2: a purge never takes a record before its expiry";
    let claim = |number: u8| Claim { key: key(number), ..scene.claim_by(number.into()) };
    for number in 1..=4 {
        scene.mine(&claim(number), rule).await;
    }
    scene.mine(&Claim { linger: scene.leases(1), ..claim(5) }, rule).await;
    assert_eq!(
        scene.park(Park { key: key(2), ..Park::own(KEY, token(2), Reason::Error) }).await,
        WriteOutcome::Applied
    );
    assert_eq!(
        scene.complete(Commit { key: key(3), ..scene.commit_by(3, "kept") }).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    let short = Commit { key: key(4), ttl: scene.leases(1), ..scene.commit_by(4, "short") };
    let release = Release { keep_attempts: true, ..Release::new(key(5), token(5)) };
    assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(scene.complete(short).await, WriteOutcome::Applied, "{rule}");
    scene.pass(4).await;
    scene.purge().await;
    scene.purge().await;
    for (number, state) in [(1, State::InProgress), (2, State::InDoubt), (3, State::Completed)] {
        assert_eq!(
            scene.read_key(key(number)).await.map(|record| record.state),
            Some(state),
            "{rule}"
        );
    }
    assert_eq!(scene.read_key(key(5)).await, None, "{rule}");
    scene.pass(20).await;
    scene.purge().await;
    for number in 1..=5 {
        assert_eq!(
            scene.read_key(key(number)).await,
            None,
            "T13: what has expired is absent after a purge"
        );
    }
}

/// A purge does its work, and no more of it at once than it was asked for.
pub async fn a_purge_removes_what_has_expired_up_to_its_limit<S: Subject>(scene: Scene<S>) {
    /// The contract does not say how many purges it takes, only that they come to an end.
    const PURGES: usize = 1_000;
    let rule = "a purge removes at most as many records as its limit, and repeated ones all that \
        have expired";
    for number in 1..=6_u8 {
        let claim = Claim { key: key(number), ..scene.claim_by(number.into()) };
        // One is kept.
        let ttl = scene.leases(if number == 6 { 64 } else { 1 });
        scene.mine(&Claim { ttl, ..claim }, rule).await;
        let commit = Commit { key: key(number), ttl, ..scene.commit_by(number.into(), "short") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    }
    scene.pass(3).await;
    let none = scene.purge_at_most(0).await;
    assert_eq!(none.removed, 0, "{rule}: none at all");
    let (mut removed, mut rounds) = (0, 0);
    // A store may look at records that it then puts off, as often as it likes.
    while scene.store().capabilities().needs_purging && removed < 5 {
        let purged = scene.purge_at_most(2).await;
        assert!(purged.removed <= 2, "{rule}: {purged:?}");
        (removed, rounds) = (removed + purged.removed, rounds + 1);
        assert!(rounds <= PURGES, "{rule}: five, and not {removed} after {rounds} purges");
    }
    let more = scene.purge_at_most(2).await.removed;
    assert!(more <= 2 && removed + more <= 5, "{rule}: five, and not {more} after {removed}");
    assert!(scene.read_key(key(6)).await.is_some(), "{rule}, and nothing else");
    assert_eq!(scene.list(Scan::default(), rule).await.len(), 1, "{rule}");
}

/// Asserts that every operation except a claim finds no record.
async fn is_absent<S: Subject>(scene: &Scene<S>, rule: &str) {
    let listed = scene.list(Scan::default(), rule).await;
    assert_eq!(listed.len(), 0, "{rule} (scan)");
    scene.refuses_owner(1, WriteOutcome::Gone, rule).await;
    assert_eq!(
        scene.park(Park::orphan(KEY, token(1))).await,
        WriteOutcome::Gone,
        "{rule} (park by an observer)"
    );
    let resolve = Resolve::new(KEY, token(1), token(9), ResolveAnswer::NotExecuted);
    assert_eq!(scene.resolve(resolve).await, AdminOutcome::Absent, "{rule} (resolve)");
    for force in [false, true] {
        let remove = Remove { force, tombstone: scene.leases(4), ..Remove::new(KEY, token(1)) };
        assert_eq!(scene.remove(remove).await, AdminOutcome::Absent, "{rule} (remove)");
    }
    assert_eq!(scene.watch().await.record, None, "{rule} (watch)");
    assert_eq!(scene.read().await, None, "{rule} (read)");
}
