//! Responses in pieces whose end HTTP itself tells, before their stream does: by a length, a
//! status, or the version. A client has no whole answer before its record is written.

use idempotency::store::Operation;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::ensure;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, Version};
use axum::routing::post;
use futures::{StreamExt as _, stream};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use idempotency::http::{IdempotencyLayer, Scope, Unreplayable};
use idempotency::record::State as RecordState;
use idempotency::testing::{Fault, Gate};
use idempotency::{Idempotency, OnCrash};
use idempotency_test_support::deadline::{eventually_async, within};
use tokio::io::AsyncReadExt as _;

use crate::client::{Client, Outgoing, Reply};
use crate::world::{Server, Shop, World};

/// How many bytes of a response are kept.
const LIMIT: usize = 1_000;

/// A body of these frames. It says its length if it is told one.
struct Pieces {
    frames: VecDeque<io::Result<Frame<Bytes>>>,
    length: Option<u64>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.frames.pop_front())
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn body(length: Option<u64>, frames: impl IntoIterator<Item = io::Result<Frame<Bytes>>>) -> Body {
    Body::new(Pieces { frames: frames.into_iter().collect(), length })
}

/// A body that breaks off after `text`, when the gate is open.
fn broken_late(shop: Shop, text: String) -> Body {
    let broken = async move {
        shop.gate.wait().await;
        Err(io::Error::other("the disk is gone"))
    };
    Body::from_stream(stream::iter([Ok(text)]).chain(stream::once(broken)))
}

/// A receipt of 36 characters that no second run gives, as the path says.
async fn receipt(State(shop): State<Shop>, request: Request<Body>) -> Response<Body> {
    let kind = request.uri().path().trim_start_matches('/');
    shop.effect(kind);
    let receipt = uuid::Uuid::new_v4().to_string();
    let (one, two) = receipt.split_at(18);
    let data = |text: &str| Ok(Frame::data(Bytes::from(text.to_owned())));
    let broken = || Err(io::Error::other("the disk is gone"));
    let (status, length, body) = match kind {
        "declared" => (200, Some(36), body(None, [data(one), data(two), data("")])),
        "no-content" => (204, None, body(None, [])),
        "not-modified" => (304, None, body(None, [])),
        "reset" | "reset-chunked" => (205, None, body(None, [])),
        "see-other" => (303, Some(0), body(None, [])),
        "large" => (200, None, body(None, [data(one), data(&two.repeat(100))])),
        "large-declared" => (200, Some(1_818), body(None, [data(one), data(&two.repeat(100))])),
        "trailers" => {
            (200, None, body(None, [data(&receipt), Ok(Frame::trailers(HeaderMap::new()))]))
        }
        "chunked" | "of-1.0" => (200, None, body(None, [data(one), data(two)])),
        "whole-chunked" => (200, None, Body::from(receipt.clone())),
        "beyond" => (200, Some(18), body(None, [data(one), data(two)])),
        "beyond-known" => (200, Some(18), body(Some(36), [data(one), data(two)])),
        "broken" => (200, Some(36), body(None, [data(one), data(two), broken()])),
        "broken-known" => (200, Some(36), body(Some(36), [data(one), data(two), broken()])),
        "broken-chunked" => (200, None, body(None, [data(one), broken()])),
        "short-trailers" => {
            (200, Some(36), body(None, [data(one), Ok(Frame::trailers(HeaderMap::new()))]))
        }
        "short-trailers-known" => {
            (200, None, body(Some(36), [data(one), Ok(Frame::trailers(HeaderMap::new()))]))
        }
        "large-broken" => (200, None, broken_late(shop, two.repeat(100))),
        "held-broken" => (503, None, broken_late(shop, one.to_owned())),
        "released-broken" => (403, None, broken_late(shop, one.to_owned())),
        "events-broken" | "of-1.0-broken" => (200, None, broken_late(shop, one.to_owned())),
        _ => (200, None, body(Some(36), [data(one), broken()])),
    };
    let response = Response::builder().status(status).header("location", format!("/{receipt}"));
    let response = match length {
        Some(length) => response.header("content-length", length),
        None => response,
    };
    // What gateways pass on of an upstream.
    let response = match kind {
        "reset-chunked" | "whole-chunked" => response.header("transfer-encoding", "chunked"),
        "of-1.0" | "of-1.0-broken" => response.version(Version::HTTP_10),
        "events-broken" => response.header("content-type", "text/event-stream"),
        _ => response,
    };
    response.body(body).expect("the response is well-formed")
}

