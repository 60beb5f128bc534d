//! Events: one end for each call, whatever ends it, and observers that change nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::events::{Event, Interest, Observer, Outcome, Source, What};
use idempotency::store::{Operation, Release, Store as _, StoreErrorKind};
use idempotency::{Error, ErrorAction, ErrorKind, Idempotency, OnConflict, OnCrash, OnError};

use crate::faults::{Fault, Gate};
use crate::world::{LEASE, World, eventually, poll_once, without_renewals};

/// Keeps what it is told, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has(&self, text: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|told| told == text)
    }
}

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        let operation = event.operation.map_or("", |operation| operation);
        let text = match event.what {
            What::Finished { outcome, attempt, waited, .. } => {
                format!("{operation} {outcome:?} {attempt}{}", if waited { " waited" } else { "" })
            }
            What::Claimed { attempt, taken_over, .. } => {
                format!("claimed {attempt} {taken_over:?}")
            }
            What::InDoubt { reason, .. } => format!("in doubt {operation} {reason:?}"),
            What::Duplicate => "duplicate".to_owned(),
            What::LeaseLost => "lease lost".to_owned(),
            What::Adopted => "adopted".to_owned(),
            What::StoredLate { .. } => "stored late".to_owned(),
            What::NeverStored => "never stored".to_owned(),
            What::Operated { action, result, .. } => format!("{action} {result:?}"),
            _ => return,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

fn observed() -> (World, Log) {
    let log = Log::default();
    (World::with(|builder| builder.observer(log.clone())), log)
}

const CALLED: &str = crate::world::OPERATION;

fn ends(log: &Log) -> Vec<String> {
    let called = format!("{CALLED} ");
    log.taken()
        .into_iter()
        .filter_map(|text| Some(text.strip_prefix(&called)?.to_owned()))
        .collect()
}

#[tokio::test]
async fn a_call_that_runs_and_one_that_is_answered_are_told_of_once_each() {
    let (world, log) = observed();
    world.charge(1).await.unwrap();
    assert_eq!(log.taken(), ["claimed 1 None".to_owned(), format!("{CALLED} Executed 1")]);
    world.charge(1).await.unwrap();
    assert_eq!(ends(&log), [format!("{:?} 1", Outcome::Replayed(Source::Store))]);
}

#[tokio::test]
async fn each_end_of_a_body_has_its_outcome() {
    let (world, log) = observed();
    let fails = async || Err::<String, _>(anyhow::anyhow!("declined"));
    world.call(1).run(fails).await.unwrap_err();
    assert_eq!(ends(&log), ["Released 1"]);
    world.call(2).on_error(ErrorAction::Hold).run(fails).await.unwrap_err();
    assert_eq!(log.taken().pop().unwrap(), format!("{CALLED} Held 1"));
    let stored = world.call(3).on_error(OnError::Store);
    stored.run(async || Err::<u32, _>(Declined)).await.unwrap_err();
    assert_eq!(ends(&log), ["Failed 1"]);
    world.call(4).run(async || Ok::<_, Error>("x".repeat(300 * 1024))).await.unwrap_err();
    assert_eq!(ends(&log), ["Unkept 1"]);
    world.store.always(Operation::Complete, Some(Fault::Refused(StoreErrorKind::Full)));
    without_renewals(&world, world.charge(5)).await.unwrap_err();
    assert_eq!(ends(&log), ["NotStored 1"]);
    world.store.always(Operation::Complete, None);
    eventually("the result", async || {
        world.clock.advance(Duration::from_millis(500));
        log.taken() == ["stored late"]
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_refused_is_told_of_wherever_that_happens() {
    let (world, log) = observed();
    world
        .engine
        .call("payments.charge", None::<u64>)
        .ttl(LEASE)
        .run(async || Ok::<_, Error>(1))
        .await
        .unwrap_err();
    assert_eq!(log.taken(), ["payments.charge Refused(MissingKey) 0"], "before it has a record");
    world.engine.call("payments.charge", 1).run(async || Ok::<_, Error>(1)).await.unwrap_err();
    assert_eq!(log.taken(), ["payments.charge Refused(Config) 0"], "it has no `ttl`");
    world.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Full));
    world.charge(1).await.unwrap_err();
    assert_eq!(ends(&log), ["Refused(Full) 0"]);
    let other = world.other_process();
    let gate = Gate::new();
    let running = other.call(2).run(async || {
        gate.wait().await;
        Ok::<_, Error>("receipt".to_owned())
    });
    let refused = async {
        world.record_is(2, |record| record.is_some()).await;
        let call = world.call(2).on_conflict(OnConflict::Reject);
        call.run(async || world.effect(2)).await.unwrap_err();
        assert_eq!(ends(&log), ["Refused(InProgress) 1"]);
        gate.open();
    };
    let (running, ()) = tokio::join!(running, refused);
    running.unwrap();
    world.engine.shutdown(Duration::ZERO).await;
    world.charge(3).await.unwrap_err();
    assert_eq!(ends(&log), ["Refused(ShuttingDown) 0"]);
}

#[tokio::test]
async fn a_call_that_is_dropped_or_panics_is_told_of_at_once() {
    let (world, log) = observed();
    // Never polled: it was not made.
    drop(world.charge(1));
    assert!(log.taken().is_empty());
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut asking = Box::pin(world.charge(1));
    assert!(poll_once(&mut asking).is_pending());
    drop(asking);
    assert_eq!(log.taken(), [format!("{CALLED} Dropped 0")], "while it asks");
    gate.open();
    world.record_is(1, |record| record.is_none()).await;
    let mut running = Box::pin(world.call(2).run(async || {
        std::future::pending::<()>().await;
        Ok::<_, Error>("receipt".to_owned())
    }));
    eventually("the body", async || {
        assert!(poll_once(&mut running).is_pending());
        world.record(2).await.is_some()
    })
    .await;
    assert!(poll_once(&mut running).is_pending());
    drop(running);
    assert!(log.has(&format!("{CALLED} Dropped 1")), "while the body runs");
    // By the background, which may be as quick as this test.
    eventually("the doubt", async || log.has(&format!("in doubt {CALLED} Dropped"))).await;
    assert_eq!(ends(&log), ["Dropped 1"]);
    let panics =
        world.call(3).run(async || -> Result<String, Error> { panic!("the provider's client") });
    let panicked = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(panics)).await;
    panicked.unwrap_err();
    assert_eq!(ends(&log), ["Panicked 1"]);
}

#[tokio::test]
async fn a_disabled_operation_an_operator_and_a_late_owner_are_told_of() {
    let (world, log) = observed();
    world.engine.disable(CALLED);
    world.charge(1).await.unwrap();
    world.engine.enable(CALLED);
    assert_eq!(log.taken(), [format!("{CALLED} Bypassed 0")]);
    let other = world.other_process();
    let late = world.call(2).on_crash(OnCrash::Retry).run(async || {
        world.clock.advance(LEASE * 2);
        other.call(2).on_crash(OnCrash::Retry).run(async || other.effect(2)).await?;
        world.effect(2)
    });
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    late.await.unwrap();
    let told = log.taken();
    assert!(told.contains(&"duplicate".to_owned()), "{told:?}");
    assert_eq!(told.last().unwrap(), &format!("{CALLED} Superseded 2"));
    world.engine.record(CALLED, 2).forget().await.unwrap();
    assert_eq!(log.taken(), ["remove Ok(())"]);
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Declined;

impl From<Error> for Declined {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

/// Panics at every event.
struct Broken(AtomicU64);

impl Observer for Broken {
    fn observe(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("the observer is broken");
    }
}

#[tokio::test]
async fn an_observer_that_panics_changes_nothing_and_is_counted() {
    let (log, broken) = (Log::default(), Arc::new(Broken(AtomicU64::new(0))));
    let world = World::with(|builder| builder.observer(broken.clone()).observer(log.clone()));
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(ends(&log).len(), 2, "the next one is told all the same");
    assert_eq!(world.engine.observer_panics(), broken.0.load(Ordering::Relaxed));
    assert!(world.engine.observer_panics() >= 3);
}

/// Wants requests to the store alone.
#[derive(Default)]
struct Requests(Mutex<Vec<(Operation, bool, u32)>>);

impl Observer for Requests {
    fn interest(&self) -> Interest {
        Interest::STORE
    }

    fn observe(&self, event: &Event<'_>) {
        let What::Store { request, result, tries, store, .. } = event.what else {
            panic!("it wants no {:?}", event.what);
        };
        assert_eq!(store, "faulty");
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push((request, result.is_ok(), tries));
    }
}

#[tokio::test]
async fn an_observer_is_told_only_what_it_wants_and_of_each_request_once_with_its_tries() {
    let requests = Arc::new(Requests::default());
    // Beside one that wants everything.
    let world = World::with(|builder| builder.observer(requests.clone()).observer(Log::default()));
    world.store.next(Operation::Complete, Fault::LostAnswer);
    world.while_time_passes(world.charge(1)).await.unwrap();
    world.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Corrupt));
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::Decode);
    let told = requests.0.lock().unwrap().clone();
    let told: Vec<_> =
        told.into_iter().filter(|(request, ..)| *request != Operation::Renew).collect();
    assert_eq!(
        told,
        [(Operation::Claim, true, 1), (Operation::Complete, true, 2), (Operation::Claim, false, 1),]
    );
    assert_eq!(world.engine.observer_panics(), 0);
}

