//! What handlers, and what they call, find around them; and the layer without axum.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Request, Response};
use axum::routing::post;
use axum::{Extension, Router};
use futures::StreamExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use idempotency::clock::Timestamp;
use idempotency::http::{IdempotencyKey, IdempotencyLayer, Problem, RequestBody, Scope};
use idempotency::record::State as RecordState;
use idempotency::store::{MemoryStore, Operation};
use idempotency::testing::Fault;
use idempotency::{
    Context, Error, Idempotency, InCurrentCall as _, OnCrash, WithEngine as _, idempotent,
};
use idempotency_test_support::deadline::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tracing::Instrument as _;
use tracing_core::span;

use crate::client::Client;
use crate::world::{DAY, Shop, World};

fn tenant() -> Scope {
    Scope::of(|request| request.headers.get("x-tenant")?.to_str().ok().map(str::to_owned))
}

/// Keyed by the request's own key, wherever it is called from.
#[idempotent(name = "mail.receipt", key = IdempotencyKey::current(), ttl = "24h")]
async fn mail(shop: &Shop) -> Result<String, Error> {
    let key = IdempotencyKey::current().map(|key| key.as_str().to_owned()).unwrap_or_default();
    shop.effect(&format!("mailed-{key}"));
    Ok(Context::current().derive_key("mail"))
}

#[tokio::test]
async fn key_scope_and_context_reach_handlers_and_what_they_call() -> anyhow::Result<()> {
    async fn handler(
        State(shop): State<Shop>,
        Extension(extension): Extension<IdempotencyKey>,
        key: IdempotencyKey,
    ) -> Result<String, Error> {
        assert_eq!(
            (extension.as_str(), format!("{key:?}")),
            (key.as_str(), "IdempotencyKey(3 octets)".to_owned())
        );
        let context = Context::current();
        assert_eq!((context.operation(), context.attempt()), ("http", 1));
        // In the scope of the request as well.
        let engine_call = Idempotency::new(MemoryStore::new()).record("x", 1).scope(key.scope());
        assert!(engine_call.hash().is_ok());
        let (one, two) = (mail(&shop).await?, mail(&shop).await?);
        assert_eq!(one, two);
        // Also in tasks that carry the scope along.
        let carried = async { IdempotencyKey::current().is_some() }.in_current_call();
        assert!(tokio::spawn(carried).await.is_ok_and(|found| found));
        Ok(format!("{} {one}", context.derive_key("psp")))
    }
    let world = World::setup()
        .scope(tenant())
        .routes(Router::new().route("/handler", post(handler)))
        .start()
        .await?;
    let send = |tenant| world.client.post("/handler").key("abc").header("x-tenant", tenant).send();
    let (one, two) = (send("one").await?, send("two").await?);
    assert_eq!((one.status, two.status), (200, 200), "{one:?}");
    assert_ne!(one.body, two.body, "two tenants have two keys downstream");
    assert_eq!(world.effects("mailed-abc"), 2);
    assert!(send("one").await?.is_replayed());
    assert!(IdempotencyKey::current().is_none());
    Ok(())
}

/// The key of the code that runs here, as a task of it has it too, and whether the text of a
/// [`Problem`] takes the code for a handler that has one.
async fn key_here(engine: &Idempotency) -> Option<String> {
    // The rest is in a later poll.
    tokio::task::yield_now().await;
    let key = || IdempotencyKey::current().map(|key| key.as_str().to_owned());
    let in_task = tokio::spawn(async move { key() }.in_current_call()).await.ok().flatten();
    assert_eq!(in_task, key());
    let call = |amount| {
        let call = engine.call("charges.amount", 1).ttl(DAY).fingerprint(&amount);
        call.run(async || Ok::<_, Error>(()))
    };
    call(1).await.expect("the first one counts");
    let detail = Problem::of(&call(2).await.expect_err("another amount")).detail();
    let is_inside = detail.contains("Do not send the request with another key");
    assert_eq!(is_inside, key().is_some(), "{detail}");
    key()
}

