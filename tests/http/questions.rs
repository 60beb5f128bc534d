//! The question of `with_verify` is asked in a task of its own: clients that hang up do not cut it
//! off.

use idempotency::store::Operation;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::middleware::{Next, from_fn};
use axum::routing::post;
use bytes::Bytes;
use futures::stream;
use idempotency::http::{IdempotencyLayer, Scope};
use idempotency::record::State as RecordState;
use idempotency::store::MemoryStore;
use idempotency::testing::{Fault, Gate};
use idempotency::{Context, ErrorKind, Idempotency, Verdict};
use idempotency_test_support::deadline::{eventually, eventually_async};

use crate::client::{Client, raw_post};
use crate::world::{DAY, Server, Shop, World, router};

const KEY: &[u8] = b"Idempotency-Key: \"abc\"\r\n";

/// Its claim would live for as long as the pause, which `max_run` does not allow.
#[test]
fn a_pause_before_the_question_that_is_too_long_is_refused_where_the_options_are_looked_at() {
    let layer = |settle| {
        IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global())
            .with_verify(|_, _| async { Verdict::Unknown })
            .with_settle(settle)
            .checked()
    };
    assert_eq!(layer(DAY).unwrap_err().kind(), ErrorKind::Config);
    assert!(layer(Duration::from_secs(1)).is_ok());
}

/// A service that has answered 504 to the request `abc`, and whose question about it waits at a
/// gate.
struct Scene {
    world: World,
    asked: Arc<AtomicUsize>,
    gate: Gate,
    /// Requests that have come in and are not over.
    under_way: Arc<AtomicUsize>,
}

impl Scene {
    async fn new(settle: Duration, verdict: Verdict<()>) -> anyhow::Result<Self> {
        let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Gate::new());
        let (asking, at_gate) = (asked.clone(), gate.clone());
        let question = move |_: Context, _: axum::http::Request<Bytes>| {
            let gate = at_gate.clone();
            asking.fetch_add(1, Ordering::SeqCst);
            async move {
                gate.wait().await;
                match verdict {
                    Verdict::Completed(()) => {
                        Verdict::Completed(Response::new(Bytes::from_static(b"in the books")))
                    }
                    Verdict::NotExecuted => Verdict::NotExecuted,
                    _ => Verdict::Unknown,
                }
            }
        };
        let under_way = Arc::new(AtomicUsize::new(0));
        let counting = under_way.clone();
        let world = World::setup()
            .clock_by_hand()
            .engine(|builder| builder.lease(DAY))
            .layer(move |layer: IdempotencyLayer| {
                layer.with_ttl(2 * DAY).with_settle(settle).with_verify(question)
            })
            .around(move |router: Router| {
                router.layer(from_fn(move |request: Request, next: Next| {
                    let counting = counting.clone();
                    async move {
                        counting.fetch_add(1, Ordering::SeqCst);
                        let _here = Leaving(counting);
                        next.run(request).await
                    }
                }))
            })
            .start()
            .await?;
        assert_eq!(world.pay("abc").header("x-status", "504").send().await?.status, 504);
        Ok(Self { world, asked, gate, under_way })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A client that sends the request again, and hangs up when `it_is_time`.
    async fn hang_up(&self, it_is_time: impl Fn() -> bool) -> anyhow::Result<()> {
        let connection = self.world.client.write(raw_post("/pay", KEY, b"{}")).await?;
        eventually("the retry", it_is_time).await?;
        drop(connection);
        eventually("the server to notice", || self.under_way.load(Ordering::SeqCst) == 0).await
    }

    /// Waits until the record has its answer.
    async fn answered(&self) -> anyhow::Result<()> {
        let is_answered =
            async || self.world.state("abc").await.ok().flatten() == Some(RecordState::Completed);
        eventually_async("the answer", is_answered).await
    }
}

