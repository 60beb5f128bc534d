//! When arguments are dropped.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A guard that says whether it is gone.
struct Guard {
    gone: Arc<AtomicBool>,
    id: u64,
}

impl Guard {
    fn new(gone: &Arc<AtomicBool>) -> Self {
        Self { gone: gone.clone(), id: 1 }
    }

    fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

struct Request {
    _guard: Guard,
    id: u64,
}

async fn is_gone(gone: &AtomicBool) -> Result<bool, Error> {
    tokio::task::yield_now().await;
    Ok(gone.load(Ordering::SeqCst))
}

#[idempotent(key = guard.id(), ttl = "24h")]
async fn only_the_key_uses_it(guard: Guard, gone: &AtomicBool) -> Result<bool, Error> {
    is_gone(gone).await
}

#[idempotent(key = guard.id(), ttl = "24h")]
async fn only_the_key_uses_what_is_bound((guard, _): (Guard, u64), gone: &AtomicBool) -> Result<bool, Error> {
    is_gone(gone).await
}

#[idempotent(key = 1, ttl = "24h")]
async fn the_body_uses_another_field(request: Request, gone: &AtomicBool) -> Result<bool, Error> {
    Ok(is_gone(gone).await? || request.id == 0)
}

#[idempotent(key = 1, ttl = "24h")]
async fn nobody_uses_it(_guard: Guard, _: Guard, gone: &AtomicBool) -> Result<bool, Error> {
    is_gone(gone).await
}

type Call = fn(Guard, Arc<AtomicBool>) -> Pin<Box<dyn Future<Output = Result<bool, Error>>>>;

#[tokio::test]
async fn arguments_are_dropped_when_the_body_is_over() {
    let engine = Idempotency::new(MemoryStore::new());
    let check = async |call: Call| {
        let gone = Arc::new(AtomicBool::new(false));
        let was_gone = engine.scope(call(Guard::new(&gone), gone.clone())).await.unwrap();
        assert!(!was_gone, "the guard was dropped before the body was over");
        assert!(gone.load(Ordering::SeqCst));
    };
    check(|guard, gone| Box::pin(async move { only_the_key_uses_it(guard, &gone).await })).await;
    check(|guard, gone| Box::pin(async move { only_the_key_uses_what_is_bound((guard, 1), &gone).await })).await;
    check(|guard, gone| {
        let request = Request { id: guard.id, _guard: guard };
        Box::pin(async move { the_body_uses_another_field(request, &gone).await })
    })
    .await;
    check(|guard, gone| {
        Box::pin(async move {
            let other = Guard::new(&gone);
            nobody_uses_it(guard, other, &gone).await
        })
    })
    .await;
}
