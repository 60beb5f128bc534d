//! Responses that end elsewhere than they say, or that turn out at their end to be none that is
//! kept.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response};
use axum::routing::post;
use futures::future::poll_fn;
use futures::{StreamExt as _, stream};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use idempotency::http::{IdempotencyLayer, RequestBody, Scope};
use idempotency::record::State as RecordState;
use idempotency::store::{MemoryStore, Operation};
use idempotency::testing::Fault;
use idempotency::{Idempotency, OnCrash};
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::client::raw_post;
use crate::world::{Shop, World};

/// A body that says how long it is, rightly or not.
struct Announced {
    length: u64,
    frames: VecDeque<std::io::Result<Frame<Bytes>>>,
}

impl HttpBody for Announced {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.frames.pop_front())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

fn half() -> Frame<Bytes> {
    Frame::data(Bytes::from_static(b"half"))
}

fn announced(length: u64, frames: impl IntoIterator<Item = std::io::Result<Frame<Bytes>>>) -> Body {
    Body::new(Announced { length, frames: frames.into_iter().collect() })
}

fn in_pieces(pieces: &'static [&'static str]) -> Body {
    Body::from_stream(stream::iter(pieces.iter().map(|piece| Ok::<_, std::io::Error>(*piece))))
}

/// A response as its path says.
async fn respond(State(shop): State<Shop>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().trim_start_matches('/');
    shop.effect(path);
    let (status, length, body) = match path {
        "short-stream" => (200, Some(100), in_pieces(&["half"])),
        "long-stream" => (200, Some(2), in_pieces(&["twice", "half"])),
        "short" => (200, Some(100), announced(100, [Ok(half())])),
        "short-body" => (200, None, announced(100, [Ok(half())])),
        "long-body" => (200, None, announced(2, [Ok(half())])),
        "broken" => (
            200,
            None,
            announced(100, [Ok(half()), Err(std::io::Error::other("the disk is gone"))]),
        ),
        "unmodified" => (304, Some(100), Body::empty()),
        "trailers" => {
            (200, None, announced(4, [Ok(half()), Ok(Frame::trailers(HeaderMap::new()))]))
        }
        "pieces" => (200, None, in_pieces(&["", "ha", "", "", "lf", ""])),
        _ => (200, Some(4), in_pieces(&["ha", "lf"])),
    };
    let mut response = Response::builder().status(status);
    if let Some(length) = length {
        response = response.header("content-length", length);
    }
    response.body(body).expect("the response is well-formed")
}

async fn world() -> anyhow::Result<World> {
    World::setup().routes(Router::<Shop>::new().route("/{response}", post(respond))).start().await
}

#[tokio::test]
async fn rule_25_a_response_of_another_length_than_it_says_is_no_answer() -> anyhow::Result<()> {
    let world = world().await?;
    for name in ["short-stream", "long-stream", "short", "short-body", "long-body", "broken"] {
        let key = format!("Idempotency-Key: {name}\r\n");
        let answer =
            world.client.exchange(raw_post(&format!("/{name}"), key.as_bytes(), b"{}")).await?;
        assert!(!answer.contains("idempotency-key-expires"), "{answer}");
        let is_in_doubt =
            async || world.state(name).await.ok().flatten() == Some(RecordState::InDoubt);
        eventually_async("the record", is_in_doubt).await?;
        world
            .client
            .post(&format!("/{name}"))
            .key(name)
            .send()
            .await?
            .assert_problem(409, "uncertain")?;
        assert_eq!(world.effects(name), 1);
    }
    // One that is as long as it says, and one that says how long its body would be.
    for (name, status, body) in [("whole", 200, "half"), ("unmodified", 304, "")] {
        let send = || world.client.post(&format!("/{name}")).key(name).send();
        let (first, retry) = (send().await?, send().await?);
        assert_eq!((first.status, &first.body[..]), (status, body.as_bytes()), "{name}");
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()), "{name}");
    }
    Ok(())
}

