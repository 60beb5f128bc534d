//! When arguments are dropped.

use std::sync::Mutex;
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

#[idempotent(key = "order:{ guard.id() }", ttl = "24h")]
async fn only_a_template_uses_it(guard: Guard, gone: Arc<AtomicBool>) -> Result<bool, Error> {
    is_gone(&gone).await
}

fn id_of(guard: &Guard) -> u64 {
    guard.id
}

#[idempotent(key = "order", scope = "{id_of(&guard)}", ttl = "24h")]
async fn only_a_call_in_a_template_uses_it(
    guard: Guard,
    gone: Arc<AtomicBool>,
) -> Result<bool, Error> {
    is_gone(&gone).await
}

#[idempotent(key = guard.id(), ttl = "24h")]
async fn only_the_key_uses_what_is_bound(
    (guard, _): (Guard, u64),
    gone: &AtomicBool,
) -> Result<bool, Error> {
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
        let was_gone = call(Guard::new(&gone), gone.clone()).with_engine(&engine).await.unwrap();
        assert!(!was_gone, "the guard was dropped before the body was over");
        assert!(gone.load(Ordering::SeqCst));
    };
    check(|guard, gone| Box::pin(async move { only_the_key_uses_it(guard, &gone).await })).await;
    check(|guard, gone| Box::pin(async move { only_a_template_uses_it(guard, gone).await })).await;
    check(|guard, gone| {
        Box::pin(async move { only_a_call_in_a_template_uses_it(guard, gone).await })
    })
    .await;
    check(|guard, gone| {
        Box::pin(async move { only_the_key_uses_what_is_bound((guard, 1), &gone).await })
    })
    .await;
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

/// Says which one was dropped.
struct Named(Arc<Mutex<Vec<&'static str>>>, &'static str);

impl Drop for Named {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(self.1);
    }
}

impl Named {
    async fn plain(
        self,
        second: Self,
        (third, fourth): (Self, Self),
        log: &str,
    ) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(third.1.len() + self.1.len() + second.1.len() + fourth.1.len() + log.len())
    }

    #[idempotent(key = second.1, ttl = "24h", name = "signatures.guarded")]
    async fn guarded(
        self,
        second: Self,
        (third, fourth): (Self, Self),
        log: &str,
    ) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(third.1.len() + self.1.len() + second.1.len() + fourth.1.len() + log.len())
    }

    #[idempotent(key = second.1, ttl = "24h", name = "signatures.detached_guard", detach)]
    async fn detached(
        self,
        second: Self,
        (third, fourth): (Self, Self),
        log: &str,
    ) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(third.1.len() + self.1.len() + second.1.len() + fourth.1.len() + log.len())
    }
}

impl Named {
    #[expect(non_snake_case, reason = "it is a name all the same")]
    async fn plain_in_capitals(first: Self, SECOND: Self, third: Self) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(first.1.len() + SECOND.1.len() + third.1.len())
    }

    #[expect(non_snake_case, reason = "it is a name all the same")]
    #[idempotent(key = 1, ttl = "24h", name = "signatures.in_capitals")]
    async fn in_capitals(first: Self, SECOND: Self, third: Self) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(first.1.len() + SECOND.1.len() + third.1.len())
    }
}

impl Named {
    async fn plain_unmentioned(
        self,
        _second: Self,
        (third, _fourth): (Self, Self),
        _: Self,
    ) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(third.1.len())
    }

    #[idempotent(key = third.1, ttl = "24h", name = "signatures.detached_unmentioned", detach)]
    async fn unmentioned(
        self,
        _second: Self,
        (third, _fourth): (Self, Self),
        _: Self,
    ) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(third.1.len())
    }
}

#[tokio::test]
async fn what_a_detached_body_does_not_mention_is_dropped_in_the_same_order() {
    let engine = Idempotency::new(MemoryStore::new());
    let log = Arc::new(Mutex::new(Vec::new()));
    let named = |name| Named(log.clone(), name);
    let dropped = || std::mem::take(&mut *log.lock().unwrap());
    let pair = || (named("third"), named("fourth"));
    named("self").plain_unmentioned(named("second"), pair(), named("fifth")).await.unwrap();
    let plain = dropped();
    assert_eq!(plain, ["fifth", "fourth", "third", "second", "self"]);
    for _ in 0..2 {
        let call = named("self").unmentioned(named("second"), pair(), named("fifth"));
        call.with_engine(&engine).await.unwrap();
        assert_eq!(dropped(), plain);
    }
}

/// A pattern that looks like a name.
struct Marker;

#[idempotent(key = id, ttl = "24h")]
async fn takes_a_marker(Marker: Marker, id: u64) -> Result<u64, Error> {
    Ok([Marker].len() as u64 * id)
}

#[tokio::test]
async fn names_in_capitals_are_arguments_like_all_others() {
    let engine = Idempotency::new(MemoryStore::new());
    let log = Arc::new(Mutex::new(Vec::new()));
    let named = |name| Named(log.clone(), name);
    Named::plain_in_capitals(named("first"), named("SECOND"), named("third")).await.unwrap();
    let plain = std::mem::take(&mut *log.lock().unwrap());
    for _ in 0..2 {
        Named::in_capitals(named("first"), named("SECOND"), named("third"))
            .with_engine(&engine)
            .await
            .unwrap();
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), plain);
    }
    assert_eq!(takes_a_marker(Marker, 7).with_engine(&engine).await.unwrap(), 7);
}

#[tokio::test]
async fn arguments_are_dropped_in_the_order_of_a_plain_function() {
    let engine = Idempotency::new(MemoryStore::new());
    let log = Arc::new(Mutex::new(Vec::new()));
    let named = |name| Named(log.clone(), name);
    let four = || (named("self"), named("second"), (named("third"), named("fourth")));
    let dropped = || std::mem::take(&mut *log.lock().unwrap());

    let (own, second, pair) = four();
    own.plain(second, pair, "log").await.unwrap();
    let plain = dropped();
    assert_eq!(plain, ["fourth", "third", "second", "self"]);
    // The second time it is a replay, and the body does not run.
    for _ in 0..2 {
        let (own, second, pair) = four();
        own.guarded(second, pair, "log").with_engine(&engine).await.unwrap();
        assert_eq!(dropped(), plain);
        let (own, second, pair) = four();
        own.detached(second, pair, "log").with_engine(&engine).await.unwrap();
        assert_eq!(dropped(), plain);
    }
    // A call that is never polled drops what it was given, in the order in which it was given.
    let (own, second, pair) = four();
    drop(own.plain(second, pair, "log"));
    let plain = dropped();
    let (own, second, pair) = four();
    drop(own.guarded(second, pair, "log"));
    assert_eq!(dropped(), plain);
}