/// Answers that are kept, or a marker in their place.
const ANSWERS: [&str; 11] = [
    "declared",
    "no-content",
    "not-modified",
    "reset",
    "reset-chunked",
    "see-other",
    "large",
    "large-declared",
    "trailers",
    "of-1.0",
    "whole-chunked",
];
/// What is no answer, though all that its head promises is there, or trailers end it.
const NONE: [&str; 6] =
    ["beyond", "beyond-known", "broken", "broken-known", "short-trailers", "short-trailers-known"];

fn is_large(kind: &str) -> bool {
    matches!(kind, "large" | "large-declared" | "trailers")
}

fn routes() -> Router<Shop> {
    Router::new().route("/{kind}", post(receipt))
}

/// Where the record is never written while the store loses these requests.
async fn world(policy: OnCrash, unreplayable: Unreplayable) -> anyhow::Result<World> {
    let soon = Duration::from_millis(10);
    World::setup()
        .engine(move |builder| builder.commit_timeout(soon))
        .layer(move |layer| {
            layer
                .with_on_crash(policy)
                .with_max_response_body(LIMIT)
                .with_unreplayable(unreplayable)
        })
        .routes(routes())
        .start()
        .await
}

fn ask(world: &World, kind: &str) -> Outgoing {
    world.client.post(&format!("/{kind}")).key(kind)
}

