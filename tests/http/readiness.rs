//! Rule 70: what is right behind the layer is asked whether it is ready when its handler is to begin, and not before.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use futures::{FutureExt as _, stream};
use idempotency::http::{IdempotencyLayer, RequestBody, Scope};
use idempotency::store::{MemoryStore, StoreErrorKind};
use idempotency::testing::{Fault, FaultyStore, Gate, ManualClock};
use idempotency::{Idempotency, OnCrash};
use idempotency_test_support::deadline::{eventually, within};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::world::{NO_PATIENCE, PATIENCE};

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global())
}

async fn paid(request: Request<RequestBody<Body>>) -> Result<Response<Body>, Infallible> {
    let body = axum::body::to_bytes(Body::new(request.into_body()), 1_000).await;
    Ok(Response::new(body.map_or_else(|_| Body::from("cut off"), |_| Body::from("paid"))))
}

fn request(key: &str) -> Request<Body> {
    let request = Request::post("/").header("idempotency-key", key).body(Body::from("{}"));
    request.expect("the request is well-formed")
}

/// Whose body never comes.
fn endless(key: &str) -> Request<Body> {
    request(key).map(|_| Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()))
}

#[tokio::test]
async fn rule_70_a_request_whose_body_is_on_its_way_takes_no_place_behind_the_layer() -> anyhow::Result<()> {
    let limited = layer().layer(ConcurrencyLimitLayer::new(1).layer(service_fn(paid)));
    let mut slow = pin!(limited.clone().oneshot(endless("slow")));
    assert!(slow.as_mut().now_or_never().is_none());
    assert_eq!(within("an answer", limited.oneshot(request("quick"))).await??.status(), 200);

    let queued = layer().layer(BufferLayer::new(1).layer(service_fn(paid)));
    let mut slow = pin!(queued.clone().oneshot(endless("slow")));
    assert!(slow.as_mut().now_or_never().is_none());
    let answer = within("an answer", queued.oneshot(request("quick"))).await?;
    assert_eq!(answer.map_err(anyhow::Error::from_boxed)?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn rule_70_a_request_that_waits_for_another_takes_no_place_behind_the_layer() -> anyhow::Result<()> {
    let (gate, begun) = (Gate::new(), Arc::new(AtomicUsize::default()));
    let (handlers, counting) = (gate.clone(), begun.clone());
    let gated = service_fn(move |_: Request<RequestBody<Body>>| {
        let (gate, begun) = (handlers.clone(), counting.clone());
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            gate.wait().await;
            Ok::<_, Infallible>(Response::new(Body::from("paid")))
        }
    });
    let layer = layer().blocking(Duration::from_secs(600));
    let service = layer.layer(ConcurrencyLimitLayer::new(2).layer(gated));
    let first = tokio::spawn(service.clone().oneshot(request("same")));
    eventually("the first handler", || begun.load(Ordering::SeqCst) == 1).await?;
    let mut waiting = pin!(service.clone().oneshot(request("same")));
    assert!(waiting.as_mut().now_or_never().is_none());
    let other = tokio::spawn(service.oneshot(request("other")));
    eventually("another handler", || begun.load(Ordering::SeqCst) == 2).await?;
    gate.open();
    assert_eq!(first.await??.status(), 200);
    assert_eq!(other.await??.status(), 200);
    let waited = within("the replay", waiting).await??;
    assert_eq!(waited.headers()["idempotency-replayed"], "true");
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    Ok(())
}

/// Each of these has its place when it is called: the limit panics otherwise.
#[tokio::test]
async fn rule_70_a_handler_that_runs_without_a_claim_has_its_place_too() -> anyhow::Result<()> {
    let store = FaultyStore::new(MemoryStore::new());
    store.always("claim", Some(Fault::Refused(StoreErrorKind::Refused)));
    let away = Idempotency::builder(store).claim_timeout(NO_PATIENCE).build();
    let disabled = Idempotency::new(MemoryStore::new());
    disabled.disable("http");
    let layers = [
        (true, IdempotencyLayer::new(away, Scope::global()).with_fail_open()),
        (true, IdempotencyLayer::new(disabled, Scope::global())),
        // With a body that has no key.
        (false, layer().with_key_from_body("/id").with_optional_key()),
    ];
    for (has_key, layer) in layers {
        let service = layer.layer(ConcurrencyLimitLayer::new(1).layer(service_fn(paid)));
        for _ in 0..2 {
            let mut request = request("abc");
            if !has_key {
                request.headers_mut().remove("idempotency-key");
            }
            assert_eq!(within("an answer", service.clone().oneshot(request)).await??.status(), 200);
        }
    }
    Ok(())
}

/// Ready when the layer is asked, and then not, once.
#[derive(Clone)]
struct Moody {
    asked: Arc<AtomicUsize>,
    ran: Arc<AtomicUsize>,
}

impl Service<Request<RequestBody<Body>>> for Moody {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let is_second = self.asked.fetch_add(1, Ordering::SeqCst) == 1;
        Poll::Ready(if is_second { Err(BoxError::from("the queue is closed")) } else { Ok(()) })
    }

    fn call(&mut self, _: Request<RequestBody<Body>>) -> Self::Future {
        self.ran.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Response::new(Body::from("paid"))))
    }
}