#[tokio::test]
async fn a_request_without_a_key_has_none_in_a_handler_that_has_one() -> anyhow::Result<()> {
    let engine = Idempotency::new(MemoryStore::new());
    let optional = IdempotencyLayer::new(engine.clone(), Scope::global())
        .with_operation("inner")
        .with_optional_key();
    let in_body = optional.clone().with_key_from_body("/id");
    let request = |method: Method, key: Option<&str>| {
        let mut request = Request::builder().method(method).uri("/");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        request.body(Body::empty()).expect("the request is well-formed")
    };
    let inner = {
        let engine = engine.clone();
        service_fn(move |request: Request<RequestBody<Body>>| {
            let engine = engine.clone();
            // Before the first poll too.
            let at_once = IdempotencyKey::current();
            async move {
                let found = request.extensions().get::<IdempotencyKey>().cloned();
                assert_eq!(at_once, found);
                let key = key_here(&engine).await;
                assert_eq!(key.as_deref(), found.as_ref().map(IdempotencyKey::as_str));
                let answer = Body::from(key.unwrap_or_else(|| "none".to_owned()));
                Ok::<_, Infallible>(Response::new(answer))
            }
        })
    };
    let answers = move |outer: Request<RequestBody<Body>>| {
        let (engine, optional, in_body, inner) =
            (engine.clone(), optional.clone(), in_body.clone(), inner.clone());
        async move {
            let mut answers = Vec::new();
            let mut ask = async |layer: &IdempotencyLayer, request| {
                let answer = layer.layer(inner.clone()).oneshot(request).await?;
                let body = axum::body::to_bytes(Body::new(answer.into_body()), 100).await?;
                answers.push(String::from_utf8(body.to_vec())?);
                anyhow::Ok(())
            };
            ask(&optional, request(Method::POST, None)).await?;
            ask(&optional, request(Method::GET, Some("unused"))).await?;
            ask(&in_body, request(Method::POST, None)).await?;
            ask(&optional, request(Method::POST, Some("inner"))).await?;
            // The request of the outer handler itself, which has its key.
            ask(&optional, outer.map(|_| Body::empty())).await?;
            assert_eq!(key_here(&engine).await.as_deref(), Some("outer"));
            anyhow::Ok(Response::new(Body::from(answers.join(" "))))
        }
    };
    let engine = Idempotency::new(MemoryStore::new());
    let outer = IdempotencyLayer::new(engine, Scope::global());
    let outer = outer.with_methods([Method::PUT]).layer(service_fn(answers));
    let answer = outer.oneshot(request(Method::PUT, Some("outer"))).await?;
    let body = axum::body::to_bytes(Body::new(answer.into_body()), 100).await?;
    assert_eq!(body, "none none none inner outer");
    Ok(())
}

/// Knows which span its one thread is in.
#[derive(Default)]
struct Spans(Mutex<Known>);

#[derive(Default)]
struct Known {
    spans: Vec<&'static tracing::Metadata<'static>>,
    entered: Vec<span::Id>,
}

impl Spans {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl tracing::Subscriber for Spans {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut known = self.known();
        known.spans.push(attributes.metadata());
        span::Id::from_u64(known.spans.len() as u64)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, span: &span::Id) {
        self.known().entered.push(span.clone());
    }

    fn exit(&self, _: &span::Id) {
        self.known().entered.pop();
    }

    fn current_span(&self) -> span::Current {
        let known = self.known();
        let Some(id) = known.entered.last() else { return span::Current::none() };
        let metadata =
            usize::try_from(id.into_u64() - 1).ok().and_then(|index| known.spans.get(index));
        metadata
            .map_or_else(span::Current::none, |metadata| span::Current::new(id.clone(), metadata))
    }
}

#[tokio::test]
async fn the_handler_runs_in_the_span_of_the_request_and_in_a_task_of_its_own() -> anyhow::Result<()>
{
    tokio::task_local! {
        static CALLER: ();
    }
    let _spans = tracing::subscriber::set_default(Spans::default());
    let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
    let mut service = layer.layer(service_fn(async |_: Request<RequestBody<Body>>| {
        let span = tracing::Span::current().metadata().map(tracing::Metadata::name);
        let is_callers_task = CALLER.try_with(|()| ()).is_ok();
        Ok::<_, Infallible>(Response::new(Body::from(format!("{span:?} {is_callers_task}"))))
    }));
    let request = Request::post("/").header("idempotency-key", "abc").body(Body::from("{}"))?;
    let answer =
        tower::Service::call(&mut service, request).instrument(tracing::info_span!("request"));
    let answer = CALLER.scope((), answer).await?;
    let body = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await?;
    assert_eq!(body, "Some(\"request\") false");
    Ok(())
}

#[tokio::test]
async fn errors_are_responses_without_the_layer_too() -> anyhow::Result<()> {
    async fn fails() -> Result<String, Error> {
        #[idempotent(name = "charge", key = key, ttl = "24h")]
        async fn charge(key: Option<u32>) -> Result<String, Error> {
            Ok(key.unwrap_or_default().to_string())
        }
        let engine = Idempotency::new(MemoryStore::new());
        charge(None).with_engine(&engine).await
    }
    async fn needs_a_key(_: IdempotencyKey) {}
    let router = Router::new().route("/fails", post(fails)).route("/needs", post(needs_a_key));
    let server = crate::world::Server::start(router).await?;
    server.client().post("/fails").send().await?.assert_problem(400, "missing")?;
    server.client().post("/needs").send().await?.assert_problem(400, "missing")?;
    Ok(())
}

