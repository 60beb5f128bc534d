//! Operations of callers that are not the owner: resolve, remove, list (T12, T14).

use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use super::scene::{KEY, key, token};
use crate::clock::Timestamp;
use crate::engine::Idempotency;
use crate::key::KeyHash;
use crate::store::{
    Abandon, AdminOutcome, Claim, Commit, CrashPolicy, Cursor, Only, Park, Reason, Release, Remove,
    Resolve, ResolveAnswer, Scan, State, Store as _, StoreErrorKind, WriteOutcome,
};
use crate::testing::Subject;

const DAY: Duration = Duration::from_secs(86_400);

fn finished<S: Subject>(scene: &Scene<S>, state: State) -> Resolve {
    let body = Bytes::from_static(b"resolved");
    Resolve::new(
        KEY,
        token(1),
        token(9),
        ResolveAnswer::Finished { state, body, schema: 5, ttl: scene.leases(16) },
    )
}

fn not_executed() -> Resolve {
    Resolve::new(KEY, token(1), token(9), ResolveAnswer::NotExecuted)
}

/// T12: the operator says that it happened.
pub async fn a_doubt_is_resolved_with_an_answer<S: Subject>(scene: Scene<S>) {
    let rule = "T12: an answer to a record in doubt is stored under a token of its own, with the fence counted up";
    for state in [State::Completed, State::Failed] {
        let doubt = scene.in_doubt(CrashPolicy::Hold).await;
        assert_eq!(scene.resolve(finished(&scene, state)).await, AdminOutcome::Applied, "{rule}");
        let record = scene.record().await;
        assert_eq!((record.state, record.owner), (state, token(9)), "{rule}");
        assert_eq!((record.reason, record.schema), (Some(Reason::Resolved), 5), "{rule}");
        assert_eq!((&record.body[..], record.attempts), (&b"resolved"[..], 1), "{rule}");
        assert!(record.fence > doubt.fence, "{rule}");
        scene.kept_for(&record, scene.leases(16), rule);
        assert_eq!(&scene.held(&scene.claim_by(2), rule).await.body[..], b"resolved", "{rule}");
        scene.pass_expiry().await;
    }
}

/// T12: the operator says that it did not happen.
pub async fn a_doubt_is_resolved_as_not_executed<S: Subject>(scene: Scene<S>) {
    let rule = "T12: the answer that nothing happened removes the record, and the next call runs";
    scene.in_doubt(CrashPolicy::Hold).await;
    assert_eq!(scene.resolve(not_executed()).await, AdminOutcome::Applied, "{rule}");
    assert_eq!(scene.read().await, None, "{rule}");
    scene.refuses_owner(1, WriteOutcome::Gone, rule).await;
    let grant = scene.mine(&scene.claim_by(2), rule).await;
    assert_eq!((grant.record.attempts, grant.taken_over), (1, None), "{rule}");
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
}

/// Rule 1, T12: the operator has decided.
pub async fn a_late_owner_does_not_undo_an_answer<S: Subject>(scene: Scene<S>) {
    let rule = "T12: after an operator's answer every write of the late owner is lost";
    scene.in_doubt(CrashPolicy::Retry).await;
    assert_eq!(
        scene.resolve(finished(&scene, State::Failed)).await,
        AdminOutcome::Applied,
        "{rule}"
    );
    let before = scene.record().await;
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
    scene.unchanged(&before, rule).await;
}

/// T12: the same resolution is sent again, because its response was lost.
pub async fn an_answer_sent_twice_counts_once<S: Subject>(scene: Scene<S>) {
    let rule = "T12: an answer that is sent again is applied already; one by another operator is a \
        conflict";
    scene.in_doubt(CrashPolicy::Hold).await;
    assert_eq!(
        scene.resolve(finished(&scene, State::Completed)).await,
        AdminOutcome::Applied,
        "{rule}"
    );
    let before = scene.record().await;
    assert_eq!(
        scene.resolve(finished(&scene, State::Completed)).await,
        AdminOutcome::Applied,
        "{rule}"
    );
    let other = Resolve { token: token(8), ..finished(&scene, State::Failed) };
    assert_eq!(scene.resolve(other).await, AdminOutcome::Conflict, "{rule}");
    scene.unchanged(&before, rule).await;
}

