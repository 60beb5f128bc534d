//! Rule 70: the layers of tower and tower-http, in front of ours and behind it.
//!
//! Handlers charge in the first poll, before they wait or panic: a time limit behind the layer
//! never comes before that.

use std::time::Duration;

use axum::body::Body;
use axum::error_handling::HandleErrorLayer;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::{BoxError, Router};
use futures::stream;
use idempotency::http::NothingHappened;
use idempotency::http::client::ClientLayer;
use idempotency::record::State as RecordState;
use idempotency::testing::ManualClock;
use idempotency_test_support::deadline::eventually_async;
use tower::ServiceBuilder;
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::{LoadShedLayer, error::Overloaded};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use crate::scripted::{client, layer, send};
use crate::world::{Shop, World, pay};

const SOON: Duration = Duration::from_millis(20);
const AN_HOUR: Duration = Duration::from_secs(3_600);

/// Charges, and does not come back.
async fn hang(State(shop): State<Shop>) {
    shop.effect("charged");
    shop.gate.wait().await;
}

async fn panic(State(shop): State<Shop>) {
    shop.effect("charged");
    panic!("the test asks for it");
}

fn hanging() -> Router<Shop> {
    Router::new().route("/charge", post(hang))
}

fn panicking() -> Router<Shop> {
    Router::new().route("/charge", post(panic))
}

fn limit(status: u16) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::from_u16(status).expect("a status"), SOON)
}

/// The routes with what drops or catches the handler and answers for it, and that answer's status.
fn ended_by_others() -> Vec<(&'static str, u16, Router<Shop>)> {
    let mapped = |status: StatusCode| {
        let answer = HandleErrorLayer::new(move |error: BoxError| async move {
            assert!(error.is::<tower::timeout::error::Elapsed>(), "{error}");
            status
        });
        hanging().layer(ServiceBuilder::new().layer(answer).timeout(SOON))
    };
    vec![
        ("a time limit", 408, hanging().layer(limit(408))),
        ("a time limit", 503, hanging().layer(limit(503))),
        ("a time limit", 504, hanging().layer(limit(504))),
        ("a time limit whose error is mapped", 408, mapped(StatusCode::REQUEST_TIMEOUT)),
        ("a time limit whose error is mapped", 504, mapped(StatusCode::GATEWAY_TIMEOUT)),
        ("a catcher of panics", 500, panicking().layer(CatchPanicLayer::new())),
    ]
}