#[tokio::test]
async fn a_service_that_fails_leaves_an_unknown_outcome_and_its_error_is_unchanged()
-> anyhow::Result<()> {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Broken;
    let engine = Idempotency::new(MemoryStore::new());
    let layer = IdempotencyLayer::new(engine.clone(), Scope::global());
    let mut service = layer
        .layer(service_fn(async |_: Request<RequestBody<Body>>| Err::<Response<Body>, _>(Broken)));
    let request = || Request::post("/").header("idempotency-key", "abc").body(Body::from("{}"));
    assert_eq!(tower::Service::call(&mut service, request()?).await.unwrap_err(), Broken);
    let view = engine.record("http", "abc").inspect().await?;
    assert_eq!(view.map(|view| view.state), Some(RecordState::InDoubt));
    assert_eq!(
        tower::Service::call(&mut service, request()?).await.map(|reply| reply.status().as_u16()),
        Ok(409)
    );
    Ok(())
}

#[tokio::test]
async fn the_layer_works_on_hyper_alone() -> anyhow::Result<()> {
    let engine = Idempotency::new(MemoryStore::new());
    let runs = Arc::new(AtomicU32::new(0));
    let service = IdempotencyLayer::new(engine, Scope::global()).layer(service_fn({
        let runs = runs.clone();
        move |request: Request<RequestBody<hyper::body::Incoming>>| {
            runs.fetch_add(1, Ordering::SeqCst);
            async move {
                let body = axum::body::to_bytes(Body::new(request.into_body()), usize::MAX).await?;
                anyhow::Ok(Response::new(Body::from(body)))
            }
        }
    }));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let client = Client::new(listener.local_addr()?);
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let send = || client.post("/").key("abc").body("hello").send();
    let (first, retry) = (send().await?, send().await?);
    assert_eq!(
        (first.body.as_ref(), retry.is_replayed(), retry.answer()),
        (&b"hello"[..], true, first.answer())
    );
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    server.abort();
    Ok(())
}

#[tokio::test]
async fn without_a_key_nothing_is_buffered() -> anyhow::Result<()> {
    /// Answers to the first piece of its body, whatever follows.
    async fn first_piece(request: Request<Body>) -> Response<Body> {
        let piece = request.into_body().into_data_stream().next().await;
        Response::new(Body::from(piece.and_then(Result::ok).unwrap_or_default()))
    }
    let routes = Router::new().route("/first", post(first_piece));
    let world = World::setup()
        .routes(routes)
        .layer(|layer| layer.with_optional_key().with_max_request_body(4))
        .start()
        .await?;
    let head = "POST /first HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n";
    let mut connection = world.client.write(head).await?;
    connection.write_all(b"beginning").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"beginning") {
        assert!(
            within("the answer", connection.read_buf(&mut answer)).await?? > 0,
            "{}",
            answer.escape_ascii()
        );
    }
    Ok(())
}

/// Where the next request runs the handler again or asks, the record stays in progress for it.
#[tokio::test]
async fn a_request_whose_owner_is_gone_is_uncertain_under_every_policy() -> anyhow::Result<()> {
    for policy in [OnCrash::Hold, OnCrash::Retry, OnCrash::Resume] {
        let status = Arc::new(Mutex::new(None));
        let layer_status = status.clone();
        let world = World::setup()
            .clock_by_hand()
            .layer(move |layer| {
                let layer = layer.with_on_crash(policy);
                *layer_status.lock().expect("nobody panicked") = Some(layer.status_service());
                layer
            })
            .around(move |router| {
                let status =
                    status.lock().expect("nobody panicked").take().expect("the layer was made");
                router.route_service("/status", status)
            })
            .start()
            .await?;
        let state = async |key: &str| {
            let reply = world.client.request(Method::GET, "/status").key(key).send().await?;
            anyhow::Ok(reply.json()?["state"].as_str().map(str::to_owned))
        };
        world.pay("timeout").header("x-status", "504").send().await?;
        assert_eq!(state("timeout").await?.as_deref(), Some("uncertain"), "{policy:?}");
        // Its process is as good as gone when its lease is not renewed.
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let running = world.pay("running").header("x-wait", "1").spawn();
        world.entered("running").await?;
        assert_eq!(state("running").await?.as_deref(), Some("processing"), "{policy:?}");
        world.clock.advance(Duration::from_secs(60));
        assert_eq!(state("running").await?.as_deref(), Some("uncertain"), "{policy:?}");
        running.leave();
    }
    Ok(())
}