/// T12: the operator was wrong, and corrects the answer.
pub async fn an_operators_answer_is_corrected<S: Subject>(scene: Scene<S>) {
    let rule = "T12: an operator's answer is corrected as a doubt is answered, and stays an answer";
    let correction = |scene: &Scene<S>, observed: u128, caller: u128| Resolve {
        observed: token(observed),
        token: token(caller),
        ..finished(scene, State::Failed)
    };
    scene.in_doubt(CrashPolicy::Hold).await;
    let ResolveAnswer::Finished { schema, ttl, .. } = finished(&scene, State::Completed).answer
    else {
        return;
    };
    let wrong = Bytes::from_static(b"of the wrong shape");
    let wrong = ResolveAnswer::Finished { state: State::Completed, body: wrong, schema, ttl };
    assert_eq!(
        scene.resolve(Resolve::new(KEY, token(1), token(8), wrong)).await,
        AdminOutcome::Applied,
        "{rule}"
    );
    let before = scene.record().await;
    scene.pass(4).await;
    for refused in [
        Resolve { observed: token(8), ..not_executed() },
        correction(&scene, 1, 9),
        correction(&scene, 7, 9),
    ] {
        assert_eq!(scene.resolve(refused).await, AdminOutcome::Conflict, "{rule}");
    }
    scene.unchanged(&before, rule).await;
    for _ in 0..2 {
        assert_eq!(
            scene.resolve(correction(&scene, 8, 9)).await,
            AdminOutcome::Applied,
            "{rule}: also when it is sent again"
        );
        let record = scene.record().await;
        assert_eq!(
            (record.state, record.owner, record.reason),
            (State::Failed, token(9), Some(Reason::Resolved)),
            "{rule}"
        );
        assert_eq!((&record.body[..], record.attempts), (&b"resolved"[..], 1), "{rule}");
        assert!(record.fence > before.fence, "{rule}");
        scene.kept_for(&record, scene.leases(16), rule);
    }
    let corrected = scene.record().await;
    assert_eq!(
        scene.resolve(correction(&scene, 8, 10)).await,
        AdminOutcome::Conflict,
        "{rule}: another operator was faster"
    );
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
    scene.unchanged(&corrected, rule).await;
    assert_eq!(&scene.held(&scene.claim_by(2), rule).await.body[..], b"resolved", "{rule}");
}

/// S2: an operator cannot correct what an owner has stored.
pub async fn an_owners_result_is_never_corrected<S: Subject>(scene: Scene<S>) {
    let rule = "S2: the result of an owner cannot be changed, whoever asks and for whatever reason";
    for state in [State::Completed, State::Failed] {
        for reason in [None, Some(Reason::TooLarge), Some(Reason::NotEncodable)] {
            scene.running(CrashPolicy::Hold).await;
            let commit = Commit { state, reason, ..scene.commit_by(1, "first") };
            assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
            let before = scene.record().await;
            for answer in [
                finished(&scene, State::Completed),
                finished(&scene, State::Failed),
                not_executed(),
            ] {
                assert_eq!(scene.resolve(answer).await, AdminOutcome::Conflict, "{rule}");
            }
            scene.unchanged(&before, rule).await;
            scene.pass_expiry().await;
        }
    }
}

