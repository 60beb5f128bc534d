//! The census: counts of records for operators.

use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use super::scene::{answered, key, token};
use crate::store::{
    Census, CensusBudget, Claim, Commit, CrashPolicy, Park, Reason, Release, State, Store,
    WriteOutcome,
};
use crate::testing::Subject;

/// The operation, the state, whether they are in doubt, and the number of the records of a group.
type Counts<'c> = Vec<(&'c str, State, bool, u64)>;

fn counts(census: &Census) -> Counts<'_> {
    census.groups().map(|it| (&*it.operation, it.state, it.in_doubt, it.count)).collect()
}

impl<S: Subject> Scene<S> {
    /// Claims `key(number)` for `operation`.
    async fn claimed(&self, number: u8, operation: &str, policy: CrashPolicy, rule: &str) {
        let claim = Claim {
            key: key(number),
            operation: operation.into(),
            ..self.claim_under(number.into(), policy)
        };
        self.mine(&claim, rule).await;
    }

    async fn finished(&self, number: u8, state: State, body: Bytes, rule: &str) {
        let commit = Commit::new(key(number), token(number.into()), body, self.leases(16));
        let written = self.complete(Commit { state, ..commit }).await;
        assert_eq!(written, WriteOutcome::Applied, "{rule}");
    }

    async fn parked(&self, number: u8, rule: &str) {
        let park = Park::own(key(number), token(number.into()), Reason::Error);
        let parked = self.park(Park { key: key(number), ..park }).await;
        assert_eq!(parked, WriteOutcome::Applied, "{rule}");
    }
}

/// One group for each operation and state, and for each namespace.
pub async fn a_census_counts_by_operation_and_state<S: Subject>(scene: Scene<S>) {
    let rule = "a census counts the records of each operation in each state";
    let empty = scene.census(rule).await;
    assert_eq!((counts(&empty), empty.unreadable), (vec![], 0), "{rule} (none)");
    for (number, operation) in [(1, "pay"), (2, "pay"), (3, "pay"), (4, "mail"), (5, "mail")] {
        scene.claimed(number, operation, CrashPolicy::Retry, rule).await;
    }
    // Names that are alike are different ones.
    for (number, operation) in [(6, "pay "), (7, "Pay"), (8, "päy"), (9, "pay")] {
        scene.claimed(number, operation, CrashPolicy::Hold, rule).await;
    }
    for number in [1, 2, 4] {
        scene.finished(number, State::Completed, "done".into(), rule).await;
    }
    scene.finished(3, State::Failed, "failed".into(), rule).await;
    scene.parked(5, rule).await;
    for number in [6, 7, 8] {
        scene.finished(number, State::Completed, "done".into(), rule).await;
    }
    let release = Release { keep_attempts: true, ..Release::new(key(9), token(9)) };
    assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
    let census = scene.census(rule).await;
    let expected: Counts<'_> = vec![
        ("Pay", State::Completed, false, 1),
        ("mail", State::InDoubt, true, 1),
        ("mail", State::Completed, false, 1),
        ("pay", State::Completed, false, 2),
        ("pay", State::Failed, false, 1),
        ("pay", State::Released, false, 1),
        ("pay ", State::Completed, false, 1),
        ("päy", State::Completed, false, 1),
    ];
    assert_eq!(counts(&census), expected, "{rule}");
    assert_eq!((census.count(), census.unreadable), (9, 0), "{rule}");

    let other = Claim { key: key(10), namespace: "another".into(), ..scene.claim_by(10) };
    scene.mine(&Claim { operation: "mail".into(), ..other }, rule).await;
    let census = scene.census(rule).await;
    let first = census.groups().next().map(|it| (&*it.namespace, &*it.operation, it.count));
    assert_eq!(first, Some(("another", "mail", 1)), "{rule}, and of each namespace");
    assert_eq!(census.count(), 10, "{rule}");
}

/// What is in doubt is what a list of doubts has.
pub async fn a_census_knows_what_is_in_doubt<S: Subject>(scene: Scene<S>) {
    let rule = "a census judges what is in doubt as a list does, also where no caller has noticed";
    scene.claimed(1, "pay", CrashPolicy::Hold, rule).await;
    scene.parked(1, rule).await;
    let oldest = scene.read_key(key(1)).await.map(|record| record.created);
    scene.pass(1).await;
    for (number, policy) in
        [(2, CrashPolicy::Hold), (3, CrashPolicy::Hold), (4, CrashPolicy::Retry)]
    {
        scene.claimed(number, "pay", policy, rule).await;
    }
    scene.pass(3).await;
    scene.claimed(5, "pay", CrashPolicy::Hold, rule).await;
    let expected = [
        // One runs, and one does not under a policy that lets the next caller run it again.
        ("pay", State::InProgress, false, 2),
        ("pay", State::InProgress, true, 2),
        ("pay", State::InDoubt, true, 1),
    ];
    let census = scene.census(rule).await;
    assert_eq!(counts(&census), expected, "{rule}");
    assert_eq!(census.in_doubt(), 3, "{rule}");
    assert_eq!(census.oldest_in_doubt(), oldest, "{rule}: the oldest of them");
    let age = oldest.map(|oldest| census.at.saturating_duration_since(oldest) + scene.leases(1));
    assert!(age > Some(scene.leases(4)), "{rule}: it is {age:?} old");
}

