//! Rules 58 to 62: lifetimes, and stores that are away.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response};
use futures::FutureExt as _;
use idempotency::Idempotency;
use idempotency::clock::Timestamp;
use idempotency::http::{IdempotencyLayer, RequestBody, Scope};
use idempotency::record::State as RecordState;
use idempotency::store::{MemoryStore, Operation, RedisStore, SqliteStore, StoreErrorKind};
use idempotency::testing::{Fault as StoreFault, FaultyStore, Gate, ManualClock};
use idempotency_test_support::deadline::{eventually, eventually_async};
use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use tokio::task::JoinHandle;
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::client::{Pending, Reply};
use crate::process::{Orders, Process};
use crate::world::{DAY, NO_PATIENCE, PATIENCE, Shop, World, memory_directory};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

fn expires(reply: &Reply) -> anyhow::Result<SystemTime> {
    let date = reply
        .header("idempotency-key-expires")
        .with_context(|| format!("no lifetime: {reply:?}"))?;
    Ok(httpdate::parse_http_date(date)?)
}

#[tokio::test]
async fn rule_58_the_lifetime_is_published_and_honoured() -> anyhow::Result<()> {
    let world = World::setup()
        .clock_by_hand()
        .layer(|layer| {
            layer
                .with_ttl(DAY)
                .with_ttl_of(|response| if response.status == 402 { HOUR } else { DAY })
        })
        .start()
        .await?;
    let start = Timestamp::from_millis(1_700_000_000_000);
    world.clock.set_wall(start);
    for (key, status, ttl) in [("paid", "201", DAY), ("declined", "402", HOUR)] {
        let first = world.pay(key).header("x-status", status).send().await?;
        assert_eq!(first.status.to_string(), status);
        assert_eq!(expires(&first)?, SystemTime::from(start + ttl), "{key}");
    }
    world.clock.advance(MINUTE * 59);
    for (key, ttl) in [("paid", DAY), ("declined", HOUR)] {
        let retry = world.pay(key).send().await?;
        assert_eq!(
            (retry.is_replayed(), expires(&retry)?),
            (true, SystemTime::from(start + ttl)),
            "{key}"
        );
    }
    world.clock.advance(MINUTE * 2);
    assert!(world.pay("paid").send().await?.is_replayed());
    assert!(!world.pay("declined").send().await?.is_replayed());
    world.clock.advance(HOUR * 22 + MINUTE * 58);
    assert!(world.pay("paid").send().await?.is_replayed());
    world.clock.advance(MINUTE * 2);
    assert!(!world.pay("paid").send().await?.is_replayed());
    assert_eq!((world.effects("paid"), world.effects("declined")), (2, 2));
    Ok(())
}