/// T12: only a record in X is resolved, and only as it was observed.
pub async fn only_a_doubt_is_resolved<S: Subject>(scene: Scene<S>) {
    let rule = "T12: only a record in doubt is resolved";
    for answer in [finished(&scene, State::Completed), not_executed()] {
        assert_eq!(scene.resolve(answer.clone()).await, AdminOutcome::Absent, "{rule}: no record");
        scene.running(CrashPolicy::Hold).await;
        let before = scene.record().await;
        assert_eq!(scene.resolve(answer.clone()).await, AdminOutcome::Running, "{rule}: running");
        scene.pass(2).await;
        assert_eq!(scene.resolve(answer.clone()).await, AdminOutcome::Conflict, "{rule}: orphaned");
        scene.unchanged(&before, rule).await;
        assert_eq!(
            scene.complete(scene.commit_by(1, "first")).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        assert_eq!(
            scene.resolve(answer.clone()).await,
            AdminOutcome::Conflict,
            "{rule}: completed"
        );
        assert_eq!(&scene.record().await.body[..], b"first", "{rule}");
        scene.pass_expiry().await;
        scene.released().await;
        assert_eq!(scene.resolve(answer.clone()).await, AdminOutcome::Conflict, "{rule}: released");
        scene.pass_expiry().await;
        scene.buried(4).await;
        assert_eq!(scene.resolve(answer).await, AdminOutcome::Absent, "{rule}: tombstone");
        assert_eq!(scene.record().await.state, State::Tombstone, "{rule}");
        scene.pass_expiry().await;
    }
}

/// T12: guarded by the observed token.
pub async fn an_answer_to_another_owner_is_a_conflict<S: Subject>(scene: Scene<S>) {
    let rule = "T12: an answer about another owner than the one on the record is a conflict";
    let before = scene.in_doubt(CrashPolicy::Verify).await;
    for answer in [finished(&scene, State::Completed), not_executed()] {
        let other = Resolve { observed: token(2), ..answer };
        assert_eq!(scene.resolve(other).await, AdminOutcome::Conflict, "{rule}");
    }
    scene.unchanged(&before, rule).await;
    scene.mine(&scene.claim_under(2, CrashPolicy::Verify), rule).await;
    assert_eq!(
        scene.park(Park::own(KEY, token(2), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    assert_eq!(
        scene.resolve(not_executed()).await,
        AdminOutcome::Conflict,
        "{rule}: it was taken over and parked again"
    );
}

/// T14: a record without a running owner can be removed.
pub async fn a_record_is_removed_unless_its_owner_runs<S: Subject>(scene: Scene<S>) {
    let rule = "T14: a record that no owner runs is removed and leaves nothing";
    let removed = async |observed: u128| {
        assert_eq!(
            scene.remove(Remove::new(KEY, token(observed))).await,
            AdminOutcome::Applied,
            "{rule}"
        );
        assert_eq!(scene.read().await, None, "{rule}");
        assert_eq!(
            scene.remove(Remove::new(KEY, token(observed))).await,
            AdminOutcome::Absent,
            "{rule}: asked again"
        );
        let grant = scene.mine(&scene.claim_by(5), rule).await;
        assert_eq!((grant.record.attempts, grant.taken_over), (1, None), "{rule}");
        assert_eq!(
            scene.release(Release::new(KEY, token(5))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    };
    for state in [State::Completed, State::Failed] {
        scene.completed(state).await;
        removed(1).await;
    }
    scene.in_doubt(CrashPolicy::Hold).await;
    removed(1).await;
    scene.orphaned(CrashPolicy::Hold).await;
    removed(1).await;
    scene.released().await;
    removed(1).await;
}

/// T14: a running record cannot be removed.
pub async fn a_running_record_is_not_removed<S: Subject>(scene: Scene<S>) {
    let rule = "T14: a record whose owner runs is not removed";
    scene.running(CrashPolicy::Retry).await;
    let before = scene.record().await;
    for tombstone in [scene.leases(0), scene.leases(4)] {
        let remove = Remove { tombstone, ..Remove::new(KEY, token(1)) };
        assert_eq!(scene.remove(remove).await, AdminOutcome::Running, "{rule}");
    }
    scene.unchanged(&before, rule).await;
    assert_eq!(scene.complete(scene.commit_by(1, "first")).await, WriteOutcome::Applied, "{rule}");
}

/// T14: guarded by the observed token.
pub async fn a_record_of_another_owner_is_not_removed<S: Subject>(scene: Scene<S>) {
    let rule = "T14: a record with another owner than the one that was seen is not removed, not even by force";
    for force in [false, true] {
        let before = scene.completed(State::Completed).await;
        let remove = Remove { force, ..Remove::new(KEY, token(2)) };
        assert_eq!(scene.remove(remove).await, AdminOutcome::Conflict, "{rule}");
        scene.unchanged(&before, rule).await;
        scene.pass_expiry().await;
        scene.running(CrashPolicy::Retry).await;
        assert_eq!(scene.remove(remove).await, AdminOutcome::Conflict, "{rule}: running");
        assert_eq!(
            scene.release(Release::new(KEY, token(1))).await,
            WriteOutcome::Applied,
            "{rule}: the owner continues"
        );
    }
}

/// T14: a tombstone keeps the record away for a while.
pub async fn a_removal_leaves_the_tombstone_that_was_asked_for<S: Subject>(scene: Scene<S>) {
    let rule = "T14: a tombstone holds claims off until it ends, and is lifted only by a caller \
        that has seen it";
    let tombstone = scene.buried(4).await;
    assert_eq!(
        (tombstone.state, tombstone.owner, tombstone.body.len()),
        (State::Tombstone, token(1), 0),
        "{rule}"
    );
    assert_eq!(
        tombstone.reason,
        Some(Reason::Resolved),
        "{rule}: it shows that the record was removed"
    );
    for policy in [CrashPolicy::Retry, CrashPolicy::Verify] {
        assert_eq!(
            scene.held(&scene.claim_under(1, policy), rule).await.state,
            State::Tombstone,
            "{rule}"
        );
        assert_eq!(
            scene.held(&scene.claim_under(2, policy), rule).await.state,
            State::Tombstone,
            "{rule}"
        );
    }
    for force in [false, true] {
        let unseen = Remove { force, ..Remove::new(KEY, token(2)) };
        assert_eq!(scene.remove(unseen).await, AdminOutcome::Conflict, "{rule}");
    }
    scene.unchanged(&tombstone, rule).await;
    scene.pass(2).await;
    scene.held(&scene.claim_by(2), rule).await;
    scene.pass_expiry().await;
    assert_eq!(scene.mine(&scene.claim_by(2), rule).await.record.attempts, 1, "{rule}");
}

/// T14 and T9: the owner whose record was removed by force comes back.
pub async fn a_record_removed_by_force_does_not_come_back<S: Subject>(scene: Scene<S>) {
    let rule = "T14: a forced removal of a running record leaves a tombstone for the rest of its lease, \
                and the late owner's commit does not bring the record back";
    let claim = scene.claim_under(1, CrashPolicy::Retry);
    let grant = scene.mine(&claim, rule).await;
    assert_eq!(scene.renew(1, scene.leases(4)).await, WriteOutcome::Applied, "{rule}");
    let remove = Remove { force: true, ..Remove::new(KEY, token(1)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}: asked again");
    let politely = Remove::new(KEY, token(1));
    assert_eq!(scene.remove(politely).await, AdminOutcome::Running, "{rule}: its owner runs");
    scene.pass(2).await;
    assert_eq!(scene.record().await.state, State::Tombstone, "{rule}");
    assert_eq!(
        scene.complete(scene.adopting_commit(&claim, &grant)).await,
        WriteOutcome::Gone,
        "{rule}"
    );
    scene.refuses_owner(1, WriteOutcome::Gone, rule).await;
    assert_eq!(scene.held(&scene.claim_by(2), rule).await.state, State::Tombstone, "{rule}");
    scene.pass_expiry().await;
    scene.mine(&scene.claim_by(2), rule).await;
    let longer = Remove { tombstone: scene.leases(8), force: true, ..Remove::new(KEY, token(2)) };
    assert_eq!(scene.remove(longer).await, AdminOutcome::Applied, "{rule}");
    scene.kept_for(&scene.record().await, scene.leases(8), rule);
}

/// T14: a tombstone is removed like a record.
pub async fn a_tombstone_is_removed<S: Subject>(scene: Scene<S>) {
    let rule = "T14: a tombstone of which no owner runs is removed by a caller that has seen it, \
        and the next call runs";
    let removed = async |remove: Remove| {
        assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
        assert_eq!(scene.read().await, None, "{rule}");
        assert_eq!(scene.remove(remove).await, AdminOutcome::Absent, "{rule}: asked again");
        let grant = scene.mine(&scene.claim_by(5), rule).await;
        assert_eq!((grant.record.attempts, grant.taken_over), (1, None), "{rule}");
        assert_eq!(
            scene.release(Release::new(KEY, token(5))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    };
    for force in [false, true] {
        let remove = Remove { force, ..Remove::new(KEY, token(1)) };
        scene.buried(8).await;
        removed(remove).await;
        for is_finished in [true, false] {
            let claim = Claim {
                after_expiry: scene.leases(32),
                ..scene.claim_under(1, CrashPolicy::Retry)
            };
            scene.mine(&claim, rule).await;
            if is_finished {
                assert_eq!(
                    scene.complete(scene.commit_by(1, "first")).await,
                    WriteOutcome::Applied,
                    "{rule}"
                );
            }
            scene.pass_expiry().await;
            removed(remove).await;
        }
    }
    scene.buried(4).await;
    let longer = Remove { tombstone: scene.leases(12), ..Remove::new(KEY, token(1)) };
    assert_eq!(scene.remove(longer).await, AdminOutcome::Applied, "{rule}");
    let record = scene.record().await;
    assert_eq!(record.state, State::Tombstone, "{rule}");
    scene.kept_for(&record, scene.leases(12), rule);
}

/// Scan: every record once, in the order of the keys.
pub async fn a_scan_lists_every_record_once<S: Subject>(scene: Scene<S>) {
    let rule = "a scan lists every record once, in the order of the keys, without bodies";
    assert_eq!(scene.list(Scan::default(), rule).await.len(), 0, "{rule}: an empty store");
    for number in [200, 1, 70, 3, 2, 128, 64] {
        let claim = Claim { key: key(number), ..scene.claim_by(number.into()) };
        scene.mine(&claim, rule).await;
        let commit = Commit { key: key(number), ..scene.commit_by(number.into(), "body") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    }
    let all = [1, 2, 3, 64, 70, 128, 200].map(key);
    for limit in [1, 2, 3, 7, 100, usize::MAX, 0] {
        let listed = scene.list(Scan { limit, ..Scan::default() }, rule).await;
        assert!(listed.iter().all(|record| record.state == State::Completed), "{rule}");
        let listed: Vec<_> = listed.iter().map(|record| record.key).collect();
        assert_eq!(listed, all, "{rule} (pages of {limit})");
    }
}

/// Scan: a cursor is of one store.
pub async fn a_scan_goes_on_at_cursors_of_its_own<S: Subject>(scene: Scene<S>) {
    let rule = "a cursor of another store, and one that cannot be read, are refused";
    scene.is_timeless();
    let name = scene.store().name();
    let others = Cursor::after("a store of another kind", KEY);
    let digits = KEY.to_hex();
    for after in [others, Cursor::new(name, "?"), Cursor::new(name, format!("{digits}+"))] {
        let scan = Scan { after: Some(after.clone()), ..Scan::default() };
        let answer = scene.store().scan(scan).await.map_err(|error| error.kind());
        assert_eq!(answer, Err(StoreErrorKind::Unsupported), "{rule} ({after:?})");
    }
}

/// Scan: by the first digits of the keys.
pub async fn a_scan_lists_keys_with_the_same_digits<S: Subject>(scene: Scene<S>) {
    let rule = "a scan lists the records whose keys begin with the digits that were asked for";
    scene.is_timeless();
    let hash = |text: &str| -> KeyHash { format!("{text:0<64}").parse().expect(rule) };
    let names =
        ["000000001", "abcdef00", "abcdef008", "abcdef00f", "abcdef01", "abcdef1", "ffffffff"];
    for (number, name) in (1..).zip(names) {
        let claim = Claim { key: hash(name), lease: DAY, ..scene.claim_by(number) };
        scene.mine(&claim, rule).await;
    }
    for (digits, expected) in [
        ("abcdef00", &names[1..4]),
        ("ABCDEF00f", &names[3..4]),
        ("abcdef02", &[]),
        ("00000000", &names[..1]),
        ("ffffffff0", &names[6..]),
        (&hash("abcdef01").to_hex(), &names[4..5]),
    ] {
        let scan = Scan { begins_with: digits.parse().ok(), ..Scan::default() };
        assert!(scan.begins_with.is_some());
        let expected: Vec<_> = expected.iter().map(|name| hash(name)).collect();
        assert_eq!(listed(&scene, scan, rule).await, expected, "{rule} ({digits})");
    }
}

/// Scan: by state and by operation.
pub async fn a_scan_lists_what_was_asked_for<S: Subject>(scene: Scene<S>) {
    let rule = "a scan lists only records of the state and the operation that were asked for, page by page";
    // The length of an operation's name is not limited.
    let long = "mail".repeat(5000);
    for number in 1..=12 {
        let operation = match number {
            3 => &*long,
            _ if number % 3 == 0 => "mail",
            _ => "pay",
        };
        let caller = number.into();
        let claim =
            Claim { key: key(number), operation: operation.into(), ..scene.claim_by(caller) };
        scene.mine(&claim, rule).await;
        if number % 2 == 0 {
            let commit = Commit { key: key(number), ..scene.commit_by(caller, "body") };
            assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
        }
    }
    for (state, operation, expected) in [
        (Some(State::Completed), None, vec![2, 4, 6, 8, 10, 12]),
        (Some(State::InProgress), Some("mail"), vec![9]),
        (None, Some("mail"), vec![6, 9, 12]),
        (Some(State::InProgress), Some(&*long), vec![3]),
        (Some(State::InDoubt), None, vec![]),
        (None, Some("ma"), vec![]),
    ] {
        let operation = operation.map(Into::into);
        let scan = Scan { state, operation: operation.clone(), ..Scan::default() };
        let listed = listed(&scene, scan, rule).await;
        let expected: Vec<_> = expected.into_iter().map(key).collect();
        assert_eq!(listed, expected, "{rule} ({state:?}, {operation:?})");
    }
}

/// Returns the keys that `scan` lists, on pages of two.
async fn listed<S: Subject>(scene: &Scene<S>, scan: Scan, rule: &str) -> Vec<KeyHash> {
    let records = scene.list(Scan { limit: 2, ..scan }, rule).await;
    records.iter().map(|record| record.key).collect()
}

/// Scan: records in doubt, including those that no caller has noticed, and records without an
/// owner.
pub async fn a_scan_lists_what_somebody_has_to_look_at<S: Subject>(scene: Scene<S>) {
    let rule = "a scan of records in doubt lists those of dead owners under hold, and no others";
    let claim =
        |number: u8, policy| Claim { key: key(number), ..scene.claim_under(number.into(), policy) };
    let long = |number, policy| Claim { lease: scene.leases(64), ..claim(number, policy) };
    let policies =
        [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify, CrashPolicy::Hold];
    for (number, policy) in (1..).zip(policies) {
        scene.mine(&claim(number, policy), rule).await;
    }
    for number in 5..=9 {
        scene.mine(&long(number, CrashPolicy::Hold), rule).await;
    }
    let park = |number: u8| Park::own(key(number), token(number.into()), Reason::Error);
    assert_eq!(scene.park(park(6)).await, WriteOutcome::Applied, "{rule}");
    let commit = Commit { key: key(7), ..scene.commit_by(7, "result") };
    assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    let release = Release { keep_attempts: true, ..Release::new(key(8), token(8)) };
    assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
    let remove =
        Remove { force: true, tombstone: scene.leases(64), ..Remove::new(key(9), token(9)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    // Retried, and given up by its owner: it does not run, although no lease has expired.
    scene.mine(&long(10, CrashPolicy::Retry), rule).await;
    let abandon = Abandon::new(key(10), token(10), Reason::Dropped);
    assert_eq!(scene.store().abandon(abandon).await.ok(), Some(WriteOutcome::Applied), "{rule}");
    scene.pass(2).await;
    for (only, state, expected) in [
        (Only::InDoubt, None, vec![4, 6]),
        (Only::InDoubt, Some(State::InDoubt), vec![6]),
        (Only::InDoubt, Some(State::InProgress), vec![4]),
        (Only::Orphaned, None, vec![1, 2, 3, 4, 10]),
        (Only::Orphaned, Some(State::InDoubt), vec![]),
        (Only::Any, Some(State::Tombstone), vec![9]),
        (Only::Any, Some(State::Released), vec![8]),
        (Only::Any, None, (1..=10).collect()),
    ] {
        let found = listed(&scene, Scan { state, only, ..Scan::default() }, rule).await;
        let expected: Vec<_> = expected.into_iter().map(key).collect();
        assert_eq!(found, expected, "{rule} ({only:?}, {state:?})");
    }
}

/// Scan: by namespace and by age.
pub async fn a_scan_lists_records_of_a_namespace_and_an_age<S: Subject>(scene: Scene<S>) {
    let rule = "a scan lists only records of the namespace and of the age that were asked for";
    let mut created = Vec::new();
    for number in 1..=6_u8 {
        let namespace = if number % 2 == 0 { "shop" } else { "shop.two" };
        let claim = Claim {
            key: key(number),
            namespace: namespace.into(),
            linger: scene.leases(256),
            ..scene.claim_by(number.into())
        };
        scene.mine(&claim, rule).await;
        created.push(scene.read_key(key(number)).await.expect(rule).created);
        scene.pass(1).await;
    }
    let in_namespace =
        |namespace: &str| Scan { namespace: Some(namespace.into()), ..Scan::default() };
    for (namespace, expected) in
        [("shop", vec![2, 4, 6]), ("shop.two", vec![1, 3, 5]), ("sho", vec![]), ("", vec![])]
    {
        let expected: Vec<_> = expected.into_iter().map(key).collect();
        assert_eq!(listed(&scene, in_namespace(namespace), rule).await, expected, "{rule}");
    }
    for (number, before) in (1..).zip(&created) {
        let scan = Scan { created_before: Some(*before), ..Scan::default() };
        let expected: Vec<_> = (1..number).map(key).collect();
        assert_eq!(listed(&scene, scan, rule).await, expected, "{rule}");
    }
    let scan = Scan { created_before: Some(created[4]), ..in_namespace("shop") };
    assert_eq!(listed(&scene, scan, rule).await, [2, 4].map(key), "{rule}");
    let scan = Scan { created_before: Some(Timestamp::from_millis(u64::MAX)), ..Scan::default() };
    assert_eq!(listed(&scene, scan, rule).await.len(), 6, "{rule}");
}

/// T13 and scan: the tombstone that an expired record leaves is there for lists, too.
pub async fn a_scan_lists_the_tombstones_of_expired_records<S: Subject>(scene: Scene<S>) {
    let rule = "a scan lists the tombstone that an expired record leaves, and `find` finds it";
    let claim = |number: u8| {
        let claim = scene.claim_under(number.into(), CrashPolicy::Retry);
        let (linger, after_expiry) = (scene.leases(2), scene.leases(64));
        Claim { key: key(number), linger, after_expiry, ..claim }
    };
    for number in 1..=3 {
        scene.mine(&claim(number), rule).await;
    }
    scene.mine(&Claim { after_expiry: Duration::ZERO, ..claim(4) }, rule).await;
    let lasting = Claim { linger: scene.leases(64), ..claim(5) };
    scene.mine(&lasting, rule).await;
    let commit = Commit { key: key(2), ttl: scene.leases(2), ..scene.commit_by(2, "result") };
    assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    let park = Park::own(key(3), token(3), Reason::Error);
    assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
    scene.pass(5).await;
    let expected = [(1, true), (2, true), (3, true), (5, false)];
    let found: Vec<_> = scene.list(Scan::default(), rule).await;
    let found: Vec<_> =
        found.iter().map(|record| (record.key, record.state == State::Tombstone)).collect();
    assert_eq!(found, expected.map(|(number, gone)| (key(number), gone)), "{rule}");
    let scan = Scan { state: Some(State::Tombstone), ..Scan::default() };
    assert_eq!(listed(&scene, scan, rule).await, [1, 2, 3].map(key), "{rule}");
    for only in [Only::InDoubt, Only::Orphaned] {
        let scan = Scan { only, ..Scan::default() };
        let found = listed(&scene, scan, rule).await;
        let orphans: &[KeyHash] = if only == Only::Orphaned { &[key(5)] } else { &[] };
        assert_eq!(found, orphans, "{rule}: nobody has to decide about a tombstone");
    }
    let engine = Idempotency::new(scene.second().await);
    for number in 1..=4 {
        let digits = key(number).to_string();
        let found = engine.find(&digits).await.unwrap_or_else(|error| panic!("{rule}: {error}"));
        let expected: &[KeyHash] = if number == 4 { &[] } else { &[key(number)] };
        assert_eq!(found, expected, "{rule} (find)");
    }
}
