//! Rules 63 to 65: what the end of a handler says about its effects.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::{IntoResponse, Response as AnyResponse};
use axum::routing::post;
use bytes::Bytes;
use idempotency::http::{
    IdempotencyLayer, NotExecuted, NothingHappened, OnStatus, RequestBody, Scope,
};
use idempotency::store::{MemoryStore, StoreError, StoreErrorKind};
use idempotency::testing::{Fault, FaultyStore, Gate, ManualClock};
use idempotency::{
    Error, ErrorKind, Idempotency, OnConflict, OnCrash, Resolution, State as RecordState, Verdict,
};
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::client::{Reply, raw_post};
use crate::scripted::{client, layer, send};
use crate::world::{DAY, PATIENCE, Shop, World};

/// What says that nobody knows.
const UNKNOWN: [&str; 10] = ["408", "500", "501", "502", "503", "504", "505", "507", "511", "599"];

#[tokio::test]
async fn rule_63_a_408_or_5xx_of_a_handler_is_an_unknown_outcome() -> anyhow::Result<()> {
    let world = World::new().await?;
    // Statuses that HTTP does not have are taken for 5xx.
    for status in UNKNOWN.into_iter().chain(["600", "999"]) {
        let first = world.pay(status).header("x-status", status).send().await?;
        assert_eq!(
            (first.status.to_string().as_str(), first.header("idempotency-key-expires")),
            (status, None)
        );
        assert_eq!(first.json()?["key"], status, "it is the handler's own answer");
        for _ in 0..3 {
            world.pay(status).send().await?.assert_problem(409, "uncertain")?;
        }
        assert_eq!(
            (world.state(status).await?, world.effects(status)),
            (Some(RecordState::InDoubt), 1),
            "{status}"
        );
    }
    Ok(())
}

/// A server of HTTP does not send such a response, so that this is seen only without one.
#[tokio::test]
async fn rule_63_a_status_that_only_announces_a_response_is_never_stored() -> anyhow::Result<()> {
    let engine = Idempotency::new(MemoryStore::new());
    let layer =
        IdempotencyLayer::new(engine, Scope::global()).with_on_status(|_, _| OnStatus::Store);
    let early = async |_: Request<RequestBody<Body>>| {
        Ok::<_, Infallible>(
            Response::builder()
                .status(103)
                .body(Body::empty())
                .expect("the response is well-formed"),
        )
    };
    let service = layer.layer(service_fn(early));
    for status in [103, 409] {
        let request = Request::post("/").header("idempotency-key", "abc").body(Body::empty())?;
        assert_eq!(service.clone().oneshot(request).await?.status(), status);
    }
    Ok(())
}

#[tokio::test]
async fn rule_63_an_operator_decides_about_an_unknown_outcome() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (key, resolution, replays, runs) in [
        (
            "happened",
            Resolution::response(Response::builder().status(201).body("found by hand")?),
            true,
            1,
        ),
        ("did not", Resolution::NotExecuted, false, 2),
    ] {
        world.pay(key).header("x-status", "504").send().await?;
        let record = world.record(key);
        let view = record.inspect().await?.context("there is a record")?;
        record.resolve(&view, resolution).await?;
        let retry = world.pay(key).send().await?;
        assert_eq!(
            (retry.status, retry.is_replayed(), world.effects(key)),
            (201, replays, runs),
            "{key}"
        );
        assert!(world.pay(key).send().await?.is_replayed());
    }
    Ok(())
}

#[tokio::test]
async fn rule_63_an_operators_answer_that_only_announces_a_response_is_refused()
-> anyhow::Result<()> {
    let world = World::new().await?;
    world.pay("abc").header("x-status", "504").send().await?;
    let record = world.record("abc");
    let view = record.inspect().await?.context("there is a record")?;
    for status in [100, 101, 103] {
        let resolution = Resolution::response(Response::builder().status(status).body("early")?);
        let error = record.resolve(&view, resolution).await.expect_err("no response has it");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }
    // Nothing has changed.
    world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    record.resolve(&view, Resolution::response(Response::new("found by hand"))).await?;
    assert!(world.pay("abc").send().await?.is_replayed());
    Ok(())
}