#[tokio::test]
async fn rule_63_what_ends_a_handler_behind_the_layer_leaves_an_unknown_outcome()
-> anyhow::Result<()> {
    for (what, status, routes) in ended_by_others() {
        let world = World::setup().routes(routes).start().await?;
        let send = || world.client.post("/charge").key("abc").send();
        assert_eq!(send().await?.status, status, "{what}");
        for _ in 0..3 {
            send().await?.assert_problem(409, "uncertain")?;
        }
        let state = world.state("abc").await?;
        assert_eq!(
            (state, world.effects("charged")),
            (Some(RecordState::InDoubt), 1),
            "{what} ({status})"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_63_our_own_client_is_charged_once_whatever_ends_the_handler() -> anyhow::Result<()> {
    for (what, status, routes) in ended_by_others() {
        let world = World::setup().routes(routes).start().await?;
        let request =
            axum::http::Request::post(format!("http://{}/charge", world.client.address()));
        let client = client(&layer(&ManualClock::new()).with_max_attempts(7));
        let answer = send(client, request.body("{}".to_owned())?).await??;
        let last = if status == 500 { 500 } else { 409 };
        assert_eq!((answer.status, world.effects("charged")), (last, 1), "{what} ({status})");
    }
    Ok(())
}

#[tokio::test]
async fn rule_70_a_time_limit_in_front_leaves_the_handler_alone() -> anyhow::Result<()> {
    for status in [408, 503, 504] {
        let world = World::setup()
            .routes(hanging())
            .around(move |router| router.layer(limit(status)))
            .start()
            .await?;
        let send = || world.client.post("/charge").key("abc").send();
        assert_eq!(send().await?.status, status);
        send().await?.assert_problem(409, "in-progress")?;
        world.shop.gate.open();
        let done = async || world.state("abc").await.ok().flatten() == Some(RecordState::Completed);
        eventually_async("the handler", done).await?;
        let retry = send().await?;
        assert_eq!(
            (retry.status, retry.is_replayed(), world.effects("charged")),
            (200, true, 1),
            "{status}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_70_a_catcher_of_panics_in_front_catches_none_of_the_handlers() -> anyhow::Result<()> {
    let around = |router: Router| {
        router.layer(CatchPanicLayer::custom(|_| StatusCode::IM_A_TEAPOT.into_response()))
    };
    let world = World::setup().routes(panicking()).around(around).start().await?;
    let send = || world.client.post("/charge").key("abc").send();
    send().await?.assert_problem(500, "internal")?;
    let mut retry = send().await?;
    // The outcome of a panic is recorded in the background.
    eventually_async("the outcome", async || {
        retry = send().await.expect("the server answers");
        retry.problem().is_ok_and(|name| name == "uncertain")
    })
    .await?;
    assert_eq!(world.effects("charged"), 1);
    Ok(())
}

/// One request at a time; what comes meanwhile is refused with 503. `word` is what the refusal says
/// of effects.
fn shedding<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    word: Option<NothingHappened>,
) -> Router<S> {
    let answer = HandleErrorLayer::new(move |error: BoxError| async move {
        // The request was not passed on.
        assert!(error.is::<Overloaded>(), "{error}");
        (StatusCode::SERVICE_UNAVAILABLE, word, "overloaded")
    });
    router.layer(
        ServiceBuilder::new()
            .layer(answer)
            .layer(LoadShedLayer::new())
            .layer(ConcurrencyLimitLayer::new(1)),
    )
}

fn payments() -> Router<Shop> {
    Router::new().route("/payments", any(pay))
}

#[tokio::test]
async fn rule_70_what_is_shed_in_front_leaves_the_key_free() -> anyhow::Result<()> {
    let world =
        World::setup().routes(payments()).around(|router| shedding(router, None)).start().await?;
    let running = world.client.post("/payments").key("running").header("x-wait", "1").spawn();
    world.entered("running").await?;
    let send = || world.client.post("/payments").key("abc").send();
    assert_eq!((send().await?.status, world.state("abc").await?), (503, None));
    world.shop.gate.open();
    running.reply().await?;
    let (first, retry) = (send().await?, send().await?);
    assert_eq!((first.status, retry.answer(), world.effects("abc")), (201, first.answer(), 1));
    Ok(())
}

#[tokio::test]
async fn rule_70_what_is_shed_behind_is_held_unless_the_refusal_says_that_nothing_happened()
-> anyhow::Result<()> {
    for (word, state) in [(None, Some(RecordState::InDoubt)), (Some(NothingHappened), None)] {
        let world = World::setup().routes(shedding(payments(), word)).start().await?;
        let running = world.client.post("/payments").key("running").header("x-wait", "1").spawn();
        world.entered("running").await?;
        let send = || world.client.post("/payments").key("abc").send();
        assert_eq!((send().await?.status, world.state("abc").await?), (503, state));
        world.shop.gate.open();
        assert_eq!(running.reply().await?.status, 201);
        let retry = send().await?;
        if word.is_some() {
            assert_eq!(
                (retry.status, send().await?.is_replayed(), world.effects("abc")),
                (201, true, 1)
            );
        } else {
            retry.assert_problem(409, "uncertain")?;
            assert_eq!(world.effects("abc"), 0);
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_70_a_limit_of_the_body_refuses_before_the_effect_in_front_and_behind()
-> anyhow::Result<()> {
    // Of known length, and in pieces, of which nobody knows how many there are until they are too
    // many.
    let pieces =
        |size| Body::from_stream(stream::iter([Ok::<_, std::io::Error>("x".repeat(size))]));
    let limited = |router: Router| router.layer(RequestBodyLimitLayer::new(100));
    let in_front = World::setup().around(limited).start().await?;
    let behind =
        World::setup().routes(payments().layer(RequestBodyLimitLayer::new(100))).start().await?;
    for (world, path) in [(in_front, "/pay"), (behind, "/payments")] {
        let send = |size| world.client.post(path).key("abc").body("x".repeat(size)).send();
        assert_eq!((send(101).await?.status, world.records().await?), (413, 0), "{path}");
        let in_pieces = world.client.post(path).key("abc").body(pieces(101)).send().await?;
        assert_eq!((in_pieces.status, world.records().await?), (413, 0), "{path}: {in_pieces:?}");
        let (first, retry) = (send(100).await?, send(100).await?);
        assert_eq!(
            (first.status, retry.answer(), world.effects("abc")),
            (201, first.answer(), 1),
            "{path}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_70_compression_changes_no_answer_of_a_retry() -> anyhow::Result<()> {
    // In front, each client gets the replay as it asks for it.
    let world =
        World::setup().around(|router| router.layer(CompressionLayer::new())).start().await?;
    let (plain, zipped) =
        (|| world.pay("abc"), || world.pay("abc").header("accept-encoding", "gzip"));
    let first = zipped().send().await?;
    assert_eq!((first.status, first.header("content-encoding")), (201, Some("gzip")));
    for _ in 0..2 {
        let retry = zipped().send().await?;
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
    }
    let retry = plain().send().await?;
    assert_eq!(
        (retry.is_replayed(), retry.header("content-encoding"), retry.json()?["key"].as_str()),
        (true, None, Some("abc"))
    );
    assert_eq!(world.effects("abc"), 1);

    // Behind, the compressed bytes are the answer, for everybody.
    let world = World::setup().routes(payments().layer(CompressionLayer::new())).start().await?;
    let first =
        world.client.post("/payments").key("abc").header("accept-encoding", "gzip").send().await?;
    assert_eq!((first.status, first.header("content-encoding")), (201, Some("gzip")));
    for encoding in ["gzip", "identity"] {
        let retry = world
            .client
            .post("/payments")
            .key("abc")
            .header("accept-encoding", encoding)
            .send()
            .await?;
        assert_eq!(
            (retry.is_replayed(), retry.answer(), retry.header("content-encoding")),
            (true, first.answer(), Some("gzip"))
        );
    }
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

/// All at once, with a queue in front of the rest.
fn all<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    let answer = HandleErrorLayer::new(|error: BoxError| async move {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("no layer is to fail here: {error}"))
    });
    let many = 1_000;
    let may_fail = ServiceBuilder::new()
        .layer(answer)
        .layer(BufferLayer::new(many))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(many))
        .timeout(AN_HOUR);
    router
        .layer(CompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(1_000_000))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, AN_HOUR))
        .layer(CatchPanicLayer::new())
        .layer(may_fail)
        .layer(TraceLayer::new_for_http())
}

#[tokio::test]
async fn rule_70_all_layers_at_once_change_neither_effects_nor_answers() -> anyhow::Result<()> {
    let world = World::setup().routes(all(payments())).around(all).start().await?;
    // On the machine's clock: it waits as long as `Retry-After` says.
    let client = client(&ClientLayer::new().with_deadline(AN_HOUR));
    let charge = |key: &'static str, status: &'static str| {
        let request =
            axum::http::Request::post(format!("http://{}/payments", world.client.address()))
                .header("idempotency-key", key)
                .header("x-status", status)
                .body("{}".to_owned());
        let client = client.clone();
        async move { anyhow::Ok(send(client, request?).await??) }
    };
    for (key, status) in [("paid", "201"), ("declined", "402"), ("moved", "303")] {
        let first = charge(key, status).await?;
        assert_eq!(first.status.to_string(), status);
        // At once, and one after the other.
        let retries = futures::future::try_join_all((0..8).map(|_| charge(key, status))).await?;
        for retry in retries.iter().chain([&charge(key, status).await?]) {
            assert_eq!(retry.text(), first.text());
            assert!(retry.headers.contains_key("idempotency-replayed"));
        }
        assert_eq!(world.effects(key), 1);
    }
    // Eight first requests at once: one charge, and everybody learns of it.
    let answers = futures::future::try_join_all((0..8).map(|_| charge("at-once", "201"))).await?;
    assert!(
        answers.iter().all(|answer| answer.text() == answers[0].text()),
        "{:?}",
        answers[0].text()
    );
    // And none for what nobody knows.
    for (status, last) in [("504", 409), ("500", 500)] {
        assert_eq!(
            (charge(status, status).await?.status, charge(status, status).await?.status),
            (last, 409)
        );
        assert_eq!(world.effects(status), 1);
    }
    assert_eq!(world.effects("at-once"), 1);
    Ok(())
}

/// The layer's own response is one that a time limit can make, without axum's boxes in between.
#[tokio::test]
async fn rule_70_a_time_limit_is_right_in_front_of_the_layer_without_axum() -> anyhow::Result<()> {
    use axum::body::Body;
    use axum::http::Request;
    use idempotency::http::{IdempotencyLayer, RequestBody, Scope};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    let engine = idempotency::Idempotency::new(idempotency::store::MemoryStore::new());
    let hang = async |_: Request<RequestBody<Body>>| {
        std::future::pending::<()>().await;
        Ok::<_, std::convert::Infallible>(axum::http::Response::new(Body::empty()))
    };
    let service =
        limit(504).layer(IdempotencyLayer::new(engine, Scope::global()).layer(service_fn(hang)));
    let request = || Request::post("/").header("idempotency-key", "abc").body(Body::empty());
    assert_eq!(service.clone().oneshot(request()?).await?.status(), 504);
    assert_eq!(service.oneshot(request()?).await?.status(), 409);
    Ok(())
}

/// A service that takes no requests says so before anything is claimed.
#[tokio::test]
async fn rule_70_a_service_that_is_not_ready_leaves_the_key_free() -> anyhow::Result<()> {
    use axum::body::Body;
    use axum::http::Request;
    use idempotency::http::{IdempotencyLayer, RequestBody, Scope};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    let engine = idempotency::Idempotency::new(idempotency::store::MemoryStore::new());
    let dead = async |_: Request<RequestBody<Body>>| {
        Err::<axum::http::Response<Body>, _>(BoxError::from("not reached"))
    };
    let (queue, worker) = tower::buffer::Buffer::pair(service_fn(dead), 1);
    // Nobody works on the queue.
    drop(worker);
    let service = IdempotencyLayer::new(engine.clone(), Scope::global()).layer(queue);
    let request = Request::post("/").header("idempotency-key", "abc").body(Body::empty())?;
    let error = service.oneshot(request).await.err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("buffer's worker closed unexpectedly"));
    assert!(engine.record("http", "abc").inspect().await?.is_none());
    Ok(())
}

/// With both word and status, for handlers in plain axum.
#[test]
fn a_header_map_and_the_word_go_together() {
    let response: Response =
        (StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new(), NothingHappened, "busy")
            .into_response();
    assert!(response.extensions().get::<NothingHappened>().is_some());
}
