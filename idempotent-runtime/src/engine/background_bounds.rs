//! Bounds on the work that the background does at once.
//!
//! During a long outage each call that fails leaves something behind, and each body that ends has
//! something to store. Without a bound the process would keep all of it in memory for as long as
//! the outage lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The number of requests without a caller that are followed to their answer; some thirty
/// megabytes. Requests beyond it are owed to the store at once, which takes a hundredth of that.
const FOLLOWED: usize = 10_000;
/// The number of ends of bodies on their way to the store; some two hundred megabytes and the
/// results. An end beyond it is left to its lease: when that expires, the outcome is unknown.
const ENDS: usize = 50_000;

/// The bounds of an engine.
pub(super) struct Bounds {
    pub(super) followed: Bound,
    pub(super) ends: Bound,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            followed: Bound::new("requests without a caller", FOLLOWED),
            ends: Bound::new("ends of bodies", ENDS),
        }
    }
}

/// A limited number of places.
pub(super) struct Bound {
    of_what: &'static str,
    places: Arc<Semaphore>,
    left_out: AtomicU64,
}

impl Bound {
    fn new(of_what: &'static str, places: usize) -> Self {
        Self { of_what, places: Arc::new(Semaphore::new(places)), left_out: AtomicU64::new(0) }
    }

    /// Takes a place, which is held until it is dropped. If there is none, the number of items left
    /// out is logged each time it has doubled.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            let left_out = self.left_out.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if left_out.is_power_of_two() {
                tracing::warn!(
                    left_out,
                    of_what = self.of_what,
                    "too much work is left to the background"
                );
            }
        }
        place
    }

    /// Takes all places, as if the background had no capacity left.
    #[cfg(test)]
    pub(super) fn fill(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(self.places.available_permits()).expect("there are not so many");
        self.places.clone().try_acquire_many_owned(all).expect("they are available")
    }

    #[cfg(test)]
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, feature = "memory", feature = "testing"))]
mod tests {
    use std::time::Duration;

    use crate::engine::claim::release_unused;
    use crate::key::KeyHash;
    use crate::store::{
        Claim, ClaimOutcome, MemoryStore, Operation, Release, State, Store as _, StoreErrorKind,
        Token,
    };
    use crate::testing::{Fault, FaultyStore};
    use crate::{Context, Error, ErrorAction, ErrorKind, Idempotency, OnCrash};

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn a_claim_for_which_there_is_no_place_is_released_in_its_turn() {
        let store = MemoryStore::new();
        let engine = Idempotency::new(store.clone()).inner;
        engine.keeper.start().unwrap();
        let all = engine.bounds.followed.fill();
        let (key, token) = (KeyHash::from_bytes([7; 32]), Token::from_bits(1));
        let claimed = store.claim(Claim::new(key, token, "payments.charge".into())).await.unwrap();
        assert!(matches!(claimed, ClaimOutcome::Granted(_)));
        release_unused(&engine, Release::unused(key, token), DAY, false).await;
        assert_eq!(engine.bounds.followed.left_out(), 1);
        engine.keeper.idle().await;
        assert_eq!(store.read(key).await.unwrap(), None);
        drop(all);
        release_unused(&engine, Release::unused(key, token), DAY, false).await;
        assert_eq!(engine.bounds.followed.left_out(), 1);
    }

    #[tokio::test]
    async fn a_result_for_which_there_is_no_place_ends_with_its_lease() {
        let store = FaultyStore::new(MemoryStore::new());
        store.always(Operation::Complete, Some(Fault::Refused(StoreErrorKind::Full)));
        let engine = Idempotency::new(store);
        let call = |key: u64| {
            engine
                .call("payments.charge", key)
                .ttl(DAY)
                .run(async || Ok::<_, Error>("charged".to_owned()))
        };
        assert_eq!(call(1).await.unwrap_err().kind(), ErrorKind::NotStored);
        assert_eq!(engine.inner.keeper.leases().len(), 1, "it is stored in the background");
        let _all = engine.inner.bounds.ends.fill();
        assert_eq!(call(2).await.unwrap_err().kind(), ErrorKind::NotStored);
        assert_eq!(engine.inner.keeper.leases().len(), 1);
        assert_eq!(engine.inner.bounds.ends.left_out(), 1);
    }

    #[tokio::test]
    async fn a_step_in_hand_is_on_the_record_that_is_left_to_its_lease_for_want_of_a_place() {
        let store = FaultyStore::new(MemoryStore::new());
        let patience = Duration::from_millis(20);
        let engine = Idempotency::builder(store.clone()).commit_timeout(patience).build_valid();
        store.always(Operation::Complete, Some(Fault::Refused(StoreErrorKind::Full)));
        store.always(Operation::Checkpoint, Some(Fault::LostRequest));
        let _all = engine.inner.bounds.ends.fill();
        let call = engine.call("payments.charge", 1).ttl(DAY).on_crash(OnCrash::Resume);
        let call = call.run(async || {
            let step =
                Context::current().step("charge", async || Ok::<_, Error>("charged".to_owned()));
            let error = step.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotStored);
            store.always(Operation::Checkpoint, None);
            Ok::<_, Error>("done".to_owned())
        });
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::NotStored);
        let record = engine.record("payments.charge", 1).inspect().await.unwrap().unwrap();
        assert_eq!((record.state, record.checkpoints), (State::InProgress, 1));
        assert!(engine.inner.keeper.leases().is_empty());
    }

    #[tokio::test]
    async fn a_held_error_for_which_there_is_no_place_is_left_to_its_lease() {
        let store = FaultyStore::new(MemoryStore::new());
        store.always(Operation::Park, Some(Fault::Refused(StoreErrorKind::Full)));
        let engine = Idempotency::new(store.clone());
        let _all = engine.inner.bounds.ends.fill();
        let call = engine.call("payments.charge", 1).ttl(DAY).on_error(ErrorAction::Hold);
        let error = call.run(async || Err::<String, _>(Error::config("no answer"))).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Config);
        assert!(engine.inner.keeper.leases().is_empty());
        engine.inner.keeper.idle().await;
        assert_eq!(
            store.requests(Operation::Park),
            1,
            "the background does not go on with it either"
        );
    }
}