/// T13: what has expired does not count, whether or not it is still in the store.
pub async fn a_census_leaves_out_what_has_expired<S: Subject>(scene: Scene<S>) {
    let rule = "T13: an expired record is not counted, or as the tombstone that follows";
    scene.claimed(1, "pay", CrashPolicy::Hold, rule).await;
    let claim = Claim { key: key(2), operation: "pay".into(), ..scene.claim_by(2) };
    let claim = Claim { after_expiry: scene.leases(64), ..claim };
    scene.mine(&claim, rule).await;
    scene.finished(2, State::Completed, Bytes::from(vec![7; 5_000]), rule).await;
    scene.claimed(3, "pay", CrashPolicy::Retry, rule).await;
    scene.finished(3, State::Completed, "done".into(), rule).await;
    assert_eq!(scene.census(rule).await.count(), 3, "{rule}: before");
    scene.pass(18).await;
    scene.claimed(4, "pay", CrashPolicy::Retry, rule).await;
    let census = scene.census(rule).await;
    let expected = [("pay", State::InProgress, false, 1), ("pay", State::Tombstone, false, 1)];
    assert_eq!(counts(&census), expected, "{rule}");
    assert_eq!(census.oldest_in_doubt(), None, "{rule}: nothing is in doubt any more");
    let bytes: u64 = census.groups().map(|group| group.bytes).sum();
    assert!(bytes < 1_000, "{rule}: a tombstone has no body, and not {bytes} bytes");

    scene.buried(8).await;
    let tombstones = |census: &Census| {
        let groups = census.groups().filter(|group| group.state == State::Tombstone);
        groups.map(|group| group.count).sum::<u64>()
    };
    assert_eq!(tombstones(&scene.census(rule).await), 2, "{rule}: one of a removal counts too");
}

/// The sizes of bodies, as far as a store may change them.
pub async fn a_census_adds_up_the_sizes_of_bodies<S: Subject>(scene: Scene<S>) {
    let rule = "a census adds up the sizes of the bodies of each group";
    // Not compressible, so that they are as large in any store.
    let mut state: u32 = 1;
    let mut noise = |length: usize| -> Bytes {
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(length).collect::<Vec<_>>().into()
    };
    for number in 1..=4 {
        let operation = if number <= 3 { "large" } else { "small" };
        scene.claimed(number, operation, CrashPolicy::Retry, rule).await;
    }
    for number in 1..=3 {
        scene.finished(number, State::Completed, noise(20_000), rule).await;
    }
    scene.finished(4, State::Completed, noise(10), rule).await;
    let census = scene.census(rule).await;
    let bytes: Vec<_> = census.groups().map(|group| (&*group.operation, group.bytes)).collect();
    let [("large", large), ("small", small)] = bytes[..] else { panic!("{rule}: {bytes:?}") };
    assert!((50_000..100_000).contains(&large), "{rule}: 60 000, and not {large}");
    assert!((1..1_000).contains(&small), "{rule}: 10, and not {small}");
}

/// A budget that is used up is no error.
pub async fn a_census_stops_at_its_budget<S: Subject>(scene: Scene<S>) {
    let rule = "a census whose time is over says that it is not complete, and how far it came";
    for number in 1..=5 {
        scene.claimed(number, "pay", CrashPolicy::Retry, rule).await;
    }
    let census = expect_census(scene.store(), Duration::ZERO).await;
    assert!(!census.complete, "{rule}: {census:?}");
    assert!(census.percent.is_none_or(|percent| percent < 100), "{rule}: {census:?}");
    assert!(census.count() <= 5, "{rule}: {census:?}");
    let census = expect_census(scene.store(), Duration::from_secs(3_600)).await;
    assert_eq!((census.complete, census.count()), (true, 5), "{rule}, and otherwise that it is");
    assert!(census.percent.is_none_or(|percent| percent == 100), "{rule}: {census:?}");
}

pub(super) async fn expect_census(store: &impl Store, time: Duration) -> Census {
    answered(|| store.census(CensusBudget::of(time))).await
}
