//! Rule 70: what is right behind the layer is asked whether it is ready when its handler is to
//! begin, and not before.

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
use idempotency::http::{IdempotencyLayer, RequestBody, ResponseBody, Scope};
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
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
async fn rule_70_a_request_whose_body_is_on_its_way_takes_no_place_behind_the_layer()
-> anyhow::Result<()> {
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

/// One service for all requests, as a `Buffer` in front has it.
#[tokio::test]
async fn rule_70_a_request_that_is_refused_keeps_no_place_behind_the_layer() -> anyhow::Result<()> {
    let mut limited = layer().layer(ConcurrencyLimitLayer::new(1).layer(service_fn(paid)));
    let paying = limited.ready().await?.call(request("quick"));
    let unkeyed = Request::post("/").body(Body::from("{}"))?;
    let refused = within("the refusal", limited.ready().await?.call(unkeyed)).await??;
    assert_eq!(refused.status(), 400);
    assert_eq!(within("an answer", paying).await??.status(), 200);
    Ok(())
}

#[tokio::test]
async fn rule_70_a_request_that_waits_for_another_takes_no_place_behind_the_layer()
-> anyhow::Result<()> {
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
    store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    let away = Idempotency::builder(store).claim_timeout(NO_PATIENCE).build()?;
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
async fn rule_70_a_service_that_is_not_ready_under_the_claim_leaves_the_key_free()
-> anyhow::Result<()> {
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
async fn rule_70_a_request_whose_claim_ends_while_it_waits_for_a_place_does_not_run()
-> anyhow::Result<()> {
    let clock = ManualClock::new();
    let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
    store.always(Operation::Renew, Some(Fault::LostRequest));
    let engine =
        Idempotency::builder(store.clone()).clock(clock.clone()).claim_timeout(PATIENCE).build()?;
    let ran = Arc::new(AtomicUsize::default());
    let counting = ran.clone();
    let counted = service_fn(move |_: Request<RequestBody<Body>>| {
        counting.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, Infallible>(Response::new(Body::from("paid"))))
    });
    let limited = ConcurrencyLimitLayer::new(1).layer(counted);
    let service = IdempotencyLayer::new(engine, Scope::global())
        .with_on_crash(OnCrash::Retry)
        .layer(limited.clone());
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
    eventually("the claim", || store.requests(Operation::Claim) == 1).await?;
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

/// A limit of one, and somebody who has the place.
struct Crowded {
    store: FaultyStore<MemoryStore>,
    engine: Idempotency,
    clock: ManualClock,
    ran: Arc<AtomicUsize>,
}

impl Crowded {
    fn new() -> Self {
        let clock = ManualClock::new();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let engine = Idempotency::builder(store.clone())
            .clock(clock.clone())
            .claim_timeout(PATIENCE)
            .build()
            .unwrap();
        Self { store, engine, clock, ran: Arc::default() }
    }

    /// What stands behind the layer.
    fn limited(
        &self,
    ) -> impl Service<
        Request<RequestBody<Body>>,
        Response = Response<Body>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static {
        let counting = self.ran.clone();
        ConcurrencyLimitLayer::new(1).layer(service_fn(move |_: Request<RequestBody<Body>>| {
            counting.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from("paid"))))
        }))
    }

    /// A request under its claim, and who has the place that it waits for.
    async fn waiting<S>(
        &self,
        limited: &S,
    ) -> anyhow::Result<(
        tokio::task::JoinHandle<Result<Response<ResponseBody<Body>>, Infallible>>,
        S,
    )>
    where
        S: Service<
                Request<RequestBody<Body>>,
                Response = Response<Body>,
                Error = Infallible,
                Future: Send,
            > + Clone
            + Send
            + 'static,
    {
        let service =
            IdempotencyLayer::new(self.engine.clone(), Scope::global()).layer(limited.clone());
        // The layer is asked whether it is ready before its body comes, and the place is free then.
        let body = Gate::new();
        let rest = body.clone();
        let slow = request("abc").map(|_| {
            Body::from_stream(stream::once(async move {
                rest.wait().await;
                Ok::<_, Infallible>("{}")
            }))
        });
        let mut first = Box::pin(service.oneshot(slow));
        assert!(first.as_mut().now_or_never().is_none());
        let place = within("the place", limited.clone().ready_oneshot()).await??;
        let first = tokio::spawn(first);
        body.open();
        eventually("the claim", || self.store.requests(Operation::Claim) == 1).await?;
        Ok((first, place))
    }

    /// The first retry runs: nobody is in doubt.
    async fn runs_next<S>(&self, limited: S) -> anyhow::Result<()>
    where
        S: Service<
                Request<RequestBody<Body>>,
                Response = Response<Body>,
                Error = Infallible,
                Future: Send,
            > + Clone
            + Send
            + 'static,
    {
        let elsewhere = Idempotency::builder(self.store.clone())
            .clock(self.clock.clone())
            .claim_timeout(PATIENCE);
        let service = IdempotencyLayer::new(elsewhere.build()?, Scope::global()).layer(limited);
        let retry = within("the retry", service.oneshot(request("abc"))).await??;
        assert_eq!((retry.status().as_u16(), self.ran.load(Ordering::SeqCst)), (200, 1));
        Ok(())
    }
}

#[tokio::test]
async fn rule_70_a_shutdown_takes_back_the_claims_of_requests_that_wait_for_a_place()
-> anyhow::Result<()> {
    let world = Crowded::new();
    let limited = world.limited();
    let (first, place) = world.waiting(&limited).await?;
    let engine = world.engine.clone();
    let shutdown = tokio::spawn(async move { engine.shutdown(Duration::from_secs(1)).await });
    eventually("the end of the shutdown", || {
        world.clock.advance(Duration::from_secs(1));
        shutdown.is_finished()
    })
    .await?;
    assert_eq!((shutdown.await?.abandoned, first.await??.status().as_u16()), (0, 503));
    drop(place);
    world.runs_next(limited).await
}

#[tokio::test]
async fn rule_70_a_claim_that_ends_while_its_request_waits_for_a_place_leaves_no_doubt()
-> anyhow::Result<()> {
    let world = Crowded::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let limited = world.limited();
    let (first, place) = world.waiting(&limited).await?;
    eventually("the end of the claim", || {
        world.clock.advance(Duration::from_secs(1));
        first.is_finished()
    })
    .await?;
    assert_eq!((first.await??.status().as_u16(), world.ran.load(Ordering::SeqCst)), (503, 0));
    drop(place);
    world.runs_next(limited).await
}

/// The process stood still meanwhile, and finds both at once.
#[tokio::test]
async fn rule_70_a_place_that_comes_with_the_end_of_the_claim_is_not_taken() -> anyhow::Result<()> {
    let world = Crowded::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let limited = world.limited();
    let (first, place) = world.waiting(&limited).await?;
    // Nothing else runs between these two.
    drop(place);
    world.clock.advance(Duration::from_secs(600));
    let first = within("the refusal", first).await???;
    assert_eq!((first.status().as_u16(), world.ran.load(Ordering::SeqCst)), (503, 0));
    Ok(())
}