/// A server of HTTP skips them by itself, so that this is seen only without one.
#[tokio::test]
async fn rule_25_pieces_without_content_are_neither_kept_nor_passed_on() -> anyhow::Result<()> {
    let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
    let empty = async |_: Request<RequestBody<Body>>| {
        let pieces = std::iter::repeat_n("", 1_000).chain(["ha", "", "lf", ""]);
        let pieces = Body::from_stream(stream::iter(pieces.map(Ok::<_, std::io::Error>)));
        Ok::<_, std::convert::Infallible>(Response::new(pieces))
    };
    let service = layer.layer(service_fn(empty));
    let request = Request::post("/pieces").header("idempotency-key", "abc").body(Body::empty())?;
    let mut body = Box::pin(service.oneshot(request).await?.into_body());
    let mut pieces = Vec::new();
    while let Some(frame) =
        within("a piece", poll_fn(|task| body.as_mut().poll_frame(task))).await?
    {
        pieces.extend(frame.map_err(anyhow::Error::from_boxed)?.into_data().ok());
    }
    assert!(pieces.iter().all(|piece| !piece.is_empty()), "{pieces:?}");
    assert_eq!(pieces.concat(), b"half");
    Ok(())
}

#[tokio::test]
async fn rule_58_a_lifetime_is_told_only_of_what_is_kept() -> anyhow::Result<()> {
    let world = world().await?;
    // Its end is not known when its head is sent.
    let pieces = || world.client.post("/pieces").key("pieces").send();
    assert_eq!(pieces().await?.header("idempotency-key-expires"), None);
    let retry = pieces().await?;
    assert!(retry.is_replayed() && retry.header("idempotency-key-expires").is_some(), "{retry:?}");
    let trailers = || world.client.post("/trailers").key("trailers").send();
    assert_eq!(trailers().await?.header("idempotency-key-expires"), None);
    trailers().await?.assert_problem(409, "not-kept")
}

/// A body with these pieces, and perhaps with a length, that never ends. It tells when it is asked
/// for more than the first.
struct Lingering {
    shop: Shop,
    length: Option<u64>,
    sent: usize,
    /// Comes when the gate is open.
    more: Option<&'static str>,
}

impl Lingering {
    fn body(self) -> Body {
        let length = self.length;
        let stream = stream::unfold(self, |mut body| async move {
            body.sent += 1;
            if body.sent == 1 {
                return Some((Ok::<_, std::io::Error>("hello"), body));
            }
            body.shop.effect("lingers");
            body.shop.gate.wait().await;
            match body.more.take() {
                Some(more) => Some((Ok(more), body)),
                None => std::future::pending().await,
            }
        });
        Body::new(WithLength { length, body: Body::from_stream(stream) })
    }
}

/// A body that says that it is so long.
pub struct WithLength {
    pub length: Option<u64>,
    pub body: Body,
}

