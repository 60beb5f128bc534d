//! What is written about an attempt whose outcome is unknown: its record is put in doubt, or left to
//! the next call. Its owner's end and a shutdown do both.

use std::time::Duration;

use super::Inner;
use super::lease::Lease;
use super::retry::Budget;
use super::settle::Left;
use crate::events::What;
use crate::store::{Abandon, Park, Reason, StoreError, WriteOutcome};

/// Marks the owner's record as in doubt, and reports that to observers. Two ends of one owner, such
/// as its error and a shutdown, may do it; the first one is reported, whose reason is on the record.
pub(super) async fn put_in_doubt(
    engine: &Inner,
    lease: &Lease,
    budget: Budget,
    park: Park,
) -> Result<WriteOutcome, StoreError> {
    let written = engine.store.park(budget, park).await?;
    if written.is_done() && lease.note_doubt() {
        let what = What::InDoubt { reason: park.reason };
        engine.observers.tell(Some(&lease.operation), Some(&lease.key), what);
    }
    Ok(written)
}

/// Waits for steps that have ended and are being written, so that their results are on the record
/// before the next caller gets it. No step begins afterwards.
pub(super) async fn close_steps(engine: &Inner, lease: &Lease, budget: Duration) {
    if let Some(journal) = lease.journal() {
        journal.close();
        // At most half: the record has to be left, whatever becomes of the steps.
        journal.flushed(engine, (budget / 2).min(engine.settings.commit_timeout)).await;
    }
}

/// Leaves a record whose outcome is unknown to the next call, or in doubt, at once. If that fails,
/// the lease expires. Returns `None` if the store has not answered.
///
/// The steps have been waited for, while the lease was still renewed: otherwise that wait could use
/// up what is left of it. A shutdown waits without renewals, because a second shutdown must not find
/// the lease again; if too little is left, the next caller runs the step again.
pub(super) async fn leave(
    engine: &Inner,
    lease: &Lease,
    (reason, left): (Reason, Left),
    budget: Duration,
) -> Option<WriteOutcome> {
    let (key, token) = (lease.key, lease.token);
    let budget = Budget::of(budget);
    let park = || put_in_doubt(engine, lease, budget, Park::own(key, token, reason));
    let written = match left {
        // Decided again before each try, after the wait for the steps and throughout an outage:
        // meanwhile the body may have ended in an error that is held, and then no call may run it
        // again, whatever was decided before.
        Left::ToTheNextCall => {
            let abandon = Abandon::new(key, token, reason);
            match engine.store.abandon(budget, abandon, || lease.may_be_taken_over()).await {
                Ok(Some(written)) => return Some(written),
                Ok(None) => park().await,
                Err(error) => Err(error),
            }
        }
        Left::InDoubt => park().await,
    };
    let failed = |error: &StoreError| {
        tracing::warn!(%key, %error,
            "an unknown outcome could not be recorded; the policy applies when the lease expires");
    };
    written.inspect_err(failed).ok()
}

#[cfg(all(test, feature = "memory", feature = "testing"))]
mod tests {
    use std::future::Future as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;
    use std::time::Duration;

    use super::{Left, leave};
    use crate::Idempotency;
    use crate::engine::Inner;
    use crate::engine::lease::{Lease, Term};
    use crate::events::{Event, Observer, What};
    use crate::key::KeyHash;
    use crate::store::{
        Claim, ClaimOutcome, CrashPolicy, MemoryStore, Operation, Reason, State, Store, Token,
    };
    use crate::testing::{Fault, FaultyStore, ManualClock};

    const LEASE: Duration = Duration::from_secs(30);
    const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

    /// The lease of a claim under `retry`.
    async fn granted(store: &impl Store, engine: &Inner) -> Lease {
        let mut claim = Claim::new(KEY, Token::from_bits(9), "payments.charge".into());
        (claim.policy, claim.lease) = (CrashPolicy::Retry, LEASE);
        let owner = (claim.key, claim.token);
        let granted = store.claim(claim).await.unwrap();
        assert!(matches!(granted, ClaimOutcome::Granted(_)), "{granted:?}");
        let (sent, clock) = (engine.clock.monotonic(), engine.clock.clone());
        let term = Term { length: LEASE, max_run: LEASE, after_body: LEASE };
        Lease::new(owner, "payments.charge".into(), CrashPolicy::Retry, term, sent, clock)
    }

    #[tokio::test]
    async fn a_record_that_its_owner_holds_is_not_left_to_the_next_call_whatever_was_decided_before()
     {
        let store = MemoryStore::new();
        let engine = Idempotency::new(store.clone()).inner;
        let lease = granted(&store, &engine).await;
        // As in a shutdown that decides while the body still runs, and waits for its steps.
        let decided = (Reason::ShutDown, Left::ToTheNextCall);
        lease.hold();
        leave(&engine, &lease, decided, LEASE).await.unwrap();
        let record = store.read(KEY).await.unwrap().unwrap();
        assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::ShutDown)));
    }

    #[tokio::test]
    async fn a_record_that_its_owner_holds_during_an_outage_is_not_left_to_the_next_call() {
        let clock = ManualClock::new();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let engine = Idempotency::builder(store.clone()).clock(clock.clone()).build_valid().inner;
        let lease = granted(&store, &engine).await;
        store.next(Operation::Abandon, Fault::LostRequest);
        let decided = (Reason::ShutDown, Left::ToTheNextCall);
        let mut leaves = std::pin::pin!(leave(&engine, &lease, decided, LEASE));
        let first = std::future::poll_fn(|cx| Poll::Ready(leaves.as_mut().poll(cx))).await;
        assert!(first.is_pending(), "it pauses before its second try");
        lease.hold();
        clock.advance(Duration::from_secs(1));
        leaves.await.unwrap();
        let record = store.read(KEY).await.unwrap().unwrap();
        assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::ShutDown)));
    }

    /// Counts the records in doubt that are reported to it.
    #[derive(Default)]
    struct Doubts(AtomicUsize);

    impl Observer for Doubts {
        fn observe(&self, event: &Event<'_>) {
            if let What::InDoubt { .. } = event.what {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[tokio::test]
    async fn observers_hear_once_of_a_record_that_two_ends_of_its_owner_put_in_doubt() {
        let (store, doubts) = (MemoryStore::new(), Arc::new(Doubts::default()));
        let builder = Idempotency::builder(store.clone()).observer(doubts.clone());
        let engine = builder.build_valid().inner;
        let lease = granted(&store, &engine).await;
        for reason in [Reason::Error, Reason::ShutDown] {
            let written = leave(&engine, &lease, (reason, Left::InDoubt), LEASE).await.unwrap();
            assert!(written.is_done(), "{written:?}");
        }
        assert_eq!(doubts.0.load(Ordering::Relaxed), 1);
    }
}