struct Leaving(Arc<AtomicUsize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_question_that_panics_is_a_500_and_is_asked_again_after_a_rest() -> anyhow::Result<()> {
    let asked = Arc::new(AtomicUsize::new(0));
    let question = move |_: Context, _: axum::http::Request<Bytes>| {
        let is_first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            assert!(!is_first, "the test asks for it");
            Verdict::Completed(Response::new(Bytes::from_static(b"in the books")))
        }
    };
    let world = World::setup()
        .clock_by_hand()
        .engine(|builder| builder.lease(DAY))
        .layer(|layer| layer.with_ttl(2 * DAY).with_settle(Duration::ZERO).with_verify(question))
        .start()
        .await?;
    world.pay("abc").header("x-status", "504").send().await?;
    world.pay("abc").send().await?.assert_problem(500, "internal")?;
    let is_in_doubt =
        async || world.state("abc").await.ok().flatten() == Some(RecordState::InDoubt);
    eventually_async("the doubt", is_in_doubt).await?;
    world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    world.clock.advance(Duration::from_secs(5));
    let retry = world.pay("abc").send().await?;
    assert_eq!((&retry.body[..], world.effects("abc")), (&b"in the books"[..], 1));
    Ok(())
}

/// No response can have such a status.
#[tokio::test]
async fn an_answer_that_only_announces_a_response_is_none() -> anyhow::Result<()> {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let question = move |_: Context, _: axum::http::Request<Bytes>| {
        counting.fetch_add(1, Ordering::SeqCst);
        async {
            Verdict::Completed(
                Response::builder().status(102).body(Bytes::new()).expect("it is well-formed"),
            )
        }
    };
    let world = World::setup()
        .clock_by_hand()
        .layer(|layer| layer.with_settle(Duration::ZERO).with_verify(question))
        .start()
        .await?;
    world.pay("abc").header("x-status", "504").send().await?;
    for _ in 0..2 {
        world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    }
    assert_eq!((asked.load(Ordering::SeqCst), world.effects("abc")), (1, 1));
    assert_eq!(world.state("abc").await?, Some(RecordState::InDoubt));
    Ok(())
}

#[tokio::test]
async fn rule_24_a_client_that_leaves_does_not_cut_the_question_about_its_request_off()
-> anyhow::Result<()> {
    let scene = Scene::new(Duration::ZERO, Verdict::Completed(())).await?;
    scene.hang_up(|| scene.asked() == 1).await?;
    // The question is under way, for nobody.
    for _ in 0..8 {
        scene.world.pay("abc").send().await?.assert_problem(409, "in-progress")?;
    }
    scene.gate.open();
    scene.answered().await?;
    let retry = scene.world.pay("abc").send().await?;
    assert_eq!((&retry.body[..], retry.is_replayed()), (&b"in the books"[..], true));
    assert_eq!((scene.asked(), scene.world.effects("abc")), (1, 1));
    Ok(())
}

#[tokio::test]
async fn rule_24_a_client_that_leaves_before_the_question_is_asked_lets_it_be_asked_in_time()
-> anyhow::Result<()> {
    let settle = Duration::from_secs(1);
    let scene = Scene::new(settle, Verdict::Completed(())).await?;
    scene.gate.open();
    scene.hang_up(|| scene.world.store.requests(Operation::Claim) == 2).await?;
    // Nobody is there any more whose request could ask.
    eventually("the question", || {
        scene.world.clock.advance(settle);
        scene.asked() == 1
    })
    .await?;
    scene.answered().await
}

#[tokio::test]
async fn rule_24_a_client_that_leaves_does_not_keep_its_request_from_running_after_the_question()
-> anyhow::Result<()> {
    let scene = Scene::new(Duration::ZERO, Verdict::NotExecuted).await?;
    scene.hang_up(|| scene.asked() == 1).await?;
    scene.gate.open();
    scene.answered().await?;
    let retry = scene.world.pay("abc").send().await?;
    assert_eq!((retry.status, retry.is_replayed(), scene.world.effects("abc")), (201, true, 2));
    Ok(())
}