#[tokio::test]
async fn rule_59_an_expired_record_that_is_still_there_is_not_replayed() -> anyhow::Result<()> {
    let directory = memory_directory()?;
    let clock = ManualClock::new();
    let store = SqliteStore::builder(directory.path().join("records.db"))
        .clock(clock.clone())
        .open()
        .await?;
    let engine =
        Idempotency::builder(store).clock(clock.clone()).background_purge(false).build()?;
    let shop = Shop::open(directory.path())?;
    let server = shop.serve(IdempotencyLayer::new(engine, Scope::global()).with_ttl(HOUR)).await?;
    let pay = || server.client().post("/pay").key("abc").send();
    let (first, retry) = (pay().await?, pay().await?);
    assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));

    clock.advance(HOUR * 2);
    let url = format!("sqlite:{}", directory.path().join("records.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await?;
    let (rows,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM idempotency_records").fetch_one(&pool).await?;
    assert_eq!(rows, 1, "nothing has removed it");
    let later = pay().await?;
    assert_eq!((later.status, later.is_replayed(), shop.count("abc")), (201, false, 2));
    assert_ne!(later.body, first.body);
    Ok(())
}

#[tokio::test]
async fn rule_60_without_its_store_the_layer_refuses_unless_it_fails_open() -> anyhow::Result<()> {
    let mut redis = RedisServer::start(RedisOptions::new().private()).await?;
    let directory = tempfile::tempdir()?;
    let shop = Shop::open(directory.path())?;
    let store = RedisStore::connect(&redis.url()).await?;
    let patient = Idempotency::builder(store.clone()).claim_timeout(PATIENCE).build()?;
    let protected =
        shop.serve(IdempotencyLayer::new(patient, Scope::global()).with_fail_open()).await?;
    let protected = protected.client().post("/pay").key("before").send().await?;
    assert_eq!((protected.status, protected.header("idempotency-bypassed")), (201, None));
    redis.kill()?;

    let engine = Idempotency::builder(store).claim_timeout(Duration::from_millis(400)).build()?;
    let layer = IdempotencyLayer::new(engine, Scope::global());
    let (closed, open) =
        (shop.serve(layer.clone()).await?, shop.serve(layer.with_fail_open()).await?);
    let refused = closed.client().post("/pay").key("closed").send().await?;
    refused.assert_problem(503, "unavailable")?;
    let seconds: u64 = refused.header("retry-after").unwrap_or_default().parse()?;
    assert!(seconds >= 1 && shop.count("closed") == 0);

    for runs in 1..=2 {
        let reply = open.client().post("/pay").key("open").send().await?;
        assert_eq!((reply.status, reply.is_replayed(), shop.count("open")), (201, false, runs));
        assert_eq!(reply.header("idempotency-bypassed"), Some("true"));
        assert_eq!(reply.header("idempotency-key-expires"), None);
        assert_eq!(reply.json()?["key"], "open", "the handler knows the key all the same");
    }
    Ok(())
}

#[tokio::test]
async fn rule_60_a_store_that_answers_late_is_no_store_that_is_away() -> anyhow::Result<()> {
    let lease = Duration::from_secs(10);
    let world = World::setup()
        .clock_by_hand()
        .engine(move |builder| builder.lease(lease))
        .layer(IdempotencyLayer::with_fail_open)
        .start()
        .await?;
    // Each claim is granted when most of its lease is over, and given back.
    let gates = [Gate::new(), Gate::new()];
    for gate in &gates {
        world.store.next(Operation::Claim, StoreFault::Late(gate.clone()));
    }
    let pending = world.pay("abc").spawn();
    for (number, gate) in (1..).zip(&gates) {
        eventually_async("the claim", async || world.store.requests(Operation::Claim) == number)
            .await?;
        world.clock.advance(lease * 9 / 10);
        gate.open();
    }
    pending.reply().await?.assert_problem(503, "unavailable")?;
    assert_eq!(world.effects("abc"), 0);
    let retry = world.pay("abc").send().await?;
    assert_eq!(
        (retry.status, retry.header("idempotency-bypassed"), world.effects("abc")),
        (201, None, 1)
    );
    Ok(())
}

#[tokio::test]
async fn rule_60_a_retry_does_not_run_beside_a_handler_that_has_lost_its_lease()
-> anyhow::Result<()> {
    let lease = Duration::from_secs(10);
    let world = World::setup()
        .clock_by_hand()
        .engine(move |builder| builder.lease(lease).claim_timeout(NO_PATIENCE))
        .layer(IdempotencyLayer::with_fail_open)
        .start()
        .await?;
    let first = world.pay("abc").header("x-wait", "1").spawn();
    world.entered("abc").await?;
    for operation in [Operation::Claim, Operation::Renew, Operation::Complete] {
        world.store.always(operation, Some(StoreFault::Refused(StoreErrorKind::Refused)));
    }
    world.clock.advance(lease * 2);
    let answered = async |pending: Pending| {
        eventually("an answer", || {
            world.clock.advance(Duration::from_millis(100));
            pending.is_answered()
        })
        .await?;
        pending.reply().await
    };
    for _ in 0..2 {
        answered(world.pay("abc").spawn()).await?.assert_problem(503, "unavailable")?;
    }
    let other = answered(world.pay("def").spawn()).await?;
    assert_eq!((other.status, other.header("idempotency-bypassed")), (201, Some("true")));
    world.shop.gate.open();
    answered(first).await?;
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_60_who_has_waited_for_another_request_does_not_run_when_the_store_goes_away()
-> anyhow::Result<()> {
    let world = World::setup()
        .engine(|builder| builder.claim_timeout(Duration::from_secs(1)).max_waiters(1))
        .layer(|layer| layer.with_fail_open().blocking(PATIENCE))
        .start()
        .await?;
    // It answers what nobody can be sure of.
    let first = world.pay("abc").header("x-wait", "1").header("x-status", "504").spawn();
    world.entered("abc").await?;
    // One of them waits when the other is refused.
    let others = [world.pay("abc").spawn(), world.pay("abc").spawn()];
    eventually("one to be refused", || others.iter().any(Pending::is_answered)).await?;
    world.store.always(Operation::Claim, Some(StoreFault::Refused(StoreErrorKind::Refused)));
    world.shop.gate.open();
    assert_eq!(first.reply().await?.status, 504);
    let mut problems = Vec::new();
    for other in others {
        problems.push(other.reply().await?.problem()?);
    }
    problems.sort_unstable();
    assert_eq!(
        (problems, world.effects("abc")),
        (vec!["in-progress".to_owned(), "unavailable".to_owned()], 1)
    );
    Ok(())
}

/// Polled by hand: each is woken when the store is away, and sees of the first one what the case
/// says.
#[tokio::test]
async fn rule_60_who_has_followed_another_request_does_not_run_for_what_the_next_one_knows()
-> anyhow::Result<()> {
    for (sees_it_run, fresh_comes_first) in
        [(true, false), (true, true), (false, false), (false, true)]
    {
        let case =
            format!("sees it run: {sees_it_run}, a fresh one comes first: {fresh_comes_first}");
        let clock = ManualClock::new();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let engine = Idempotency::builder(store.clone())
            .clock(clock.clone())
            .claim_timeout(PATIENCE)
            .build()?;
        let layer = IdempotencyLayer::new(engine, Scope::global()).with_fail_open().blocking(DAY);
        let (gate, ran) = (Gate::new(), Arc::new(AtomicUsize::default()));
        let (handlers, counting) = (gate.clone(), ran.clone());
        let service = layer.layer(service_fn(move |_: Request<RequestBody<Body>>| {
            let (gate, ran) = (handlers.clone(), counting.clone());
            async move {
                // The first one does not know whether its charge has arrived.
                let status = if ran.fetch_add(1, Ordering::SeqCst) == 0 { 504 } else { 201 };
                gate.wait().await;
                Ok::<_, Infallible>(
                    Response::builder()
                        .status(status)
                        .body(Body::empty())
                        .expect("it is well-formed"),
                )
            }
        }));
        let request = || Request::post("/").header("idempotency-key", "abc").body(Body::from("{}"));
        let claims = Gate::new();
        store.next(Operation::Claim, StoreFault::Late(claims.clone()));
        let first = tokio::spawn(service.clone().oneshot(request()?));
        eventually("the claim", || store.requests(Operation::Claim) == 1).await?;
        let mut waiting = Box::pin(service.clone().oneshot(request()?));
        assert!(waiting.as_mut().now_or_never().is_none());
        claims.open();
        eventually("the first handler", || ran.load(Ordering::SeqCst) == 1).await?;
        if sees_it_run {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        gate.open();
        assert_eq!(first.await??.status(), 504);
        store.always(Operation::Claim, Some(StoreFault::Refused(StoreErrorKind::Refused)));
        let mut answers = Vec::new();
        if fresh_comes_first {
            let mut fresh = Box::pin(service.clone().oneshot(request()?));
            assert!(fresh.as_mut().now_or_never().is_none(), "{case}");
            answers.push(tokio::spawn(fresh));
        }
        answers.push(tokio::spawn(waiting));
        eventually("the answers", || {
            clock.advance(Duration::from_secs(1));
            answers.iter().all(JoinHandle::is_finished)
        })
        .await?;
        let waited = answers.pop().context("it was asked")?.await??;
        assert_eq!(
            waited.headers().get("idempotency-problem").map(HeaderValue::as_bytes),
            Some(&b"unavailable"[..]),
            "{case}"
        );
        // It has met nobody, and the store has told it nothing.
        if let Some(fresh) = answers.pop() {
            assert!(fresh.await??.headers().contains_key("idempotency-bypassed"), "{case}");
        }
        assert_eq!(ran.load(Ordering::SeqCst), 1 + usize::from(fresh_comes_first), "{case}");
    }
    Ok(())
}

/// Both are there before the store has said anything, and the second one waits for the claim of the
/// first.
#[tokio::test]
async fn rule_60_of_two_requests_that_meet_while_the_store_is_away_one_runs() -> anyhow::Result<()>
{
    for blocks in [false, true] {
        let clock = ManualClock::new();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        let engine = Idempotency::builder(store.clone())
            .clock(clock.clone())
            .claim_timeout(PATIENCE)
            .build()?;
        let layer = IdempotencyLayer::new(engine, Scope::global()).with_fail_open();
        let layer = if blocks { layer.blocking(DAY) } else { layer };
        let ran = Arc::new(AtomicUsize::default());
        let counting = ran.clone();
        let service = layer.layer(service_fn(move |_: Request<RequestBody<Body>>| {
            counting.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, Infallible>(Response::new(Body::empty())) }
        }));
        let request = || Request::post("/").header("idempotency-key", "abc").body(Body::from("{}"));
        store.always(Operation::Claim, Some(StoreFault::Refused(StoreErrorKind::Refused)));
        let mut requests = Vec::new();
        for _ in 0..2 {
            let mut request = Box::pin(service.clone().oneshot(request()?));
            assert!(request.as_mut().now_or_never().is_none());
            requests.push(tokio::spawn(request));
        }
        eventually("the answers", || {
            clock.advance(Duration::from_secs(1));
            requests.iter().all(JoinHandle::is_finished)
        })
        .await?;
        let mut answers = Vec::new();
        for request in requests {
            let answer = request.await??;
            let is_bypassed = answer.headers().contains_key("idempotency-bypassed");
            answers.push((answer.status().as_u16(), is_bypassed));
        }
        assert_eq!(answers, [(200, true), (503, false)], "blocks: {blocks}");
        assert_eq!(ran.load(Ordering::SeqCst), 1, "blocks: {blocks}");
    }
    Ok(())
}

/// The claim that tells of it is granted when most of its lease is over, and given back. The next
/// one does not arrive.
#[tokio::test]
async fn rule_60_who_was_told_of_another_attempt_does_not_run_when_the_store_goes_away()
-> anyhow::Result<()> {
    let lease = Duration::from_secs(100);
    let world = World::setup()
        .clock_by_hand()
        .engine(move |builder| builder.lease(lease).claim_timeout(lease))
        .layer(|layer| {
            let unasked = |_, _| async { panic!("it would say that it is in the books") };
            layer.with_fail_open().with_settle(Duration::ZERO).with_verify(unasked)
        })
        .start()
        .await?;
    assert_eq!(world.pay("abc").header("x-status", "504").send().await?.status, 504);
    let gate = Gate::new();
    world.store.next(Operation::Claim, StoreFault::LateAnswer(gate.clone()));
    let retry = world.pay("abc").spawn();
    eventually_async("the claim", async || {
        world.record("abc").inspect().await.ok().flatten().is_some_and(|view| view.attempts == 2)
    })
    .await?;
    world.store.always(Operation::Claim, Some(StoreFault::Refused(StoreErrorKind::Refused)));
    world.clock.advance(lease * 9 / 10);
    gate.open();
    eventually_async("the answer", async || {
        world.clock.advance(Duration::from_secs(1));
        retry.is_answered()
    })
    .await?;
    retry.reply().await?.assert_problem(503, "unavailable")?;
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_61_when_the_store_is_back_all_goes_on_and_lost_answers_are_recognised()
-> anyhow::Result<()> {
    let mut redis = RedisServer::start(RedisOptions::new().private().append_only()).await?;
    let proxy = Proxy::start(redis.address()).await?;
    let directory = tempfile::tempdir()?;
    let shop = Shop::open(directory.path())?;
    let connecting = RedisStore::builder(proxy.url(&redis.url())).connect_timeout(PATIENCE);
    let store = connecting.response_timeout(Duration::from_secs(4)).connect().await?;
    // A busy machine may take long, but not for ever.
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).lease(DAY).build()?;
    let server = shop.serve(IdempotencyLayer::new(engine.clone(), Scope::global())).await?;
    let pay = |key: &str| server.client().post("/pay").key(key).send();
    let first = pay("before").await?;
    assert_eq!(first.status, 201);

    for action in [Action::Close, Action::Reset, Action::Silence] {
        let mut tries = (0..10).map(|number| format!("{action:?}-{number}"));
        loop {
            let key = tries.next().context("no answer was lost")?;
            let lost = proxy.next("SET", Fault::new(Moment::AfterRequest, action));
            let reply = pay(&key).await?;
            assert_eq!(
                (reply.status, reply.is_replayed(), shop.count(&key)),
                (201, false, 1),
                "{key}"
            );
            let view =
                engine.record("http", key.as_str()).inspect().await?.expect("there is a record");
            assert_eq!((view.state, view.attempts), (RecordState::Completed, 1), "{key}");
            // On a busy machine the client gives the connection up before the fault strikes.
            if lost.happened().await.is_ok() {
                break;
            }
            proxy.clear();
        }
    }

    redis.kill()?;
    redis.restart().await?;
    let mut retry = pay("before").await?;
    eventually_async("the connection to the server", async || {
        if retry.status == 503 {
            retry = pay("before").await.expect("the service answers");
        }
        retry.status != 503
    })
    .await?;
    assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
    assert_eq!(
        (pay("after").await?.status, shop.count("after"), shop.count("before")),
        (201, 1, 1)
    );
    Ok(())
}

#[tokio::test]
async fn rule_62_ten_minutes_of_skew_change_nothing() -> anyhow::Result<()> {
    const TEN_MINUTES: i64 = 600;
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let orders = Orders::new(redis.url())?;
    let ahead = Process::start(&orders.clone().skewed(TEN_MINUTES), &[]).await?;
    let behind = Process::start(&orders.clone().skewed(-TEN_MINUTES), &[]).await?;
    for (owner, other, key) in [(&ahead, &behind, "ahead"), (&behind, &ahead, "behind")] {
        let (owner, other) = (owner.client(), other.client());
        let running = owner.post("/pay").key(key).header("x-wait", "1").spawn();
        orders.entered(key).await?;
        other.post("/pay").key(key).send().await?.assert_problem(409, "in-progress")?;
        other.post("/pay").key(key).body("other").send().await?.assert_problem(422, "mismatch")?;
        orders.open_the_gate(key)?;
        let first = running.reply().await?;
        assert_eq!(first.status, 201);
        let due = SystemTime::now() + DAY;
        for client in [owner, other] {
            let retry = client.post("/pay").key(key).send().await?;
            assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()), "{key}");
            for reply in [&first, &retry] {
                let expires = expires(reply)?;
                let off = expires.duration_since(due).or_else(|_| due.duration_since(expires))?;
                assert!(off < Duration::from_secs(120), "{key}: off by {off:?}");
            }
        }
        assert_eq!(orders.effects(key)?, 1);
    }
    // Processes with another clock live under the same lease: nothing was taken over.
    let view = orders.engine().await?.record("http", "ahead").inspect().await?;
    assert_eq!(view.map(|view| view.attempts), Some(1));
    Ok(())
}