/// As a client of HTTP/1.0 asks, for whom a response ends with its connection.
async fn ask_old(client: Client, kind: &str) -> anyhow::Result<String> {
    let head = format!(
        "POST /{kind} HTTP/1.0\r\nIdempotency-Key: {kind}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    client.exchange(head).await
}

/// A world whose clock the test moves: the record of a response is lost, and so is the claim after
/// it.
async fn world_without_records() -> anyhow::Result<World> {
    let world = World::setup()
        .clock_by_hand()
        .layer(|layer| layer.with_on_crash(OnCrash::Retry).with_max_response_body(LIMIT))
        .routes(routes())
        .start()
        .await?;
    for request in [Operation::Complete, Operation::Renew] {
        world.store.always(request, Some(Fault::LostRequest));
    }
    Ok(world)
}

/// Waits until the record is given up and `first` has what there is for it, and gives the answer of
/// another process.
async fn answer_of_another<T>(
    world: &World,
    kind: &str,
    first: &tokio::task::JoinHandle<T>,
) -> anyhow::Result<Reply> {
    eventually_async("the commit", async || world.store.requests(Operation::Complete) > 0).await?;
    eventually_async("the end of the first one", async || {
        world.clock.advance(Duration::from_secs(1));
        first.is_finished()
    })
    .await?;
    world.clock.advance(Duration::from_secs(60));
    let layer = IdempotencyLayer::new(Idempotency::new(world.memory.clone()), Scope::global());
    let layer = layer.with_on_crash(OnCrash::Retry);
    let other = Server::start(crate::world::router(&world.shop, routes()).layer(layer)).await?;
    other.client().post(&format!("/{kind}")).key(kind).send().await
}

#[tokio::test]
async fn rule_25_no_framing_ends_an_answer_that_another_attempt_replaces() -> anyhow::Result<()> {
    for kind in ANSWERS {
        let world = world_without_records().await?;
        let first = tokio::spawn(ask(&world, kind).send());
        let second = answer_of_another(&world, kind, &first).await?;
        assert!(second.status < 400, "{kind}: {second:?}");
        if let Ok(first) = first.await? {
            first.assert_problem(409, "uncertain")?;
        }
        assert_eq!(world.effects(kind), 2, "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_no_framing_ends_an_answer_before_its_record_is_written() -> anyhow::Result<()> {
    let patient = Duration::from_secs(600);
    for kind in ANSWERS {
        let world = World::setup()
            .engine(move |builder| builder.claim_timeout(patient).commit_timeout(patient))
            .layer(|layer| layer.with_max_response_body(LIMIT))
            .routes(routes())
            .start()
            .await?;
        let commits = Gate::new();
        world.store.next(Operation::Complete, Fault::Late(commits.clone()));
        let first = ask(&world, kind).spawn();
        eventually_async("the commit", async || world.store.requests(Operation::Complete) == 1)
            .await?;
        // Time for an end that does not wait for the record to arrive.
        for _ in 0..5 {
            ask(&world, kind).send().await?.assert_problem(409, "in-progress")?;
        }
        assert!(!first.is_answered(), "{kind}");
        commits.open();
        let (first, retry) = (first.reply().await?, ask(&world, kind).send().await?);
        if is_large(kind) {
            retry.assert_problem(409, "not-kept")?;
        } else {
            assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()), "{kind}");
            assert_eq!(retry.header("location"), first.header("location"));
        }
        assert_eq!(world.effects(kind), 1);
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_where_nobody_answers_again_an_answer_of_any_framing_is_whole_without_its_record()
-> anyhow::Result<()> {
    for kind in ANSWERS {
        let world = world(OnCrash::Hold, Unreplayable::Mark).await?;
        world.store.always(Operation::Complete, Some(Fault::LostRequest));
        let first = ask(&world, kind).send().await?;
        assert!(first.status < 400 && first.header("location").is_some(), "{kind}: {first:?}");
        let size = match kind {
            "declared" | "trailers" | "of-1.0" | "whole-chunked" => 36,
            "large" | "large-declared" => 1_818,
            _ => 0,
        };
        assert_eq!((first.body.len(), world.effects(kind)), (size, 1), "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_what_may_run_again_for_its_size_waits_for_no_record() -> anyhow::Result<()> {
    let world = world(OnCrash::Retry, Unreplayable::Release).await?;
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    world.store.always(Operation::Release, Some(Fault::LostRequest));
    for kind in ["large", "large-declared", "trailers"] {
        let first = ask(&world, kind).send().await?;
        assert_eq!(
            (first.status, first.body.len() >= 36, world.effects(kind)),
            (200, true, 1),
            "{kind}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_what_is_no_answer_is_not_whole_by_its_length_alone() -> anyhow::Result<()> {
    for policy in [OnCrash::Hold, OnCrash::Retry] {
        let world = world(policy, Unreplayable::Mark).await?;
        for kind in NONE {
            let first = ask(&world, kind).send().await;
            assert!(first.is_err(), "{kind}, {policy:?}: {first:?}");
            if policy == OnCrash::Hold {
                is_in_doubt(&world, kind).await?;
            }
        }
    }
    Ok(())
}

async fn is_in_doubt(world: &World, kind: &str) -> anyhow::Result<()> {
    let is_over = async || {
        world.state(kind).await.ok().flatten().is_some_and(|state| state != RecordState::InProgress)
    };
    eventually_async("the record", is_over).await?;
    assert_eq!(world.state(kind).await?, Some(RecordState::InDoubt), "{kind}");
    Ok(())
}

/// All that a client of this version gets of a response that breaks off when it has a part of it.
async fn ask_until_it_breaks_off(
    world: &World,
    kind: &str,
    version: &str,
) -> anyhow::Result<String> {
    let head = format!(
        "POST /{kind} HTTP/{version}\r\nHost: test\r\nConnection: close\r\nIdempotency-Key: {kind}"
    );
    let mut connection =
        world.client.write(format!("{head}\r\nContent-Length: 2\r\n\r\n{{}}")).await?;
    let mut answer = Vec::new();
    while old_body(&String::from_utf8_lossy(&answer)).is_empty() {
        ensure!(
            within("a part", connection.read_buf(&mut answer)).await?? > 0,
            "{kind}: closed early"
        );
    }
    world.shop.gate.open();
    within("the end", connection.read_to_end(&mut answer)).await??;
    Ok(String::from_utf8(answer)?)
}

/// It comes in chunks, and the last one is missing.
fn is_seen_to_break_off(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
        && answer.contains("transfer-encoding: chunked\r\n")
        && !answer.ends_with("0\r\n\r\n")
}

/// What is past the limit is between the handler and its client: the mark is written before it is
/// read. A client of HTTP/1.0 sees no break in it.
#[tokio::test]
async fn rule_25_what_is_past_the_limit_counts_as_answered_whatever_becomes_of_its_rest()
-> anyhow::Result<()> {
    for policy in [OnCrash::Hold, OnCrash::Retry] {
        for (kind, version) in
            [("large-broken", "1.1"), ("events-broken", "1.1"), ("events-broken", "1.0")]
        {
            let world = world(policy, Unreplayable::Mark).await?;
            let answer = ask_until_it_breaks_off(&world, kind, version).await?;
            let is_of_old = version == "1.0" && answer.starts_with("HTTP/1.0 200 ");
            assert!(is_of_old || is_seen_to_break_off(&answer), "{kind}: {answer}");
            ask(&world, kind).send().await?.assert_problem(409, "not-kept")?;
            assert_eq!(world.effects(kind), 1);
        }
    }
    Ok(())
}

/// Such a client does not get it for an answer that is kept, and a retry does not get it again.
#[tokio::test]
async fn rule_25_a_client_of_http_1_0_sees_no_break_in_what_is_not_stored() -> anyhow::Result<()> {
    for (kind, status) in [("held-broken", 503), ("released-broken", 403)] {
        let world = world(OnCrash::Hold, Unreplayable::Mark).await?;
        let answer = ask_until_it_breaks_off(&world, kind, "1.0").await?;
        assert!(answer.starts_with(&format!("HTTP/1.0 {status} ")), "{answer}");
        assert_eq!(old_body(&answer).len(), 18, "{answer}");
        let retry = ask(&world, kind).send().await;
        if kind == "held-broken" {
            retry?.assert_problem(409, "uncertain")?;
        }
        assert_eq!(world.effects(kind), if kind == "held-broken" { 1 } else { 2 });
    }
    Ok(())
}

/// A gateway passes the version of its upstream on, and a response of HTTP/1.0 would end with its
/// connection.
#[tokio::test]
async fn rule_25_a_response_of_another_version_that_breaks_off_is_not_whole() -> anyhow::Result<()>
{
    let world = world(OnCrash::Hold, Unreplayable::Mark).await?;
    let answer = ask_until_it_breaks_off(&world, "of-1.0-broken", "1.1").await?;
    assert!(is_seen_to_break_off(&answer), "{answer}");
    is_in_doubt(&world, "of-1.0-broken").await
}

/// The body of an answer to a request of HTTP/1.0.
fn old_body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn rule_25_a_client_of_http_1_0_gets_no_part_of_an_answer_for_the_whole() -> anyhow::Result<()>
{
    for policy in [OnCrash::Hold, OnCrash::Retry] {
        for kind in ["broken-chunked", "broken-announced"] {
            let world = world(policy, Unreplayable::Mark).await?;
            let answer = ask_old(world.client.clone(), kind).await?;
            assert!(
                answer.starts_with("HTTP/1.0 500 ") && answer.contains("internal"),
                "{kind}: {answer}"
            );
            if policy == OnCrash::Hold {
                is_in_doubt(&world, kind).await?;
            }
        }
        // One that is whole, and kept.
        let world = world(policy, Unreplayable::Mark).await?;
        let first = ask_old(world.client.clone(), "chunked").await?;
        assert!(first.starts_with("HTTP/1.0 200 ") && old_body(&first).len() == 36, "{first}");
        assert_eq!(old_body(&ask_old(world.client.clone(), "chunked").await?), old_body(&first));
        assert_eq!(world.effects("chunked"), 1);
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_a_client_of_http_1_0_gets_no_answer_that_another_attempt_replaces()
-> anyhow::Result<()> {
    for kind in ["chunked", "large", "declared"] {
        let world = world_without_records().await?;
        let first = tokio::spawn(ask_old(world.client.clone(), kind));
        let second = answer_of_another(&world, kind, &first).await?;
        assert_eq!((second.status, world.effects(kind)), (200, 2), "{kind}");
        let first = first.await??;
        let is_declared = first.contains("content-length: 36");
        assert!(
            first.starts_with("HTTP/1.0 409 ") || is_declared && old_body(&first).len() < 36,
            "{kind}: {first}"
        );
    }
    Ok(())
}

/// They were collected, to be kept.
#[tokio::test]
async fn rule_25_a_client_of_http_1_0_gets_all_pieces_of_what_is_too_large_to_keep()
-> anyhow::Result<()> {
    for unreplayable in [Unreplayable::Mark, Unreplayable::Release] {
        let world = world(OnCrash::Hold, unreplayable).await?;
        for (kind, size) in [("large", 1_818), ("trailers", 36)] {
            let first = ask_old(world.client.clone(), kind).await?;
            let is_whole = first.starts_with("HTTP/1.0 200 ") && old_body(&first).len() == size;
            assert!(is_whole, "{kind}, {unreplayable:?}: {first}");
        }
    }
    Ok(())
}

/// Whose claim ends, and whose bytes never do.
#[tokio::test]
async fn rule_25_a_body_that_never_ends_is_not_collected_for_longer_than_its_claim()
-> anyhow::Result<()> {
    let quiet = || async {
        let body = Body::from_stream(stream::pending::<io::Result<Bytes>>());
        Response::builder()
            .header("x-begun", "yes")
            .body(body)
            .expect("the response is well-formed")
    };
    let world = World::setup()
        .clock_by_hand()
        .routes(Router::new().route("/quiet", post(quiet)))
        .start()
        .await?;
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let first = tokio::spawn(ask_old(world.client.clone(), "quiet"));
    eventually_async("the claim", async || world.store.requests(Operation::Claim) == 1).await?;
    eventually_async("the answer", async || {
        world.clock.advance(Duration::from_secs(1));
        first.is_finished()
    })
    .await?;
    let first = first.await??;
    assert!(first.starts_with("HTTP/1.0 500 "), "{first}");
    Ok(())
}