#[tokio::test]
async fn the_status_of_a_request_is_told_by_its_key_and_never_its_response() -> anyhow::Result<()> {
    let status = Arc::new(Mutex::new(None));
    let world = World::setup()
        .scope(tenant())
        .layer({
            let status = status.clone();
            move |layer| {
                *status.lock().expect("nobody panicked") = Some(layer.status_service());
                layer
            }
        })
        .around(move |router| {
            let status =
                status.lock().expect("nobody panicked").take().expect("the layer was made");
            router.route_service("/status", status)
        })
        .start()
        .await?;
    let pay = |key: &str| world.pay(key).header("x-tenant", "one");
    let look = |key: &str, tenant| {
        world.client.request(Method::GET, "/status").key(key).header("x-tenant", tenant).send()
    };
    pay("paid").send().await?;
    pay("declined").header("x-status", "402").send().await?;
    pay("timeout").header("x-status", "504").send().await?;
    let running = pay("running").header("x-wait", "1").spawn();
    world.entered("running").await?;
    for (key, state) in [
        ("paid", "succeeded"),
        ("declined", "failed"),
        ("timeout", "uncertain"),
        ("running", "processing"),
    ] {
        let reply = look(key, "one").await?;
        let document = reply.json()?;
        assert_eq!((reply.status, document["state"].as_str()), (200, Some(state)), "{key}");
        let members: Vec<_> =
            document.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(members, ["expires", "since", "state"]);
        for time in ["since", "expires"] {
            let time = humantime::parse_rfc3339(document[time].as_str().unwrap_or_default())?;
            let now = std::time::SystemTime::now();
            assert!(time < now + DAY * 31 && time + Duration::from_secs(60) > now, "{key}");
        }
        assert_eq!(look(key, "two").await?.status, 404, "another tenant sees nothing");
    }
    assert_eq!(look("unknown", "one").await?.status, 404);
    let get = || world.client.request(Method::GET, "/status");
    get().header("x-tenant", "one").send().await?.assert_problem(400, "missing")?;
    get().key("paid").send().await?.assert_problem(401, "no-principal")?;
    let posted = world.client.post("/status").key("new").header("x-tenant", "one").send().await?;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    world.shop.gate.open();
    running.reply().await?;
    Ok(())
}

#[tokio::test]
async fn the_status_of_a_request_that_is_kept_beyond_all_dates_is_told() -> anyhow::Result<()> {
    // A minute before the last date that a header can have.
    const LATE: Timestamp = Timestamp::from_millis(253_402_300_740_000);
    let status = Arc::new(Mutex::new(None));
    let layer_status = status.clone();
    let world = World::setup()
        .clock_by_hand()
        .layer(move |layer| {
            *layer_status.lock().expect("nobody panicked") = Some(layer.status_service());
            layer
        })
        .around(move |router| {
            let status =
                status.lock().expect("nobody panicked").take().expect("the layer was made");
            router.route_service("/status", status)
        })
        .start()
        .await?;
    world.clock.set_wall(LATE);
    let first = world.pay("abc").send().await?;
    assert_eq!(first.header("idempotency-key-expires"), Some("Fri, 31 Dec 9999 23:59:59 GMT"));
    let reply = world.client.request(Method::GET, "/status").key("abc").send().await?;
    assert_eq!(reply.json()?["expires"], "9999-12-31T23:59:59Z");
    Ok(())
}

#[tokio::test]
async fn an_operation_that_is_disabled_runs_unprotected_and_says_so() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.engine.disable("http");
    for runs in 1..=2 {
        let reply = world.pay("abc").send().await?;
        assert_eq!((reply.status, reply.header("idempotency-bypassed")), (201, Some("true")));
        assert_eq!((reply.header("idempotency-key-expires"), world.effects("abc")), (None, runs));
    }
    world.engine.enable("http");
    assert_eq!(world.records().await?, 0);
    Ok(())
}

#[tokio::test]
async fn steps_in_a_handler_are_resumed_by_the_retry() -> anyhow::Result<()> {
    async fn handler(State(shop): State<Shop>) -> Result<String, Error> {
        let context = Context::current();
        let step = context.step("reserve", || async {
            shop.effect("reserved");
            Ok::<_, Error>(Bytes::from("r").len())
        });
        step.await?;
        shop.effect("tried");
        assert!(context.attempt() > 1, "the test asked for it");
        Ok("done".to_owned())
    }
    let world = World::setup()
        .layer(|layer| layer.with_on_crash(OnCrash::Resume).blocking(Duration::from_secs(30)))
        .routes(Router::new().route("/order", post(handler)))
        .start()
        .await?;
    let send = || world.client.post("/order").key("abc").send();
    send().await?.assert_problem(500, "internal")?;
    let retry = send().await?;
    assert_eq!((retry.status, &retry.body[..], retry.is_replayed()), (200, &b"done"[..], false));
    assert_eq!((world.effects("reserved"), world.effects("tried")), (1, 2));
    Ok(())
}