/// A server would send it, and clients would read it as the next response.
#[tokio::test]
async fn rule_18_an_operators_answer_without_content_has_none() -> anyhow::Result<()> {
    let world = World::new().await?;
    for status in [204, 205, 304] {
        let key = status.to_string();
        world.pay(&key).header("x-status", "504").send().await?;
        let record = world.record(&key);
        let view = record.inspect().await?.context("there is a record")?;
        let response =
            Response::builder().status(status).header("content-length", "77").body("no content")?;
        record.resolve(&view, Resolution::response(response)).await?;
        let key = format!("Idempotency-Key: {key}\r\n");
        let answer = world.client.exchange(raw_post("/pay", key.as_bytes(), b"{}")).await?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} "))
                && answer.contains("idempotency-replayed"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_63_an_operators_answer_that_is_too_large_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.pay("abc").header("x-status", "504").send().await?;
    let record = world.record("abc");
    let view = record.inspect().await?.context("there is a record")?;
    let resolution = Resolution::response(Response::new("x".repeat(300_000)));
    let error = record.resolve(&view, resolution).await.expect_err("it is over the limit");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let told = error.to_string();
    assert!(told.contains("nothing has changed") && !told.contains("the body"), "{told}");
    world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    record.resolve(&view, Resolution::response(Response::new("found by hand"))).await?;
    assert!(world.pay("abc").send().await?.is_replayed());
    Ok(())
}

#[tokio::test]
async fn rule_63_the_policy_decides_about_an_unknown_outcome() -> anyhow::Result<()> {
    let retrying = World::with(|layer| layer.with_on_crash(OnCrash::Retry)).await?;
    let asking = World::with(|layer| {
        layer.with_settle(Duration::ZERO).with_verify(|_, _| async {
            Verdict::Completed(Response::new(Bytes::from_static(b"found in the books")))
        })
    })
    .await?;
    for status in UNKNOWN {
        for (world, runs) in [(&retrying, 2), (&asking, 1)] {
            world.pay(status).header("x-status", status).send().await?;
            world
                .pay(status)
                .body("another request")
                .send()
                .await?
                .assert_problem(422, "mismatch")?;
            let retry = world.pay(status).send().await?;
            assert!(retry.status < 300, "{retry:?}");
            assert_eq!(
                (world.effects(status), world.pay(status).send().await?.answer()),
                (runs, retry.answer())
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_63_our_own_client_is_charged_once_by_a_service_that_answers_so() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let client = client(&layer(&ManualClock::new()).with_max_attempts(7));
    for status in UNKNOWN {
        let request = Request::post(format!("http://{}/pay", world.client.address()))
            .header("idempotency-key", status)
            .header("x-status", status)
            .body("{}".to_owned())?;
        let answer = send(client.clone(), request).await??;
        // What passes elsewhere is asked for again, once; that nobody knows will not pass.
        let (last, attempts) = if ["408", "502", "503", "504"].contains(&status) {
            (409, 2)
        } else {
            (answer.status, 1)
        };
        assert_eq!(
            (answer.status, answer.attempts(), world.effects(status)),
            (last, Some(attempts), 1),
            "{status}"
        );
    }
    Ok(())
}

/// Answers with the status that the request asks for, and says each in its way that nothing
/// happened.
fn words() -> Router<Shop> {
    let status = |headers: &axum::http::HeaderMap| {
        let status = headers.get("x-status").and_then(|status| status.to_str().ok()?.parse().ok());
        status.unwrap_or(StatusCode::CREATED)
    };
    let extension = move |State(shop): State<Shop>, headers: axum::http::HeaderMap| async move {
        shop.effect("extension");
        let mut response = status(&headers).into_response();
        if headers.contains_key("x-status") {
            response.extensions_mut().insert(NothingHappened);
        }
        response
    };
    let part = move |State(shop): State<Shop>, headers: axum::http::HeaderMap| async move {
        shop.effect("part");
        if headers.contains_key("x-status") {
            return (status(&headers), NothingHappened, "try again").into_response();
        }
        StatusCode::CREATED.into_response()
    };
    let wrapper = move |State(shop): State<Shop>, headers: axum::http::HeaderMap| async move {
        shop.effect("wrapper");
        if headers.contains_key("x-status") {
            Err(NotExecuted(status(&headers)))
        } else {
            Ok(StatusCode::CREATED)
        }
    };
    Router::new()
        .route("/extension", post(extension))
        .route("/part", post(part))
        .route("/wrapper", post(wrapper))
}

#[tokio::test]
async fn rule_64_nothing_happened_releases_the_key_whatever_the_status() -> anyhow::Result<()> {
    // Also under a policy that would run the handler again anyway: what is released may be another
    // request.
    let (holding, retrying) = (
        World::setup(),
        World::setup().layer(|layer: IdempotencyLayer| layer.with_on_crash(OnCrash::Retry)),
    );
    for setup in [holding, retrying] {
        let world = setup.routes(words()).start().await?;
        for word in ["extension", "part", "wrapper"] {
            let mut runs = world.effects(word);
            for status in ["200", "302", "404", "409", "422"].into_iter().chain(UNKNOWN) {
                let key = format!("{word}-{status}");
                let request = |body: &'static str| {
                    world.client.post(&format!("/{word}")).key(&key).body(body)
                };
                for body in ["one", "two"] {
                    let refused = request(body).header("x-status", status).send().await?;
                    assert_eq!(
                        (refused.status.to_string().as_str(), refused.is_replayed()),
                        (status, false),
                        "{word}"
                    );
                    assert_eq!(world.state(&key).await?, None, "{word}");
                }
                let done = request("three").send().await?;
                assert_eq!(
                    (done.status, request("three").send().await?.is_replayed()),
                    (201, true),
                    "{word}"
                );
                runs += 3;
                assert_eq!(world.effects(word), runs, "{word}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_64_a_service_that_rolls_back_says_it_for_all_of_its_server_errors()
-> anyhow::Result<()> {
    let world = World::with(IdempotencyLayer::release_server_errors).await?;
    for status in UNKNOWN {
        world.pay(status).header("x-status", status).send().await?;
        assert_eq!(world.state(status).await?, None, "{status}");
        let retry = world.pay(status).send().await?;
        assert_eq!(
            (retry.status, retry.is_replayed(), world.effects(status)),
            (201, false, 2),
            "{status}"
        );
    }
    // It says so of nothing else.
    for (status, replays) in [("404", true), ("422", true), ("429", false)] {
        world.pay(status).header("x-status", status).send().await?;
        assert_eq!(world.pay(status).send().await?.is_replayed(), replays, "{status}");
    }
    world.pay("999").header("x-status", "999").send().await?;
    world.pay("999").send().await?.assert_problem(409, "uncertain")?;

    // For one of several routes.
    let world = World::with(|layer| {
        layer.with_on_status(|status, request| match request.uri.path() {
            "/refund" => OnStatus::releasing_server_errors(status),
            _ => OnStatus::standard(status),
        })
    })
    .await?;
    for (path, runs) in [("/refund", 2), ("/pay", 1)] {
        let send = || world.client.post(path).key(path).header("x-status", "503").send();
        send().await?;
        let retry = send().await?;
        assert_eq!(
            (retry.status, world.effects(path)),
            (if runs == 2 { 503 } else { 409 }, runs),
            "{path}"
        );
    }
    Ok(())
}

/// A guarded charge, as services have it below their handlers.
#[derive(Clone)]
struct Inner {
    engine: Idempotency,
    store: FaultyStore<MemoryStore>,
    shop: Shop,
    gate: Gate,
}

impl Inner {
    fn new(shop: Shop) -> Self {
        let store = FaultyStore::new(MemoryStore::new());
        let brief = Duration::from_millis(50);
        let engine = Idempotency::builder(store.clone())
            .on_conflict(OnConflict::Reject)
            .claim_timeout(PATIENCE)
            .commit_timeout(brief)
            .background_commit(brief)
            .build();
        Self { engine, store, shop, gate: Gate::new() }
    }

    async fn charge(&self, order: &str, waits: bool) -> Result<&'static str, Error> {
        let body = || async {
            self.shop.effect(&format!("charged-{order}"));
            if waits {
                self.gate.wait().await;
            }
            Ok::<_, Error>(())
        };
        let call = self.engine.call("charge", order).fingerprint(&1).ttl(DAY);
        call.run(body).await.map(|()| "charged")
    }

    /// Makes the call in a task of its own, which waits at the gate after its effect.
    async fn begin(
        &self,
        order: &'static str,
    ) -> anyhow::Result<tokio::task::JoinHandle<Result<&'static str, Error>>> {
        let inner = self.clone();
        let running = tokio::spawn(async move { inner.charge(order, true).await });
        let effect = format!("charged-{order}");
        eventually(&effect, || self.shop.count(&effect) == 1).await?;
        Ok(running)
    }
}

/// Handlers that make the guarded charge of their order, and pass its error on in the way of their
/// path.
fn orders(inner: &Inner) -> Router<Shop> {
    let passed = |State(shop): State<Shop>, inner: Inner, order: String| async move {
        shop.effect(&format!("handled-{order}"));
        inner.charge(&order, false).await
    };
    let own = |kept: bool| {
        move |State(shop): State<Shop>, inner: Inner, order: String| async move {
            shop.effect(&format!("handled-{order}"));
            let error = match inner.charge(&order, false).await {
                Ok(charged) => return charged.into_response(),
                Err(error) => error,
            };
            let status = if error.is_retryable() {
                StatusCode::CONFLICT
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            };
            if kept {
                (status, error.kind(), "own words").into_response()
            } else {
                (status, "own words").into_response()
            }
        }
    };
    let (kept, lost) = (own(true), own(false));
    let (one, two, three) = (inner.clone(), inner.clone(), inner.clone());
    Router::new()
        .route("/passed", post(move |shop: State<Shop>, order: String| passed(shop, one, order)))
        .route("/kept", post(move |shop: State<Shop>, order: String| kept(shop, two, order)))
        .route("/lost", post(move |shop: State<Shop>, order: String| lost(shop, three, order)))
}

/// A world around [`orders`].
async fn around_orders() -> anyhow::Result<(World, Inner)> {
    let directory = tempfile::tempdir()?;
    let inner = Inner::new(Shop::open(directory.path())?);
    let mut world = World::setup().routes(orders(&inner)).start().await?;
    world.keep(directory);
    Ok((world, inner))
}

async fn order(world: &World, path: &str, order: &'static str) -> anyhow::Result<Reply> {
    world.client.post(path).key(order).body(order).send().await
}

#[tokio::test]
async fn rule_65_a_guarded_call_that_did_not_run_releases_the_key_of_its_handler()
-> anyhow::Result<()> {
    let (world, inner) = around_orders().await?;
    for (path, name) in [("/passed", "busy"), ("/kept", "busy-too")] {
        let first = inner.begin(name).await?;
        for _ in 0..2 {
            let refused = order(&world, path, name).await?;
            assert_eq!((refused.status, refused.is_replayed()), (409, false), "{path}");
            assert_eq!(world.state(name).await?, None, "what passes is not kept: {path}");
        }
        first.abort();
    }
    let first = inner.begin("paid").await?;
    order(&world, "/passed", "paid").await?.assert_problem(409, "in-progress")?;
    inner.gate.open();
    assert!(first.await?.is_ok());
    let (done, replay) =
        (order(&world, "/passed", "paid").await?, order(&world, "/passed", "paid").await?);
    assert_eq!((done.answer(), done.is_replayed()), ((200, Bytes::from_static(b"charged")), false));
    assert_eq!((replay.answer(), replay.is_replayed()), (done.answer(), true));
    assert_eq!((world.effects("handled-paid"), inner.shop.count("charged-paid")), (2, 1));

    // The store of the charges takes none, and takes some again.
    inner.store.always("claim", Some(Fault::Refused(StoreErrorKind::Full)));
    order(&world, "/passed", "away").await?.assert_problem(503, "unavailable")?;
    inner.store.always("claim", None);
    assert_eq!((world.state("away").await?, inner.shop.count("charged-away")), (None, 0));
    let (done, replay) =
        (order(&world, "/passed", "away").await?, order(&world, "/passed", "away").await?);
    assert_eq!(
        (done.status, replay.is_replayed(), inner.shop.count("charged-away")),
        (200, true, 1)
    );

    // The charge was made before, for another amount. The client is told so each time, and nothing
    // is kept of it.
    let other = inner.engine.call("charge", "amount").fingerprint(&2).ttl(DAY);
    other.run(|| async { Ok::<_, Error>(()) }).await?;
    for handled in 1..=2 {
        order(&world, "/passed", "amount").await?.assert_problem(422, "mismatch")?;
        assert_eq!(
            (world.state("amount").await?, world.effects("handled-amount")),
            (None, handled)
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_65_a_guarded_call_that_may_hide_an_effect_holds_the_key_of_its_handler()
-> anyhow::Result<()> {
    let (world, inner) = around_orders().await?;
    for (path, name) in [("/passed", "doubt"), ("/kept", "doubt-too")] {
        let first = inner.begin(name).await?;
        first.abort();
        assert!(first.await.is_err());
        let record = inner.engine.record("charge", name);
        let in_doubt = async || {
            record
                .inspect()
                .await
                .ok()
                .flatten()
                .is_some_and(|view| view.state == RecordState::InDoubt)
        };
        eventually_async("the doubt", in_doubt).await?;
        let refused = order(&world, path, name).await?;
        assert_eq!(refused.status, if path == "/passed" { 409 } else { 500 });
        for _ in 0..2 {
            order(&world, path, name).await?.assert_problem(409, "uncertain")?;
        }
        let handled = world.effects(&format!("handled-{name}"));
        assert_eq!((world.state(name).await?, handled), (Some(RecordState::InDoubt), 1), "{path}");
    }
    // It ran, and its result could not be stored: retryable, and all the same nothing to run again
    // by itself.
    for (path, name) in [("/passed", "not-stored"), ("/kept", "not-stored-either")] {
        inner.store.always("complete", Some(Fault::LostRequest));
        let refused = order(&world, path, name).await?;
        inner.store.always("complete", None);
        assert_eq!((refused.status, inner.shop.effects.lines()?.len() > 2), (409, true), "{path}");
        order(&world, path, name).await?.assert_problem(409, "uncertain")?;
        assert_eq!(world.state(name).await?, Some(RecordState::InDoubt), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_65_an_answer_without_the_kind_is_judged_by_its_status() -> anyhow::Result<()> {
    let (world, inner) = around_orders().await?;
    let busy = inner.begin("busy").await?;
    assert_eq!(order(&world, "/lost", "busy").await?.status, 409);
    let replay = order(&world, "/lost", "busy").await?;
    assert_eq!(
        (replay.status, replay.is_replayed(), world.effects("handled-busy")),
        (409, true, 1)
    );
    busy.abort();

    let doubt = inner.begin("doubt").await?;
    doubt.abort();
    assert!(doubt.await.is_err());
    let record = inner.engine.record("charge", "doubt");
    let in_doubt = async || {
        record.inspect().await.ok().flatten().is_some_and(|view| view.state == RecordState::InDoubt)
    };
    eventually_async("the doubt", in_doubt).await?;
    assert_eq!(order(&world, "/lost", "doubt").await?.status, 500);
    order(&world, "/lost", "doubt").await?.assert_problem(409, "uncertain")
}

#[tokio::test]
async fn rule_65_the_refusal_of_a_layer_inside_is_not_stored_by_the_one_around_it()
-> anyhow::Result<()> {
    let engine = Idempotency::builder(MemoryStore::new()).claim_timeout(PATIENCE).build();
    let inside = IdempotencyLayer::new(engine.clone(), Scope::global()).with_operation("inside");
    let handler = |State(shop): State<Shop>| async move {
        shop.effect("inside");
        StatusCode::CREATED
    };
    let routes = Router::new().route("/inside", post(handler).layer(inside.clone()));
    let mut world = World::setup().routes(routes).start().await?;
    // Another server, whose handler has the key of the layer inside and lets it go.
    let gate = Gate::new();
    let waiting = gate.clone();
    let elsewhere = move || async move {
        waiting.wait().await;
        StatusCode::TOO_MANY_REQUESTS
    };
    let elsewhere =
        world.bare_server(Router::new().route("/inside", post(elsewhere).layer(inside))).await?;
    let running = tokio::spawn(async move { elsewhere.post("/inside").key("abc").send().await });
    let taken = async || matches!(engine.record("inside", "abc").inspect().await, Ok(Some(_)));
    eventually_async("the key is taken", taken).await?;
    let send = || world.client.post("/inside").key("abc").send();
    for _ in 0..2 {
        let refused = send().await?;
        refused.assert_problem(409, "in-progress")?;
        assert_eq!((refused.is_replayed(), world.state("abc").await?), (false, None));
    }
    gate.open();
    assert_eq!(within("the other one", running).await???.status, 429);
    let (first, retry) = (send().await?, send().await?);
    assert_eq!((first.status, retry.is_replayed(), world.effects("inside")), (201, true, 1));
    Ok(())
}

/// As [`IntoResponse`] for errors has it, for services without axum.
#[test]
fn the_kind_of_an_error_is_in_the_extensions_of_its_response() {
    let error = || Error::from(StoreError::new(StoreErrorKind::Unavailable, "test"));
    let plain = idempotency::http::Problem::of(&error()).to_response();
    let axum: AnyResponse = error().into_response();
    for extensions in [plain.extensions(), axum.extensions()] {
        assert_eq!(extensions.get(), Some(&ErrorKind::StoreUnavailable));
        assert_eq!(extensions.get(), Some(&idempotency::http::ProblemKind::Unavailable));
    }
}
