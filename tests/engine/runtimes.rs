//! Runtimes that end before the engine does, and engines that end before their runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idempotency::clock::{Clock, Sleep, SystemClock, Timestamp};
use idempotency::record::State;
use idempotency::store::{MemoryStore, Operation, Store as _};
use idempotency::{Error, ErrorKind, Idempotency, OnConflict};
use tokio::runtime::{Builder, Runtime};

use crate::faults::{Fault, FaultyStore, Gate};
use crate::ledger::Ledger;
use crate::world::{DAY, OPERATION, World, eventually, without_renewals};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The pauses between two tries of a commit are on the timer of the caller's runtime.
#[test]
fn a_commit_goes_on_when_the_runtime_of_its_caller_has_ended() {
    let (memory, ledger) = (MemoryStore::new(), Arc::new(Ledger::new()));
    let store = FaultyStore::new(memory.clone());
    let engine = Idempotency::new(store.clone());
    store.always(Operation::Complete, Some(Fault::LostRequest));
    let (first, second) = (runtime(), runtime());
    first.block_on(async {
        let (engine, ledger) = (engine.clone(), ledger.clone());
        tokio::spawn(async move {
            let call = engine.call(OPERATION, 1).ttl(DAY).run(|| async {
                ledger.charge("charge 1");
                Ok::<_, Error>("paid".to_owned())
            });
            call.await
        });
        eventually("the commit to be tried", async || store.requests(Operation::Complete) >= 3)
            .await;
    });
    drop(first);
    store.always(Operation::Complete, None);
    second.block_on(async {
        let key = engine.record(OPERATION, 1).hash().unwrap();
        eventually("the result to be stored", async || {
            memory.read(key).await.unwrap().is_some_and(|record| record.state == State::Completed)
        })
        .await;
        let call = engine.call(OPERATION, 1).ttl(DAY).run(|| async {
            ledger.charge("charge again");
            Ok::<_, Error>("again".to_owned())
        });
        assert_eq!(call.await.unwrap(), "paid");
        assert_eq!(engine.shutdown(Duration::ZERO).await.abandoned, 0, "no lease is left behind");
    });
    assert_eq!(ledger.charges(), ["charge 1"]);
}

#[tokio::test]
async fn a_detached_call_whose_runtime_ends_is_told_that_its_outcome_is_unknown() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new(OPERATION, file!(), line!());
    let (world, started) = (World::new(), Gate::new());
    let body = {
        let (started, ledger) = (started.clone(), world.ledger.clone());
        move || async move {
            ledger.charge("detached");
            started.open();
            std::future::pending::<Result<String, Error>>().await
        }
    };
    let call = call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY);
    let mut call = Box::pin(run_detached(call, outcome(), body));
    let other = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    eventually("the body to start", async || {
        let _inside = other.enter();
        assert!(crate::world::poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    other.shutdown_background();
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::InDoubt);
    world.record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt)).await;
}

/// The machine's clock, and whether somebody still holds it.
#[derive(Debug)]
struct Held(SystemClock, #[expect(dead_code, reason = "it is held")] Arc<()>);

impl Clock for Held {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.0.sleep(duration)
    }
}

#[tokio::test]
async fn an_engine_that_is_dropped_takes_its_thread_along() {
    let held = Arc::new(());
    let clock = Held(SystemClock::new(), held.clone());
    let engine = Idempotency::builder(MemoryStore::new()).clock(clock).build().unwrap();
    engine.call(OPERATION, 1).ttl(DAY).run(|| async { Ok::<_, Error>(()) }).await.unwrap();
    drop(engine);
    eventually("the thread to end", async || Arc::strong_count(&held) == 1).await;
}

#[tokio::test]
async fn a_claim_that_is_to_be_released_again_later_keeps_no_engine() {
    let held = Arc::new(());
    let store = FaultyStore::new(MemoryStore::new());
    let clock = Held(SystemClock::new(), held.clone());
    let engine = Idempotency::builder(store.clone())
        .clock(clock)
        .claim_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    store.always(Operation::Claim, Some(Fault::LostRequest));
    engine.call(OPERATION, 1).ttl(DAY).run(|| async { Ok::<_, Error>(()) }).await.unwrap_err();
    // Once, and once again; the pauses double.
    eventually("the releases", async || store.requests(Operation::Release) >= 4).await;
    drop(engine);
    eventually("the thread to end", async || Arc::strong_count(&held) == 1).await;
}

