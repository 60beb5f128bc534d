//! Rules 23 to 26: handlers that panic, clients that leave, bodies without end.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::post;
use futures::stream;
use idempotency::OnCrash;
use idempotency::http::{IdempotencyLayer, Unreplayable};
use idempotency::record::State as RecordState;
use idempotency::store::{Operation, StoreErrorKind};
use idempotency::testing::{Fault, Gate};
use idempotency_test_support::deadline::{eventually_async, within};
use tokio::io::AsyncReadExt as _;

use crate::client::{Outgoing, Pending, raw_post};
use crate::lengths::WithLength;
use crate::world::{NO_PATIENCE, Server, Shop, World, router};

async fn panics_once(State(shop): State<Shop>) -> &'static str {
    shop.effect("panicking");
    assert!(shop.effects.count("panicking").is_ok_and(|count| count > 1), "the test asked for it");
    "second"
}

#[tokio::test]
async fn rule_23_a_panic_is_a_500_and_its_claim_is_resolved_by_policy() -> anyhow::Result<()> {
    for (policy, status, runs) in [(OnCrash::Hold, 409, 1), (OnCrash::Retry, 200, 2)] {
        // Far longer than the test: nothing here waits for its end.
        let world = World::setup()
            .engine(|builder| builder.lease(Duration::from_secs(600)))
            .layer(move |layer| layer.with_on_crash(policy))
            .routes(Router::new().route("/panic", post(panics_once)))
            .start()
            .await?;
        let first = world.client.post("/panic").key("abc").send().await?;
        first.assert_problem(500, "internal")?;
        let mut retry = world.client.post("/panic").key("abc").send().await?;
        eventually_async("the claim to be resolved", async || {
            if retry.status == 409 && retry.problem().is_ok_and(|name| name == "in-progress") {
                retry = world
                    .client
                    .post("/panic")
                    .key("abc")
                    .send()
                    .await
                    .expect("the server answers");
                return false;
            }
            true
        })
        .await?;
        assert_eq!((retry.status, world.effects("panicking")), (status, runs), "{policy:?}");
        if policy == OnCrash::Hold {
            retry.assert_problem(409, "uncertain")?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_24_a_client_that_leaves_neither_runs_it_twice_nor_loses_the_result()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let headers = b"Idempotency-Key: \"abc\"\r\nx-wait: 1\r\n";
    let connection = world.client.write(raw_post("/pay", headers, b"{}")).await?;
    world.entered("abc").await?;
    drop(connection);
    // While the handler goes on for nobody.
    world.pay("abc").send().await?.assert_problem(409, "in-progress")?;
    world.shop.gate.open();
    eventually_async("the result", async || {
        world.state("abc").await.ok().flatten() == Some(RecordState::Completed)
    })
    .await?;
    let retry = world.pay("abc").send().await?;
    assert_eq!((retry.status, retry.is_replayed(), world.effects("abc")), (201, true, 1));
    Ok(())
}

#[tokio::test]
async fn shutdown_waits_for_handlers_whose_client_has_left() -> anyhow::Result<()> {
    let world = World::new().await?;
    let headers = b"Idempotency-Key: \"abc\"\r\nx-wait: 1\r\n";
    let connection = world.client.write(raw_post("/pay", headers, b"{}")).await?;
    world.entered("abc").await?;
    drop(connection);
    let engine = world.engine.clone();
    let shutdown = tokio::spawn(async move { engine.shutdown(Duration::from_secs(60)).await });
    eventually_async("the engine to close", async || {
        world.pay("other").send().await.is_ok_and(|reply| reply.status == 503)
    })
    .await?;
    assert!(!shutdown.is_finished());
    world.shop.gate.open();
    assert_eq!(within("the drain", shutdown).await??.abandoned, 0);
    assert_eq!(
        (world.state("abc").await?, world.effects("abc")),
        (Some(RecordState::Completed), 1)
    );
    Ok(())
}

#[tokio::test]
async fn shutdown_waits_for_handlers_that_run_unprotected() -> anyhow::Result<()> {
    for is_disabled in [false, true] {
        let world = World::setup()
            .engine(|builder| builder.claim_timeout(NO_PATIENCE))
            .layer(IdempotencyLayer::with_fail_open)
            .start()
            .await?;
        if is_disabled {
            world.engine.disable("http");
        } else {
            world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
        }
        let headers = b"Idempotency-Key: \"abc\"\r\nx-wait: 1\r\n";
        let connection = world.client.write(raw_post("/pay", headers, b"{}")).await?;
        world.entered("abc").await?;
        drop(connection);
        let engine = world.engine.clone();
        let shutdown = tokio::spawn(async move { engine.shutdown(Duration::from_secs(60)).await });
        eventually_async("the engine to close", async || {
            world.pay("other").send().await.is_ok_and(|reply| reply.status == 503)
        })
        .await?;
        assert!(!shutdown.is_finished(), "disabled: {is_disabled}");
        world.shop.gate.open();
        assert_eq!(within("the drain", shutdown).await??.abandoned, 0);
        assert_eq!(world.effects("abc"), 1);
    }
    Ok(())
}

/// A body in pieces, whose length nobody knows. After the first piece it waits at the gate.
fn in_pieces(shop: Shop, pieces: usize, size: usize) -> Body {
    let piece = Bytes::from("p".repeat(size));
    Body::from_stream(stream::unfold(0, move |sent| {
        let (shop, piece) = (shop.clone(), piece.clone());
        async move {
            if sent == 1 {
                shop.gate.wait().await;
            }
            (sent < pieces).then_some((Ok::<_, Infallible>(piece), sent + 1))
        }
    }))
}

fn streams() -> Router<Shop> {
    async fn small(State(shop): State<Shop>) -> Response<Body> {
        shop.effect("small");
        Response::new(in_pieces(shop, 3, 10))
    }
    async fn sized(State(shop): State<Shop>) -> Response<Body> {
        shop.effect("sized");
        let body = WithLength { length: Some(30), body: in_pieces(shop, 3, 10) };
        Response::builder().header("content-length", 30).body(Body::new(body)).expect("well-formed")
    }
    async fn large(State(shop): State<Shop>) -> Response<Body> {
        shop.effect("large");
        Response::new(in_pieces(shop, 40, 50))
    }
    async fn known(State(shop): State<Shop>) -> Response<Body> {
        shop.effect("known");
        Response::new(Body::from("k".repeat(1_001)))
    }
    async fn events(State(shop): State<Shop>) -> Response<Body> {
        shop.effect("events");
        let events = in_pieces(shop, 1, 1);
        Response::builder()
            .header("content-type", "text/event-stream; charset=utf-8")
            .body(events)
            .expect("well-formed")
    }
    async fn broken(State(shop): State<Shop>) -> Response<Body> {
        shop.effect("broken");
        let pieces =
            stream::iter([Ok(Bytes::from("half")), Err(std::io::Error::other("the disk is gone"))]);
        Response::new(Body::from_stream(pieces))
    }
    Router::new()
        .route("/small", post(small))
        .route("/sized", post(sized))
        .route("/large", post(large))
        .route("/known", post(known))
        .route("/events", post(events))
        .route("/broken", post(broken))
}

#[tokio::test]
async fn rule_25_streams_and_large_answers_reach_the_first_caller_and_are_never_replayed_in_part()
-> anyhow::Result<()> {
    let world = World::setup()
        .routes(streams())
        .layer(|layer| layer.with_max_response_body(1_000))
        .start()
        .await?;
    // The first piece comes before the last one is there.
    let mut connection =
        world.client.write(raw_post("/small", b"Idempotency-Key: small\r\n", b"{}")).await?;
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("pppppppppp") {
        assert!(
            within("the first piece", connection.read_buf(&mut read)).await?? > 0,
            "closed early"
        );
    }
    world.client.post("/small").key("small").send().await?.assert_problem(409, "in-progress")?;
    world.shop.gate.open();
    within("the rest", connection.read_to_end(&mut read)).await??;
    // When the first caller has all of it, so has the record.
    let retry = world.client.post("/small").key("small").send().await?;
    assert_eq!((retry.is_replayed(), retry.body.len()), (true, 30));

    for (path, key, size) in
        [("/large", "large", 2_000), ("/known", "known", 1_001), ("/events", "events", 1)]
    {
        let first = world.client.post(path).key(key).send().await?;
        assert_eq!(
            (first.status, first.body.len(), first.is_replayed()),
            (200, size, false),
            "{path}"
        );
        for _ in 0..2 {
            let mut retry = world.client.post(path).key(key).send().await?;
            eventually_async("the record", async || {
                retry = world.client.post(path).key(key).send().await.expect("the server answers");
                retry.problem().is_ok_and(|name| name != "in-progress")
            })
            .await?;
            retry.assert_problem(409, "not-kept")?;
        }
        assert_eq!(world.effects(key), 1);
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_a_stream_ends_for_its_caller_when_the_record_is_written() -> anyhow::Result<()> {
    // The store is not given up while the test keeps it waiting.
    let patient = Duration::from_secs(600);
    let world = World::setup()
        .engine(move |builder| builder.claim_timeout(patient).commit_timeout(patient))
        .routes(streams())
        .start()
        .await?;
    world.shop.gate.open();
    let commits = Gate::new();
    world.store.next(Operation::Complete, Fault::Late(commits.clone()));
    let first = world.client.post("/small").key("small").spawn();
    eventually_async("the commit", async || world.store.requests(Operation::Complete) == 1).await?;
    // Time for an end that does not wait for the record to arrive.
    for _ in 0..5 {
        world
            .client
            .post("/small")
            .key("small")
            .send()
            .await?
            .assert_problem(409, "in-progress")?;
    }
    assert!(!first.is_answered());
    commits.open();
    assert_eq!(first.reply().await?.body.len(), 30);
    let retry = world.client.post("/small").key("small").send().await?;
    assert_eq!((retry.is_replayed(), retry.body.len()), (true, 30));
    Ok(())
}

/// A stream under way, for whom its client waits at the gate.
async fn a_stream_under_way(policy: OnCrash) -> anyhow::Result<(World, Pending)> {
    let world = World::setup()
        .routes(streams())
        .layer(move |layer| layer.with_on_crash(policy))
        .start()
        .await?;
    let first = world.client.post("/small").key("small").spawn();
    eventually_async("the stream", async || world.effects("small") == 1).await?;
    Ok((world, first))
}

/// The claim of a stream is over, and somebody else has another answer for everybody. `late` is
/// what the stream's own waits for.
async fn is_answered_by_another(world: &World, first: Pending, late: &Gate) -> anyhow::Result<()> {
    let layer = world.layer_of_another().with_on_crash(OnCrash::Retry);
    let another = Server::start(router(&world.shop, streams()).layer(layer)).await?;
    let second = another.client().post("/small").key("small").spawn();
    eventually_async("the second stream", async || world.effects("small") == 2).await?;
    world.shop.gate.open();
    assert_eq!(second.reply().await?.body.len(), 30);
    late.open();
    eventually_async("the end of the first one", async || {
        // What it waits for between its attempts to store is on this clock.
        world.clock.advance(Duration::from_secs(1));
        first.is_answered()
    })
    .await?;
    assert!(first.reply().await.is_err(), "it has all of an answer that nobody else gets");
    let retry = another.client().post("/small").key("small").send().await?;
    assert_eq!((retry.is_replayed(), retry.body.len(), world.effects("small")), (true, 30, 2));
    Ok(())
}

#[tokio::test]
async fn rule_25_a_stream_whose_claim_is_over_does_not_end_as_if_it_were_the_answer()
-> anyhow::Result<()> {
    let (world, first) = a_stream_under_way(OnCrash::Retry).await?;
    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
    is_answered_by_another(&world, first, &Gate::new()).await
}

#[tokio::test]
async fn rule_25_a_stream_that_is_overtaken_at_its_end_does_not_end_as_if_it_were_the_answer()
-> anyhow::Result<()> {
    let patient = Duration::from_secs(600);
    let world = World::setup()
        .clock_by_hand()
        .engine(move |builder| builder.commit_timeout(patient))
        .layer(|layer| layer.with_on_crash(OnCrash::Retry))
        .routes(streams())
        .start()
        .await?;
    world.shop.gate.open();
    let late = Gate::new();
    world.store.next(Operation::Complete, Fault::Late(late.clone()));
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let first = world.client.post("/small").key("small").spawn();
    eventually_async("the commit", async || world.store.requests(Operation::Complete) == 1).await?;
    world.clock.advance(Duration::from_secs(60));
    is_answered_by_another(&world, first, &late).await
}

/// It is the truth, though nobody else may get it.
#[tokio::test]
async fn rule_25_a_stream_whose_record_cannot_be_written_is_whole_all_the_same()
-> anyhow::Result<()> {
    let soon = Duration::from_millis(10);
    let world = World::setup()
        .engine(move |builder| builder.commit_timeout(soon))
        .routes(streams())
        .start()
        .await?;
    world.shop.gate.open();
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let first = world.client.post("/small").key("small").send().await?;
    assert_eq!((first.status, first.body.len(), world.effects("small")), (200, 30, 1));
    Ok(())
}

/// If it never can be, the next attempt has an answer of its own for everybody.
#[tokio::test]
async fn rule_25_an_answer_whose_record_cannot_be_written_is_none_where_another_may_be_given()
-> anyhow::Result<()> {
    let soon = Duration::from_millis(10);
    for (policy, is_given) in
        [(OnCrash::Hold, true), (OnCrash::Retry, false), (OnCrash::Resume, false)]
    {
        let world = World::setup()
            .engine(move |builder| builder.commit_timeout(soon))
            .layer(move |layer| layer.with_on_crash(policy))
            .routes(streams())
            .start()
            .await?;
        world.shop.gate.open();
        world.store.always(Operation::Complete, Some(Fault::LostRequest));
        let whole = world.pay("whole").send().await?;
        if is_given {
            assert_eq!(
                (whole.status, whole.header("idempotency-key-expires")),
                (201, None),
                "{policy:?}"
            );
        } else {
            whole.assert_problem(409, "uncertain")?;
        }
        let stream = world.client.post("/small").key("small").send().await;
        assert_eq!(stream.is_ok(), is_given, "{policy:?}");
        assert_eq!((world.effects("whole"), world.effects("small")), (1, 1));
        // It is stored in the background as soon as it can be.
        world.store.always(Operation::Complete, None);
        eventually_async("the record", async || {
            let retries =
                [world.pay("whole"), world.client.post("/small").key("small")].map(Outgoing::send);
            futures::future::join_all(retries)
                .await
                .into_iter()
                .all(|retry| retry.is_ok_and(|retry| retry.is_replayed()))
        })
        .await?;
        assert_eq!((world.effects("whole"), world.effects("small")), (1, 1));
    }
    Ok(())
}

/// Nobody gives another answer under this policy: it is as with a status that leaves the outcome
/// unknown.
#[tokio::test]
async fn rule_25_a_stream_whose_claim_is_over_goes_on_where_nobody_answers_again()
-> anyhow::Result<()> {
    let (world, first) = a_stream_under_way(OnCrash::Hold).await?;
    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
    world.shop.gate.open();
    assert_eq!(first.reply().await?.body.len(), 30);
    // Kept, if it has ended before it was noticed that the claim is over.
    let state = world.state("small").await?;
    assert!(matches!(state, Some(RecordState::InDoubt | RecordState::Completed)), "{state:?}");
    assert_eq!(world.effects("small"), 1);
    Ok(())
}

/// Nothing of it is sent before all of it is there, or its claim is over.
#[tokio::test]
async fn rule_25_a_response_of_known_length_whose_claim_is_over_goes_on_where_nobody_answers_again()
-> anyhow::Result<()> {
    let world = World::setup().routes(streams()).start().await?;
    let request = raw_post("/sized", b"Idempotency-Key: sized\r\n", b"{}");
    let mut connection = world.client.write(request).await?;
    eventually_async("the response", async || world.effects("sized") == 1).await?;
    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("pppppppppp") {
        let more = within("the first piece", connection.read_buf(&mut read)).await??;
        assert!(more > 0, "{}", String::from_utf8_lossy(&read));
    }
    world.shop.gate.open();
    within("the rest", connection.read_to_end(&mut read)).await??;
    let answer = String::from_utf8(read)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the head ends")?;
    assert!(head.starts_with("HTTP/1.1 200 ") && body == "p".repeat(30), "{answer}");
    assert!(!head.contains("idempotency-key-expires"), "{head}");
    assert_eq!(
        (world.state("sized").await?, world.effects("sized")),
        (Some(RecordState::InDoubt), 1)
    );
    Ok(())
}

#[tokio::test]
async fn rule_25_a_service_may_run_again_what_was_too_large_to_keep() -> anyhow::Result<()> {
    let layer = |layer: IdempotencyLayer| {
        layer.with_max_response_body(1_000).with_unreplayable(Unreplayable::Release)
    };
    let world = World::setup().routes(streams()).layer(layer).start().await?;
    for runs in 1..=2 {
        let reply = world.client.post("/known").key("known").send().await?;
        assert_eq!((reply.status, reply.body.len(), world.effects("known")), (200, 1_001, runs));
        assert_eq!(reply.header("idempotency-key-expires"), None);
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_headers_over_the_limit_are_too_large_without_a_body_too() -> anyhow::Result<()> {
    for (unreplayable, status, effects) in
        [(Unreplayable::Mark, 409, 1), (Unreplayable::Release, 204, 2)]
    {
        let layer = move |layer: IdempotencyLayer| {
            layer.with_max_response_body(10).with_unreplayable(unreplayable)
        };
        let deleted = async |State(shop): State<Shop>| {
            shop.effect("deleted");
            StatusCode::NO_CONTENT
        };
        let world = World::setup()
            .routes(Router::new().route("/delete", post(deleted)))
            .layer(layer)
            .start()
            .await?;
        let delete = || world.client.post("/delete").key("abc").send();
        let (first, retry) = (delete().await?, delete().await?);
        assert_eq!((first.status, first.header("idempotency-key-expires")), (204, None));
        assert_eq!(
            (retry.status, world.effects("deleted")),
            (status, effects),
            "{unreplayable:?}: {retry:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_an_answer_that_breaks_off_is_neither_ended_nor_replayed() -> anyhow::Result<()> {
    let world = World::setup().routes(streams()).start().await?;
    let answer =
        world.client.exchange(raw_post("/broken", b"Idempotency-Key: broken\r\n", b"{}")).await?;
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    eventually_async("the record", async || {
        world.state("broken").await.ok().flatten() == Some(RecordState::InDoubt)
    })
    .await?;
    world.client.post("/broken").key("broken").send().await?.assert_problem(409, "uncertain")?;
    assert_eq!(world.effects("broken"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_26_a_request_body_over_the_limit_is_refused_and_leaves_nothing() -> anyhow::Result<()>
{
    let world = World::with(|layer| layer.with_max_request_body(1_000)).await?;
    world.pay("abc").body("x".repeat(1_001)).send().await?.assert_problem(413, "too-large")?;
    // Without a length in front.
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 1_001, "x".repeat(1_001));
    let head =
        "POST /pay HTTP/1.1\r\nHost: test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
    let answer =
        world.client.exchange(format!("{head}Idempotency-Key: abc\r\n\r\n{chunk}")).await?;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // A client that says more than it sends.
    let head = "POST /pay HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 10\r\n";
    let mut connection =
        world.client.write(format!("{head}Idempotency-Key: abc\r\n\r\nhalf")).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut connection).await?;
    within("the end", connection.read_to_end(&mut Vec::new())).await??;
    assert_eq!(
        (
            world.shop.effects.lines()?.len(),
            world.records().await?,
            world.store.requests(Operation::Claim)
        ),
        (0, 0, 0)
    );

    assert_eq!(world.pay("abc").body("x".repeat(1_000)).send().await?.status, 201);
    Ok(())
}