#[tokio::test]
async fn a_result_whose_late_commit_meets_another_owner_was_never_stored() {
    let (world, log) = observed();
    let other = world.other_process();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let charged = world.call(1).on_crash(OnCrash::Retry).run(async || world.effect(1));
    let error = without_renewals(&world, charged).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    assert!(log.has(&format!("{CALLED} NotStored 1")));
    world.clock.advance(LEASE * 2);
    other.call(1).on_crash(OnCrash::Retry).run(async || other.effect(1)).await.unwrap();
    world.store.always(Operation::Complete, None);
    let told = eventually("the end of the result", async || log.has("never stored"));
    without_renewals(&world, told).await;
    assert!(!log.has("stored late"));
}

#[tokio::test]
async fn a_result_that_the_store_did_not_take_in_all_the_time_was_never_stored() {
    let log = Log::default();
    let world = World::with(|builder| builder.observer(log.clone()).background_commit(LEASE));
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let error = without_renewals(&world, world.charge(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    assert!(!log.has("never stored"), "the background goes on");
    let told = eventually("the end of the result", async || log.has("never stored"));
    without_renewals(&world, told).await;
}

#[tokio::test]
async fn a_hit_in_memory_names_its_source() {
    let log = Log::default();
    let memory = idempotency::store::MemoryStore::new();
    let engine = Idempotency::builder(memory).observer(log.clone()).build().unwrap();
    for _ in 0..2 {
        let call = engine.call(CALLED, 1).ttl(Duration::from_secs(60));
        call.run(async || Ok::<_, Error>(1)).await.unwrap();
    }
    assert_eq!(
        ends(&log),
        ["Executed 1".to_owned(), format!("{:?} 1", Outcome::Replayed(Source::Memory))]
    );
}

#[tokio::test]
async fn a_record_that_vanished_and_is_written_again_is_reported() {
    let (world, log) = observed();
    let call = world.call(1).run(|| async {
        // What an eviction does: the record goes, and leaves no tombstone.
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        world.effect(1)
    });
    call.await.unwrap();
    let called = format!("{CALLED} Executed 1");
    assert_eq!(log.taken(), ["claimed 1 None", "adopted", &called]);
}

/// A store that stalls would otherwise be one of which nothing is heard.
#[tokio::test]
async fn a_request_that_is_given_up_is_reported_too() {
    #[derive(Clone, Default)]
    struct GivenUp(Arc<Mutex<Vec<Operation>>>);
    impl Observer for GivenUp {
        fn observe(&self, event: &Event<'_>) {
            if let What::Store { request, result: Err(StoreErrorKind::Unavailable), .. } =
                event.what
            {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            }
        }
    }
    let given_up = GivenUp::default();
    let world = World::with(|builder| builder.observer(given_up.clone()).background_commit(LEASE));
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::Late(gate.clone()));
    let error = without_renewals(&world, world.charge(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let reported = eventually("the report", async || {
        given_up.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&Operation::Claim)
    });
    without_renewals(&world, reported).await;
}

#[tokio::test]
async fn an_adoption_in_the_background_is_reported_and_refusals_name_the_attempt() {
    let (world, log) = observed();
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let call = world.call(1).run(|| async { world.effect(1) });
    assert_eq!(world.while_time_passes(call).await.unwrap_err().kind(), ErrorKind::NotStored);
    let reject = world.other_process_with(|builder| {
        builder.on_conflict(OnConflict::Reject).observer(log.clone())
    });
    assert_eq!(reject.charge(1).await.unwrap_err().kind(), ErrorKind::InProgress);
    assert!(log.has(&format!("{CALLED} Refused(InProgress) 1")));
    let record = world.record(1).await.unwrap();
    world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
    world.store.always(Operation::Complete, None);
    let stored = eventually("the result", async || log.has("stored late"));
    world.while_time_passes(stored).await;
    assert!(log.has("adopted"));
}