#[tokio::test]
async fn a_question_without_an_answer_leaves_the_record_in_doubt_though_nobody_waits_for_it()
-> anyhow::Result<()> {
    let scene = Scene::new(Duration::ZERO, Verdict::Unknown).await?;
    scene.hang_up(|| scene.asked() == 1).await?;
    scene.gate.open();
    let is_in_doubt =
        async || scene.world.state("abc").await.ok().flatten() == Some(RecordState::InDoubt);
    eventually_async("the doubt", is_in_doubt).await?;
    let retry = scene.world.pay("abc").send().await?;
    retry.assert_problem(409, "uncertain")?;
    assert!(retry.header("retry-after").is_some(), "it says when it is asked again: {retry:?}");
    assert_eq!((scene.asked(), scene.world.effects("abc")), (1, 1));
    Ok(())
}

/// A stream whose claim was taken over while it waited for its end.
async fn stream(State(shop): State<Shop>) -> Response<Body> {
    shop.effect("streaming");
    let pieces = stream::unfold(0, move |sent| {
        let shop = shop.clone();
        async move {
            if sent == 1 {
                shop.gate.wait().await;
            }
            (sent < 2).then_some((Ok::<_, Infallible>(Bytes::from_static(b"piece")), sent + 1))
        }
    });
    Response::new(Body::from_stream(pieces))
}

/// Nobody gets that answer, and none of the late owner either.
#[tokio::test]
async fn rule_25_a_late_owner_gives_no_answer_where_the_question_had_one_that_is_too_large()
-> anyhow::Result<()> {
    for (path, is_whole) in [("/pay", true), ("/stream", false)] {
        for (limit, size) in [(300_000, 300_000), (10_000, 10_000), (300_000, 10)] {
            let question = move |layer: IdempotencyLayer| {
                layer.with_settle(Duration::ZERO).with_max_response_body(limit).with_verify(
                    move |_, _| async move {
                        Verdict::Completed(Response::new(Bytes::from("x".repeat(size))))
                    },
                )
            };
            let routes = || Router::new().route("/stream", post(stream));
            let world =
                World::setup().clock_by_hand().routes(routes()).layer(question).start().await?;
            world.store.always(Operation::Renew, Some(Fault::LostRequest));
            let ask = |client: &Client| client.post(path).key("abc").header("x-wait", "1");
            let first = ask(&world.client).spawn();
            let begun = if is_whole { "entered-abc" } else { "streaming" };
            eventually("the handler", || world.shop.count(begun) == 1).await?;
            world.clock.advance(Duration::from_secs(60));
            let engine =
                Idempotency::builder(world.memory.clone()).clock(world.clock.clone()).build()?;
            let layer = question(IdempotencyLayer::new(engine, Scope::global()));
            let other = Server::start(router(&world.shop, routes()).layer(layer)).await?;
            let is_kept = size < 10_000;
            for _ in 0..2 {
                let answer = ask(&other.client()).send().await?;
                if is_kept {
                    assert_eq!((answer.status, answer.body.len()), (200, size));
                } else {
                    answer.assert_problem(409, "not-kept")?;
                }
            }
            world.shop.gate.open();
            eventually_async("the end of the first one", async || {
                world.clock.advance(Duration::from_secs(1));
                first.is_answered()
            })
            .await?;
            match first.reply().await {
                Ok(answer) if is_kept && is_whole => assert_eq!(answer.body.len(), size),
                Ok(answer) if is_whole => answer.assert_problem(409, "not-kept")?,
                Ok(answer) => {
                    anyhow::bail!("it has all of an answer that nobody else gets: {answer:?}")
                }
                Err(error) => assert!(!is_whole, "{error}"),
            }
        }
    }
    Ok(())
}