impl HttpBody for WithLength {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(task)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

async fn linger(State(shop): State<Shop>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().trim_start_matches('/');
    shop.effect(path);
    let length = if path.starts_with("beyond") { 2 } else { 5 };
    let known = path.ends_with("known").then_some(length);
    let more = path.starts_with("more").then_some("more");
    let response = Response::builder().status(201).header("content-length", length);
    response
        .body(Lingering { shop, length: known, sent: 0, more }.body())
        .expect("the response is well-formed")
}

fn lingering() -> Router<Shop> {
    Router::new().route("/{response}", post(linger))
}

/// A server of HTTP sends what is there by the length, and looks no further.
#[tokio::test]
async fn rule_25_a_response_that_is_whole_by_its_length_does_not_wait_for_the_end_of_its_stream()
-> anyhow::Result<()> {
    let world = World::setup().routes(lingering()).start().await?;
    for name in ["whole", "whole-known"] {
        let send = || world.client.post(&format!("/{name}")).key(name).send();
        let (first, retry) = (send().await?, send().await?);
        assert_eq!((first.status, &first.body[..]), (201, &b"hello"[..]), "{name}");
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()), "{name}");
        assert_eq!(world.effects(name), 1);
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_a_response_that_is_longer_than_it_says_is_none_before_its_stream_ends()
-> anyhow::Result<()> {
    let world = World::setup().clock_by_hand().routes(lingering()).start().await?;
    for name in ["beyond", "beyond-known"] {
        let first = world.client.post(&format!("/{name}")).key(name).send().await;
        assert!(first.is_err(), "{name}: {first:?}");
        let is_in_doubt =
            async || world.state(name).await.ok().flatten() == Some(RecordState::InDoubt);
        eventually_async("the record", is_in_doubt).await?;
    }
    Ok(())
}

/// The clock stands still, so that the look takes as long as it has to.
#[tokio::test]
async fn rule_25_a_response_that_is_whole_by_its_length_is_looked_at_once_more()
-> anyhow::Result<()> {
    for name in ["more", "more-known"] {
        let world = World::setup().clock_by_hand().routes(lingering()).start().await?;
        let first = world.client.post(&format!("/{name}")).key(name).spawn();
        eventually("the look", || world.shop.count("lingers") == 1).await?;
        world.shop.gate.open();
        let first = first.reply().await;
        assert!(first.is_err(), "{name}: {first:?}");
        let is_in_doubt =
            async || world.state(name).await.ok().flatten() == Some(RecordState::InDoubt);
        eventually_async("the record", is_in_doubt).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_a_response_that_is_whole_by_its_length_is_kept_when_its_claim_ends()
-> anyhow::Result<()> {
    for policy in [OnCrash::Hold, OnCrash::Retry] {
        for name in ["whole", "whole-known"] {
            let world =
                World::setup().clock_by_hand().layer(move |layer| layer.with_on_crash(policy));
            let world = world.routes(lingering()).start().await?;
            world.store.always(Operation::Renew, Some(Fault::LostRequest));
            let send = || world.client.post(&format!("/{name}")).key(name);
            let first = send().spawn();
            eventually("the look", || world.shop.count("lingers") == 1).await?;
            // The look and the lease are over at once.
            world.clock.advance(Duration::from_secs(60));
            let first = first.reply().await?;
            assert_eq!((first.status, &first.body[..]), (201, &b"hello"[..]), "{name}, {policy:?}");
            let retry = send().send().await?;
            assert_eq!(
                (retry.is_replayed(), retry.answer()),
                (true, first.answer()),
                "{name}, {policy:?}"
            );
            assert_eq!(world.effects(name), 1);
        }
    }
    Ok(())
}

/// A response of two pieces, the second of which comes when the gate is open.
async fn pause(State(shop): State<Shop>, request: Request<Body>) -> Response<Body> {
    let kind = request.uri().path().trim_start_matches('/').to_owned();
    let response = Response::builder().status(201);
    let response = match &*kind {
        "declared" => response.header("content-length", 5),
        _ => response,
    };
    let length = (kind == "known").then_some(5);
    let rest = async move {
        shop.effect(&kind);
        shop.gate.wait().await;
        Ok::<_, std::io::Error>("lo")
    };
    let body = Body::from_stream(stream::iter([Ok("hel")]).chain(stream::once(rest)));
    response.body(Body::new(WithLength { length, body })).expect("the response is well-formed")
}

/// A response is watched for its end only when all of it is there.
#[tokio::test]
async fn rule_25_a_response_may_pause_for_longer_than_its_end_is_watched() -> anyhow::Result<()> {
    for kind in ["known", "declared", "pieces"] {
        let routes = Router::new().route("/{kind}", post(pause));
        let world = World::setup().clock_by_hand().routes(routes).start().await?;
        let send = || world.client.post(&format!("/{kind}")).key(kind);
        let first = send().spawn();
        eventually("the pause", || world.shop.count(kind) == 1).await?;
        world.clock.advance(Duration::from_secs(1));
        // The handler's task, on this same thread, would notice.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        world.shop.gate.open();
        let (first, retry) = (first.reply().await?, send().send().await?);
        assert_eq!((first.status, &first.body[..]), (201, &b"hello"[..]), "{kind}");
        assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()), "{kind}");
    }
    Ok(())
}

/// It is left out, because the status has none, and nobody waits for as much as it declares.
#[tokio::test]
async fn rule_18_a_response_without_content_declares_none_of_its_handler() -> anyhow::Result<()> {
    let reset = async |_: Request<RequestBody<Body>>| {
        let response = Response::builder().status(205).header("content-length", 5);
        Ok::<_, std::io::Error>(response.body(Body::from("hello")).expect("it is well-formed"))
    };
    let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
    for is_replayed in [false, true] {
        let request = Request::post("/").header("idempotency-key", "abc").body(Body::empty())?;
        let response = layer.layer(service_fn(reset)).oneshot(request).await?;
        let headers = response.headers();
        assert_eq!(headers.contains_key("idempotency-replayed"), is_replayed);
        assert_eq!(headers.get("content-length"), None, "replayed: {is_replayed}");
        assert_eq!(response.body().size_hint().exact(), Some(0), "replayed: {is_replayed}");
    }
    Ok(())
}