/// Each of these was told that there is none.
#[tokio::test]
async fn a_claim_whose_release_an_outage_delays_is_released_though_the_engine_is_dropped() {
    let memory = MemoryStore::new();
    let store = FaultyStore::new(memory.clone());
    let builder = Idempotency::builder(store.clone()).claim_timeout(Duration::from_millis(100));
    let engine = builder.lease(Duration::from_millis(300)).build().unwrap();
    store.always(Operation::Claim, Some(Fault::LostAnswer));
    store.always(Operation::Release, Some(Fault::LostRequest));
    engine.call(OPERATION, 1).ttl(DAY).run(|| async { Ok::<_, Error>(()) }).await.unwrap_err();
    let key = engine.record(OPERATION, 1).hash().unwrap();
    drop(engine);
    // The release that goes with the call is over with its lease.
    let before = store.requests(Operation::Release);
    eventually("the background to go on", async || store.requests(Operation::Release) > before + 8)
        .await;
    assert!(memory.read(key).await.unwrap().is_some());
    store.always(Operation::Release, None);
    eventually("the release", async || memory.read(key).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_claim_without_an_answer_is_released_twice_also_without_time_in_the_background() {
    let world = World::with(|builder| builder.background_commit(Duration::ZERO));
    world.store.always(Operation::Claim, Some(Fault::LostRequest));
    without_renewals(&world, world.charge(1)).await.unwrap_err();
    let twice =
        eventually("another release", async || world.store.requests(Operation::Release) >= 2);
    without_renewals(&world, twice).await;
}

/// A call whose body has begun, and never ends.
fn begun(
    engine: &Idempotency,
    runtime: &Runtime,
) -> impl Future<Output = Result<u32, Error>> + use<> {
    let started = Gate::new();
    let body = {
        let started = started.clone();
        move || async move {
            started.open();
            std::future::pending().await
        }
    };
    let mut call = Box::pin(engine.call(OPERATION, 1).ttl(DAY).run(body));
    runtime.block_on(async {
        tokio::select! {
            _ = &mut call => panic!("the body does not end"),
            () = started.wait() => {}
        }
    });
    call
}

/// A future can be dropped anywhere: beside other timers, or beside none.
#[test]
fn a_call_that_is_dropped_where_there_are_no_timers_is_left_to_its_policy_at_once() {
    let (runtime, without_timers) = (runtime(), Builder::new_current_thread().build().unwrap());
    let engine = Idempotency::new(MemoryStore::new());
    let call = begun(&engine, &runtime);
    {
        let _inside = without_timers.enter();
        drop(call);
    }
    let next = engine.call(OPERATION, 1).ttl(DAY).on_conflict(OnConflict::Reject);
    let next = runtime.block_on(next.run(|| async { Ok::<u32, Error>(2) }));
    assert_eq!(next.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(
        runtime.block_on(engine.shutdown(Duration::ZERO)).abandoned,
        0,
        "no lease is left behind"
    );
}

/// A clock that panics where it is asked to wait, on the thread of who made it.
#[derive(Debug)]
struct Stopped(SystemClock, std::thread::ThreadId, Arc<AtomicBool>);

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let is_stopped = self.2.load(Ordering::SeqCst) && std::thread::current().id() == self.1;
        assert!(!is_stopped, "there is no time");
        self.0.sleep(duration)
    }
}

/// Else it would be renewed for an hour, and its key would be in progress for as long.
#[test]
fn a_lease_ends_with_its_call_also_where_the_clean_up_panics() {
    let (runtime, is_stopped) = (runtime(), Arc::new(AtomicBool::new(false)));
    let clock = Stopped(SystemClock::new(), std::thread::current().id(), is_stopped.clone());
    let engine = Idempotency::builder(MemoryStore::new()).clock(clock).build().unwrap();
    let call = begun(&engine, &runtime);
    is_stopped.store(true, Ordering::SeqCst);
    runtime.block_on(async { drop(call) });
    is_stopped.store(false, Ordering::SeqCst);
    assert_eq!(
        runtime.block_on(engine.shutdown(Duration::ZERO)).abandoned,
        0,
        "no lease is left behind"
    );
}
