//! Limits, removal and watches of the in-memory store. The rules of claims and results are in the
//! conformance suite.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{MemoryStore, lock};
use crate::clock::{Clock, Sleep, Timestamp};
use crate::key::KeyHash;
use crate::store::{
    Adoption, CensusBudget, Claim, ClaimOutcome, Commit, Grant, Record, Release, Scan, State,
    Store, StoreErrorKind, Token, WriteOutcome,
};

const SECOND: Duration = Duration::from_secs(1);

/// A wall clock that is set by hand, and on which no sleep ends.
#[derive(Clone, Debug, Default)]
struct Wall(Arc<std::sync::atomic::AtomicU64>);

impl Wall {
    fn set(&self, seconds: u64) {
        self.0.store(seconds * 1000, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(std::future::pending())
    }
}

fn key(number: usize) -> KeyHash {
    let mut bytes = [0; 32];
    bytes[0] = number.to_le_bytes()[0];
    bytes[1..9].copy_from_slice(&number.to_be_bytes());
    KeyHash::from_bytes(bytes)
}

/// A claim whose record is kept for ten seconds.
fn claim(number: usize) -> Claim {
    let mut claim = Claim::new(key(number), Token::from_bits(number as u128), "op".into());
    claim.lease = SECOND;
    claim.linger = 9 * SECOND;
    claim
}

fn commit(number: usize, body: impl Into<Bytes>) -> Commit {
    Commit::new(key(number), Token::from_bits(number as u128), body.into(), 10 * SECOND)
}

async fn claimed(store: &MemoryStore, number: usize) -> Grant {
    match store.claim(claim(number)).await.unwrap() {
        ClaimOutcome::Granted(grant) => grant,
        ClaimOutcome::Existing(record) => panic!("held: {record:?}"),
    }
}

async fn refusal(store: &MemoryStore, number: usize) -> String {
    let error = store.claim(claim(number)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Full);
    error.to_string()
}

async fn state(store: &MemoryStore, number: usize) -> Option<State> {
    store.read(key(number)).await.unwrap().map(|record: Record| record.state)
}

fn stored_records(store: &MemoryStore) -> usize {
    store.inner.shards.iter().map(|shard| lock(shard).len()).sum()
}

#[tokio::test]
async fn a_full_store_refuses_new_claims_and_keeps_every_record() {
    let wall = Wall::default();
    let store = MemoryStore::builder().max_records(100).clock(wall).build();
    for number in 0..100 {
        claimed(&store, number).await;
    }
    assert!(refusal(&store, 100).await.contains("100 of 100 records"));
    for number in 0..100 {
        assert_eq!(store.complete(commit(number, "done")).await.unwrap(), WriteOutcome::Applied);
    }
    refusal(&store, 100).await;
    for number in 0..100 {
        assert_eq!(state(&store, number).await, Some(State::Completed));
    }
}

#[tokio::test]
async fn a_full_store_answers_claims_of_records_that_it_has() {
    let store = MemoryStore::builder().max_records(1).build();
    claimed(&store, 1).await;
    claimed(&store, 1).await;
    store.complete(commit(1, "done")).await.unwrap();
    assert!(matches!(store.claim(claim(1)).await, Ok(ClaimOutcome::Existing(_))));
    let mut release = Release::new(key(2), Token::from_bits(2));
    release.keep_attempts = true;
    let store = MemoryStore::builder().max_records(1).build();
    claimed(&store, 2).await;
    store.release(release).await.unwrap();
    assert_eq!(claimed(&store, 2).await.record.attempts, 2);
}

#[tokio::test]
async fn room_comes_back_with_release_and_expiry() {
    let wall = Wall::default();
    let store = MemoryStore::builder().max_records(2).clock(wall.clone()).build();
    claimed(&store, 1).await;
    claimed(&store, 2).await;
    store.release(Release::new(key(1), Token::from_bits(1))).await.unwrap();
    claimed(&store, 3).await;
    refusal(&store, 4).await;
    wall.set(9);
    refusal(&store, 4).await;
    wall.set(10);
    claimed(&store, 4).await;
    claimed(&store, 5).await;
    refusal(&store, 6).await;
}

#[tokio::test]
async fn bytes_are_bounded_and_a_result_is_stored_beyond_the_bound() {
    let store = MemoryStore::builder().max_bytes(4096).build();
    claimed(&store, 1).await;
    claimed(&store, 2).await;
    let big = vec![7; 8192];
    assert_eq!(store.complete(commit(1, big.clone())).await.unwrap(), WriteOutcome::Applied);
    assert!(refusal(&store, 3).await.contains("of 4096 bytes"));
    assert_eq!(store.complete(commit(2, big.clone())).await.unwrap(), WriteOutcome::Applied);
    assert_eq!(store.read(key(2)).await.unwrap().unwrap().body, big);
}

#[tokio::test]
async fn a_full_store_adopts_a_result() {
    let store = MemoryStore::builder().max_records(1).build();
    let grant = claimed(&store, 1).await;
    store.release(Release::new(key(1), Token::from_bits(1))).await.unwrap();
    claimed(&store, 2).await;
    let mut commit = commit(1, "done");
    commit.adopt = Some(Arc::new(Adoption::new(claim(1), &grant)));
    assert_eq!(store.complete(commit).await.unwrap(), WriteOutcome::Adopted);
    assert_eq!(state(&store, 1).await, Some(State::Completed));
}

#[tokio::test]
async fn usage_returns_to_zero() {
    let wall = Wall::default();
    let store = MemoryStore::with_clock(wall.clone());
    for number in 0..500 {
        claimed(&store, number).await;
        if number % 2 == 0 {
            store.complete(commit(number, vec![0; number])).await.unwrap();
        }
    }
    wall.set(10);
    assert_eq!(store.purge(usize::MAX).await.unwrap().removed, 500);
    assert_eq!(stored_records(&store), 0);
    assert!(
        format!("{store:?}").contains("0 of 1000000 records and 0 of 536870912 bytes"),
        "{store:?}"
    );
}

#[tokio::test]
async fn every_operation_removes_a_few_expired_records_of_its_shard() {
    let wall = Wall::default();
    let store = MemoryStore::with_clock(wall.clone());
    let same_shard = |number: usize| 256 * number;
    for number in 1..=10 {
        claimed(&store, same_shard(number)).await;
    }
    wall.set(10);
    for left in [6, 2, 0] {
        assert_eq!(state(&store, same_shard(0)).await, None);
        assert_eq!(stored_records(&store), left);
    }
}

#[tokio::test]
async fn purge_stops_at_its_limit_and_tells_the_lag() {
    let wall = Wall::default();
    let store = MemoryStore::with_clock(wall.clone());
    for number in 0..10 {
        claimed(&store, number).await;
    }
    wall.set(12);
    let purged = store.purge(4).await.unwrap();
    assert_eq!((purged.removed, purged.lag), (4, Some(2 * SECOND)));
    let purged = store.purge(100).await.unwrap();
    assert_eq!((purged.removed, purged.lag), (6, None));
}

#[tokio::test]
async fn watches_leave_nothing_behind() {
    let store = MemoryStore::new();
    let watchers = |store: &MemoryStore| {
        store.inner.shards.iter().filter(|shard| !lock(shard).watchers.is_empty()).count()
    };
    let first = store.watch(key(1)).await.unwrap();
    let second = store.watch(key(1)).await.unwrap();
    assert_eq!(watchers(&store), 1);
    drop(first);
    assert_eq!(watchers(&store), 1);
    claimed(&store, 1).await;
    second.await;
    assert_eq!(watchers(&store), 0);
}

#[tokio::test]
async fn clones_share_the_records() {
    let store = MemoryStore::new();
    claimed(&store, 1).await;
    assert_eq!(state(&store.clone(), 1).await, Some(State::InProgress));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_claims_never_pass_the_bound() {
    let store = MemoryStore::builder().max_records(100).build();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut admitted = 0;
                for number in 0..50 {
                    admitted += usize::from(store.claim(claim(task * 50 + number)).await.is_ok());
                }
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += task.await.unwrap();
    }
    assert_eq!((admitted, stored_records(&store)), (100, 100));
    assert_eq!(
        store.scan(Scan { limit: 1000, ..Scan::default() }).await.unwrap().records.len(),
        100
    );
}

#[tokio::test]
async fn fences_grow_over_records_that_are_gone_while_the_clock_stands_still() {
    let store = MemoryStore::builder().clock(Wall::default()).build();
    let mut fences = Vec::new();
    for _ in 0..3 {
        fences.push(claimed(&store, 1).await.record.fence);
        store.release(Release::new(key(1), Token::from_bits(1))).await.unwrap();
    }
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
}

#[test]
fn a_census_of_many_records_lets_others_run() {
    use std::task::{Context, Poll, Waker};

    // No runtime: none is needed, and none is kept from its other tasks.
    let mut task = Context::from_waker(Waker::noop());
    let mut counted = |records| {
        let store = MemoryStore::new();
        for number in 0..records {
            let mut claiming = std::pin::pin!(store.claim(claim(number)));
            assert!(matches!(claiming.as_mut().poll(&mut task), Poll::Ready(Ok(_))));
        }
        let mut census = std::pin::pin!(store.census(CensusBudget::of(Duration::MAX)));
        let mut pauses = 0;
        loop {
            match census.as_mut().poll(&mut task) {
                Poll::Ready(census) => return (census.unwrap().count(), pauses),
                Poll::Pending => pauses += 1,
            }
            // A record can be claimed meanwhile: no part of the keys is kept.
            let mut claiming = std::pin::pin!(store.claim(claim(0)));
            assert!(claiming.as_mut().poll(&mut task).is_ready());
        }
    };
    assert_eq!(counted(1_000), (1_000, 0));
    // In more shards than one, none of which has a thousand.
    assert_eq!(counted(10_000), (10_000, 9));
}
