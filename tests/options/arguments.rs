//! When arguments are dropped, measured at the store.

use idempotency::store::Operation;
use std::sync::atomic::AtomicBool;

use idempotency::testing::{Fault, FaultyStore, Gate};

use super::*;

struct Permit(Arc<AtomicBool>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[idempotent(key = 1, ttl = "1h")]
async fn in_the_body(permit: Permit) -> Result<bool, Error> {
    tokio::task::yield_now().await;
    Ok(permit.0.load(Ordering::SeqCst))
}

#[idempotent(key = 1, ttl = "1h")]
async fn nowhere(_permit: Permit) -> Result<bool, Error> {
    Ok(false)
}

/// Whether the argument is gone while the result is on its way to the store.
async fn is_gone_before_the_result_is_stored<F: Future<Output = Result<bool, Error>>>(
    call: fn(Permit) -> F,
) -> bool {
    let store = FaultyStore::new(MemoryStore::new());
    let (gate, gone) = (Gate::new(), Arc::new(AtomicBool::new(false)));
    store.next(Operation::Complete, Fault::Late(gate.clone()));
    let engine = Idempotency::new(store.clone());
    let call = call(Permit(gone.clone())).with_engine(&engine);
    let look = async {
        while store.requests(Operation::Complete) == 0 {
            tokio::task::yield_now().await;
        }
        let is_gone = gone.load(Ordering::SeqCst);
        gate.open();
        is_gone
    };
    let (result, is_gone) = tokio::join!(call, look);
    assert!(!result.unwrap(), "it was there while the body ran");
    assert!(gone.load(Ordering::SeqCst), "it is gone after the call");
    is_gone
}

#[tokio::test]
async fn what_the_body_uses_is_dropped_before_the_result_is_stored() {
    assert!(is_gone_before_the_result_is_stored(in_the_body).await);
}

#[tokio::test]
async fn what_nobody_mentions_is_dropped_after_the_result_is_stored() {
    assert!(!is_gone_before_the_result_is_stored(nowhere).await);
}
