//! Counts of records, for operators.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Facets, Operation, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal, Resolve,
    Scan, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
};
use idempotency::testing::ManualClock;
use idempotency::{ErrorAction, ErrorKind, Idempotency};

use crate::faults::{Fault, Gate};
use crate::world::{OPERATION, World, without_renewals};

const MINUTE: CensusBudget = CensusBudget::of(Duration::from_secs(60));

#[tokio::test]
async fn a_census_counts_the_records_of_the_engine_s_namespace() {
    let world = World::new();
    let shop = world.other_process_with(|builder| builder.namespace("shop"));
    for key in 0..3 {
        world.charge(key).await.unwrap();
    }
    shop.charge(1).await.unwrap();
    let held = world.call(7).on_error(ErrorAction::Hold);
    held.run(async || Err::<String, _>(anyhow::anyhow!("no answer"))).await.unwrap_err();
    let census = world.engine.census(MINUTE).await.unwrap();
    let groups: Vec<_> =
        census.groups().map(|it| (&*it.operation, it.state, it.in_doubt, it.count)).collect();
    let expected = [(OPERATION, State::InDoubt, true, 1), (OPERATION, State::Completed, false, 3)];
    assert_eq!(groups, expected);
    assert_eq!((census.complete, census.in_doubt()), (true, 1));
    assert_eq!(shop.engine.census(MINUTE).await.unwrap().count(), 1);
}

#[tokio::test]
async fn a_census_without_time_is_not_complete_and_no_error() {
    let world = World::new();
    world.charge(1).await.unwrap();
    let census = world.engine.census(CensusBudget::of(Duration::ZERO)).await.unwrap();
    assert_eq!((census.complete, census.percent, census.count()), (false, Some(0), 0));
    assert_eq!(world.store.requests(Operation::Census), 1);
}

#[tokio::test]
async fn a_census_is_made_again_where_the_store_did_not_answer_and_not_where_a_record_is_corrupt() {
    let world = World::new();
    world.charge(1).await.unwrap();
    world.store.next(Operation::Census, Fault::LostAnswer);
    let census = without_renewals(&world, world.engine.census(MINUTE)).await.unwrap();
    assert_eq!((census.complete, census.count()), (true, 1));
    assert_eq!(world.store.requests(Operation::Census), 2);

    world.store.next(Operation::Census, Fault::Refused(StoreErrorKind::Corrupt));
    let refused = world.engine.census(MINUTE).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Decode);
    assert_eq!(world.store.requests(Operation::Census), 3);
}

#[tokio::test]
async fn a_census_that_is_not_answered_is_given_up() {
    let world = World::new();
    world.store.always(Operation::Census, Some(Fault::Late(Gate::new())));
    let refused = without_renewals(&world, world.engine.census(MINUTE)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
    assert!(refused.to_string().contains("could not be counted"), "{refused}");
    assert_eq!(world.store.requests(Operation::Census), 1, "it had all of the time");
}

/// A store whose server cannot be reached. A census looks at its time before it asks the server, as
/// in every store behind a network.
#[derive(Clone, Debug)]
struct Unreachable {
    clock: ManualClock,
    /// The time that the connection takes to fail.
    delay: Duration,
    /// The times that censuses had.
    budgets: Arc<Mutex<Vec<Duration>>>,
}

impl Unreachable {
    fn new(clock: &ManualClock, delay: Duration) -> Self {
        Self { clock: clock.clone(), delay, budgets: Arc::default() }
    }

    async fn fail<T>(&self, operation: Operation) -> Result<T, StoreError> {
        self.clock.sleep(self.delay).await;
        Err(StoreError::new(StoreErrorKind::Unavailable, operation))
    }
}

macro_rules! unreachable_store {
    ($($operation:ident $method:ident($($argument:ty),*) -> $answer:ty;)*) => {
        impl Store for Unreachable {
            fn name(&self) -> &'static str {
                "unreachable"
            }

            fn capabilities(&self) -> Capabilities {
                Capabilities::in_process()
            }

            fn facets(&self) -> Facets<'_> {
                Facets::none()
            }

            async fn fence(&self, _: KeyHash, _: Token) -> Result<Option<u64>, StoreError> {
                self.fail(Operation::Fence).await
            }

            async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
                self.budgets.lock().unwrap().push(budget.time);
                if budget.time.is_zero() {
                    return Ok(Census::new().stopped(Some(0)));
                }
                self.fail(Operation::Census).await
            }
            $(
                async fn $method(&self, _: $($argument),*) -> Result<$answer, StoreError> {
                    self.fail(Operation::$operation).await
                }
            )*
        }
    };
}

unreachable_store! {
    Claim claim(Claim) -> ClaimOutcome;
    Renew renew(Vec<Renewal>) -> Vec<WriteOutcome>;
    Complete complete(Commit) -> WriteOutcome;
    Release release(Release) -> WriteOutcome;
    Abandon abandon(Abandon) -> WriteOutcome;
    Park park(Park) -> WriteOutcome;
    Checkpoint checkpoint(Checkpoint) -> WriteOutcome;
    Read read(KeyHash) -> Option<Record>;
    Watch watch(KeyHash) -> Watch;
    Resolve resolve(Resolve) -> AdminOutcome;
    Remove remove(Remove) -> AdminOutcome;
    Scan scan(Scan) -> Page;
    Purge purge(usize) -> PurgeOutcome;
}

#[tokio::test]
async fn a_census_of_a_store_that_cannot_be_reached_is_an_error() {
    let world = World::new();
    for (seconds, delay) in [(1, 0), (1, 300), (60, 700), (1, 3_000)] {
        let store = Unreachable::new(&world.clock, Duration::from_millis(delay));
        let engine =
            Idempotency::builder(store.clone()).clock(world.clock.clone()).build().unwrap();
        let census = engine.census(CensusBudget::of(Duration::from_secs(seconds)));
        let refused = without_renewals(&world, census).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreUnavailable, "{seconds} s, {delay} ms");
        let budgets = store.budgets.lock().unwrap();
        assert!(budgets.iter().all(|time| !time.is_zero()), "{budgets:?}");
        assert_eq!(budgets.len() == 1, delay == 3_000, "{budgets:?}");
    }

    let store = Unreachable::new(&world.clock, Duration::ZERO);
    let engine = Idempotency::builder(store).clock(world.clock.clone()).build().unwrap();
    let census = engine.census(CensusBudget::of(Duration::ZERO)).await.unwrap();
    assert_eq!((census.complete, census.count()), (false, 0), "without time it asks no server");
}
