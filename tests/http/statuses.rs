//! Rules 63 and 64: what the end of a handler says about its effects.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::post;
use bytes::Bytes;
use idempotency::http::{
    IdempotencyLayer, NotExecuted, NothingHappened, OnStatus, RequestBody, Scope, resolution,
};
use idempotency::record::{Resolution, State as RecordState};
use idempotency::store::MemoryStore;
use idempotency::testing::ManualClock;
use idempotency::{ErrorKind, Idempotency, OnCrash, Verdict};
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::client::raw_post;
use crate::scripted::{client, layer, send};
use crate::world::{Shop, World};

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
        ("happened", resolution(Response::builder().status(201).body("found by hand")?), true, 1),
        ("did not", Resolution::not_executed(), false, 2),
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
        let resolution = resolution(Response::builder().status(status).body("early")?);
        let error = record.resolve(&view, resolution).await.expect_err("no response has it");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }
    // Nothing has changed.
    world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    record.resolve(&view, resolution(Response::new("found by hand"))).await?;
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
        record.resolve(&view, resolution(response)).await?;
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
    let too_large = resolution(Response::new("x".repeat(300_000)));
    let error = record.resolve(&view, too_large).await.expect_err("it is over the limit");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let told = error.to_string();
    assert!(told.contains("nothing has changed") && !told.contains("the body"), "{told}");
    world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    record.resolve(&view, resolution(Response::new("found by hand"))).await?;
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
