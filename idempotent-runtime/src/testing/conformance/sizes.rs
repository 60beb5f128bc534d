//! Sizes: many records, many renewals at once, large bodies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::Scene;
use super::census::expect_census;
use super::scene::{OPERATION, all_pages, answered, numbered, token};
use crate::store::{
    CensusBudget, Claim, ClaimOutcome, Commit, Renewal, Scan, State, Store, WriteOutcome,
};
use crate::testing::Subject;

const HOUR: Duration = Duration::from_secs(3_600);
/// The number of concurrent requests.
const AT_ONCE: u32 = 32;

fn claim(number: u32) -> Claim {
    let mut claim = Claim::new(numbered(number), token(u128::from(number) + 1), OPERATION.into());
    (claim.lease, claim.linger) = (HOUR, HOUR);
    claim
}

async fn claim_all(store: &Arc<impl Store>, numbers: std::ops::Range<u32>, rule: &str) {
    let mut workers = JoinSet::new();
    for worker in 0..AT_ONCE {
        let (store, numbers) = (Arc::clone(store), numbers.clone());
        workers.spawn(async move {
            let mut granted = true;
            for number in numbers.filter(|number| number % AT_ONCE == worker) {
                granted &= matches!(
                    answered(|| store.claim(claim(number))).await,
                    ClaimOutcome::Granted(_)
                );
            }
            granted
        });
    }
    while let Some(granted) = workers.join_next().await {
        assert!(granted.expect("the store panicked"), "{rule}: each claims a key of its own");
    }
}

/// The number of leases that an engine renews at once.
pub async fn a_thousand_leases_are_renewed_at_once<S: Subject>(scene: Scene<S>) {
    let rule = "T7: of 1 000 renewals each is made, and each is answered by itself";
    scene.is_timeless();
    let (first, second) = (Arc::new(scene.second().await), scene.second().await);
    claim_all(&first, 0..1_000, rule).await;
    let lost = |number: &u32| number % 100 == 7;
    for number in (0..1_000).filter(lost) {
        let commit =
            Commit::new(numbered(number), token(u128::from(number) + 1), Bytes::new(), HOUR);
        assert_eq!(
            answered(|| second.complete(commit.clone())).await,
            WriteOutcome::Applied,
            "{rule}"
        );
    }
    let renewals: Vec<_> = (0..1_000)
        .map(|number| Renewal::new(numbered(number), token(u128::from(number) + 1), HOUR * 24))
        .collect();
    let written = answered(|| first.renew(renewals.clone())).await;
    let expected =
        |number: u32| if lost(&number) { WriteOutcome::Lost } else { WriteOutcome::Applied };
    assert_eq!(written.len(), 1_000, "{rule}");
    for (number, written) in (0..).zip(written) {
        assert_eq!(written, expected(number), "{rule} (number {number})");
    }
    for number in 0..1_000 {
        let record = answered(|| second.read(numbered(number))).await.expect(rule);
        let left = record.lease_until.saturating_duration_since(record.read_at);
        assert!(lost(&number) || left > HOUR * 23, "{rule}: number {number} is left {left:?}");
    }
}

