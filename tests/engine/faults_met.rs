//! A store with faults says when a test has not tested what it planned.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{
    Checkpoint, Claim, DynStore, MemoryStore, Operation, Park, Reason, Store as _, Token,
};
use idempotency::testing::{Fault, FaultyStore, Gate, ManualClock};
use idempotency::{Error, ErrorKind, Idempotency};

use crate::world::eventually;

const HOUR: Duration = Duration::from_secs(3600);

async fn call(engine: &Idempotency) -> Result<u64, Error> {
    engine.call("faults.met", 1).ttl(HOUR).run(async || Ok(7)).await
}

#[test]
#[should_panic(expected = "`connect` is not a request to a store; the requests are claim, renew, \
    complete,")]
fn a_fault_that_no_request_can_meet_is_refused() {
    FaultyStore::new(MemoryStore::new()).next(Operation::Connect, Fault::LostAnswer);
}

#[test]
#[should_panic(expected = "`migrate` is not a request to a store")]
fn a_standing_fault_that_no_request_can_meet_is_refused() {
    FaultyStore::new(MemoryStore::new()).always(Operation::Migrate, Some(Fault::LostAnswer));
}

#[test]
#[should_panic(expected = "`claim in a transaction` is not a request to a store")]
fn a_count_of_requests_that_cannot_be_is_refused() {
    FaultyStore::new(MemoryStore::new()).requests(Operation::Transaction);
}

#[tokio::test]
#[should_panic(
    expected = "no request met these faults, so the test did not see them: park: LostAnswer, park: LostRequest"
)]
async fn a_planned_fault_that_no_request_meets_is_reported_at_the_end() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Idempotency::new(store.clone());
    store.next(Operation::Park, Fault::LostAnswer);
    store.next(Operation::Park, Fault::LostRequest);
    call(&engine).await.unwrap();
}

#[tokio::test]
async fn a_planned_fault_is_unmet_until_a_request_comes() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Idempotency::new(store.clone());
    store.next(Operation::Complete, Fault::LostAnswer);
    assert!(matches!(store.unmet_faults()[..], [(Operation::Complete, Fault::LostAnswer)]));
    call(&engine).await.unwrap();
    assert!(store.unmet_faults().is_empty());
    assert_eq!(store.requests(Operation::Complete), 2);
}

#[tokio::test]
async fn faults_go_around_a_store_that_is_chosen_at_run_time() {
    let chosen: Arc<dyn DynStore> = Arc::new(MemoryStore::new());
    let store = FaultyStore::new(chosen);
    let engine = Idempotency::new(store.clone());
    store.always(Operation::Claim, Some(Fault::LostRequest));
    let engine_without_patience = Idempotency::builder(store.clone())
        .claim_timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    assert_eq!(
        call(&engine_without_patience).await.unwrap_err().kind(),
        ErrorKind::StoreUnavailable
    );
    store.always(Operation::Claim, None);
    assert_eq!(call(&engine).await.unwrap(), 7);
}

#[tokio::test]
async fn a_gate_that_nobody_reached_is_not_passed() {
    let gate = Gate::new();
    assert!(!gate.is_passed());
    gate.open();
    assert!(!gate.is_passed(), "open, and nobody came");
    gate.wait().await;
    assert!(gate.is_passed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_no_time_to_answer_because_the_clock_is_paused_says_so() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Idempotency::builder(store.clone())
        .claim_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    store.always(Operation::Claim, Some(Fault::Late(Gate::new())));
    let error = call(&engine).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let reason = error.to_string();
    assert!(
        reason.contains("Tokio's clock ran ahead") && reason.contains("start_paused"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_store_that_does_not_answer_on_a_clock_that_goes_is_only_silent() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Idempotency::builder(store.clone())
        .claim_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    store.always(Operation::Claim, Some(Fault::Late(Gate::new())));
    let error = call(&engine).await.unwrap_err();
    let reason = error.to_string();
    assert!(!reason.contains("start_paused"), "{reason}");
}

/// Until then the request waits at the gate, although its sender has given it up.
async fn passes(gate: &Gate) {
    assert!(!gate.is_passed());
    gate.open();
    eventually("the request", async || gate.is_passed()).await;
}

#[tokio::test]
async fn a_late_commit_that_was_given_up_arrives() {
    let (store, gate) = (FaultyStore::new(MemoryStore::new()), Gate::new());
    let short = Duration::from_millis(50);
    let engine = Idempotency::builder(store.clone()).claim_timeout(short).commit_timeout(short);
    let engine = engine.build().unwrap();
    store.next(Operation::Complete, Fault::Late(gate.clone()));
    store.always(Operation::Complete, Some(Fault::LostRequest));
    assert_eq!(call(&engine).await.unwrap_err().kind(), ErrorKind::NotStored);
    let record = engine.record("faults.met", 1);
    assert_eq!(record.inspect().await.unwrap().unwrap().state, State::InProgress);
    passes(&gate).await;
    assert_eq!(record.inspect().await.unwrap().unwrap().state, State::Completed);
}

/// Sends a request and gives it up.
fn give_up<T>(request: impl Future<Output = T>) {
    assert!(request.now_or_never().is_none(), "it is late");
}

#[tokio::test]
async fn late_changes_that_were_given_up_arrive() {
    let (store, key) = (FaultyStore::new(MemoryStore::new()), KeyHash::from_bytes([7; 32]));
    let token = Token::from_bits(7);
    let mut claim = Claim::new(key, token, "faults.met".into());
    claim.lease = HOUR;
    let read = async || store.read(key).await.unwrap().unwrap();

    let gate = Gate::new();
    store.next(Operation::Claim, Fault::Late(gate.clone()));
    give_up(store.claim(claim));
    assert!(store.read(key).await.unwrap().is_none());
    passes(&gate).await;
    assert_eq!(read().await.state, State::InProgress);

    let gate = Gate::new();
    store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    give_up(store.checkpoint(Checkpoint::new(key, token, 0, "step".into())));
    passes(&gate).await;
    assert_eq!(read().await.checkpoints, 1);

    let clock = ManualClock::new();
    store.next(Operation::Park, Fault::Slow(clock.clone(), HOUR));
    give_up(store.park(Park::own(key, token, Reason::Error)));
    assert_eq!(read().await.state, State::InProgress);
    clock.advance(HOUR);
    eventually("the request", async || read().await.state == State::InDoubt).await;
}