#[tokio::test]
async fn rule_70_a_service_that_is_not_ready_under_the_claim_leaves_the_key_free() -> anyhow::Result<()> {
    let engine = Idempotency::new(MemoryStore::new());
    let ran = Arc::new(AtomicUsize::default());
    let moody = Moody { asked: Arc::default(), ran: ran.clone() };
    let service = IdempotencyLayer::new(engine.clone(), Scope::global()).layer(moody);
    let error = service.clone().oneshot(request("abc")).await.err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("the queue is closed"));
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    let answer = service.oneshot(request("abc")).await.map_err(anyhow::Error::from_boxed)?;
    assert_eq!((answer.status().as_u16(), ran.load(Ordering::SeqCst)), (200, 1));
    assert!(!answer.headers().contains_key("idempotency-replayed"));
    Ok(())
}

/// Somebody else may run it then.
#[tokio::test]
async fn rule_70_a_request_whose_claim_ends_while_it_waits_for_a_place_does_not_run() -> anyhow::Result<()> {
    let clock = ManualClock::new();
    let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
    store.always("renew", Some(Fault::LostRequest));
    let engine = Idempotency::builder(store.clone()).clock(clock.clone()).claim_timeout(PATIENCE).build();
    let ran = Arc::new(AtomicUsize::default());
    let counting = ran.clone();
    let counted = service_fn(move |_: Request<RequestBody<Body>>| {
        counting.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, Infallible>(Response::new(Body::from("paid"))))
    });
    let limited = ConcurrencyLimitLayer::new(1).layer(counted);
    let service = IdempotencyLayer::new(engine, Scope::global()).with_on_crash(OnCrash::Retry).layer(limited.clone());
    // Somebody takes the place while the body of the request comes.
    let body = Gate::new();
    let rest = body.clone();
    let slow = request("abc").map(|_| {
        Body::from_stream(stream::once(async move {
            rest.wait().await;
            Ok::<_, Infallible>("{}")
        }))
    });
    let mut first = Box::pin(service.clone().oneshot(slow));
    assert!(first.as_mut().now_or_never().is_none());
    let place = within("the place", limited.ready_oneshot()).await??;
    let first = tokio::spawn(first);
    body.open();
    eventually("the claim", || store.requests("claim") == 1).await?;
    eventually("the end of the claim", || {
        clock.advance(Duration::from_secs(1));
        first.is_finished()
    })
    .await?;
    assert_eq!((first.await??.status().as_u16(), ran.load(Ordering::SeqCst)), (503, 0));
    drop(place);
    let retry = within("the retry", service.oneshot(request("abc"))).await??;
    assert_eq!((retry.status().as_u16(), ran.load(Ordering::SeqCst)), (200, 1));
    Ok(())
}