/// The records of a busy day.
pub async fn ten_thousand_records_are_kept<S: Subject>(scene: Scene<S>) {
    const RECORDS: u32 = 10_000;
    let rule = "each of 10 000 records is kept, listed, and the same through every handle";
    scene.is_timeless();
    let (first, second) = (Arc::new(scene.second().await), Arc::new(scene.second().await));
    claim_all(&first, 0..RECORDS / 2, rule).await;
    claim_all(&second, RECORDS / 2..RECORDS, rule).await;
    let listed = all_pages(&*second, Scan { limit: 1_000, ..Scan::default() }, rule).await;
    assert_eq!(listed.len(), RECORDS as usize, "{rule}: all are listed");
    for (number, record) in (0..).zip(listed) {
        let expected = (numbered(number), token(u128::from(number) + 1), State::InProgress);
        assert_eq!((record.key, record.owner, record.state), expected, "{rule}");
    }
    // However much there is that is not listed.
    for (digits, expected) in [("00002706", vec![numbered(9_990)]), ("00002711", vec![])] {
        let begins_with = digits.parse().ok();
        for operation in [None, Some(OPERATION.into())] {
            let scan = Scan { begins_with, operation, ..Scan::default() };
            let found = all_pages(&*second, scan, rule).await;
            assert!(found.iter().map(|record| record.key).eq(expected.clone()), "{rule}");
        }
    }
    let nothing = Scan { state: Some(State::Failed), limit: 10, ..Scan::default() };
    assert_eq!(all_pages(&*second, nothing, rule).await.len(), 0, "{rule}");
    let last = Claim { operation: "another".into(), ..claim(RECORDS) };
    answered(|| scene.store().claim(last.clone())).await;
    let scan = Scan { operation: Some("another".into()), limit: 10, ..Scan::default() };
    let found = all_pages(&*second, scan, rule).await;
    let found: Vec<_> = found.iter().map(|record| record.key).collect();
    assert_eq!(found, [numbered(RECORDS)], "{rule}: one among those that are not listed");
    let census = expect_census(&*second, HOUR).await;
    let (all, is_exact) = (u64::from(RECORDS) + 1, scene.store().capabilities().lists_in_order);
    let count = census.count();
    assert!(census.complete, "{rule}: a census sees all of them");
    assert!(count == all || !is_exact && count > all, "{rule}: it counts {count}");
    for number in (0..RECORDS).step_by(97) {
        let stranger = Claim { token: token(9), ..claim(number) };
        assert!(
            matches!(
                answered(|| scene.store().claim(stranger.clone())).await,
                ClaimOutcome::Existing(_)
            ),
            "{rule}"
        );
    }
    let rule = "a census whose time is over begins no further step, and 10 000 records are not one";
    assert!(stops_on_the_way(&scene, &*second).await, "{rule}");
}

/// Returns true if a census comes to its end before it has counted everything, where time passes
/// whenever it waits. Also true for a store that never waits: nothing can happen meanwhile.
async fn stops_on_the_way<S: Subject>(scene: &Scene<S>, store: &S::Store) -> bool {
    /// Too short for ten thousand records, and longer than a store takes to look at its clock.
    const MOMENT: Duration = Duration::from_micros(10);
    for _ in 0..5 {
        let mut census = std::pin::pin!(store.census(CensusBudget::of(MOMENT)));
        let mut waits = false;
        let counted = loop {
            tokio::select! {
                biased;
                counted = &mut census => break counted,
                () = scene.advance(MOMENT * 2) => waits = true,
            }
            // The clock may be one that moves at once.
            tokio::task::yield_now().await;
        };
        if !waits || !counted.is_ok_and(|census| census.complete) {
            return true;
        }
    }
    false
}

/// The largest body that an engine stores, and sizes around the limits of protocols and servers.
pub async fn bodies_of_eight_mebibytes_are_kept<S: Subject>(scene: Scene<S>) {
    let rule = "T8: a body is any bytes, up to 8 MiB";
    scene.is_timeless();
    let second = scene.second().await;
    let mebibyte = 1 << 20;
    let sizes =
        [255, 256, 65_535, 65_536, mebibyte + 1, 2 * mebibyte + 1, 4 * mebibyte + 1, 8 * mebibyte];
    for (number, size) in (0..).zip(sizes) {
        let body: Vec<u8> = (0..=255).chain((0..250).rev()).cycle().take(size).collect();
        let body = Bytes::from(body);
        answered(|| scene.store().claim(claim(number))).await;
        let commit =
            Commit::new(numbered(number), token(u128::from(number) + 1), body.clone(), HOUR);
        assert_eq!(
            answered(|| scene.store().complete(commit.clone())).await,
            WriteOutcome::Applied,
            "{rule} ({size})"
        );
        let record = answered(|| second.read(numbered(number))).await.expect(rule);
        assert!(
            record.state == State::Completed && record.body == body,
            "{rule}: one of {size} bytes"
        );
        let stranger = Claim { token: token(99), ..claim(number) };
        match answered(|| second.claim(stranger.clone())).await {
            ClaimOutcome::Existing(record) => {
                assert!(record.body == body, "{rule}: one of {size} bytes, replayed");
            }
            ClaimOutcome::Granted(_) => panic!("{rule}: a result of {size} bytes is not found"),
        }
    }
}
