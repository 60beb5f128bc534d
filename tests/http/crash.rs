//! Rules 51 to 56: owners that are slow, stopped or killed.

use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, Response, Uri};
use axum::routing::post;
use idempotency::http::{IdempotencyKey, resolution};
use idempotency::record::{Resolution, State as RecordState};
use idempotency::store::{DynStore, Operation, StoreErrorKind};
use idempotency::testing::{Fault, ManualClock};
use idempotency::{Context, Error, OnCrash};
use idempotency_test_support::deadline::{eventually, eventually_async};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_EFFECT, BEFORE_COMMIT, BEFORE_SEND, DURING_RENEWAL, POINTS,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::client::{Client, Pending};
use crate::process::{LEASE, Orders, Policy, Process, connect};
use crate::scripted::{Answer, Outcome, client, layer, send};
use crate::world::{DAY, Server, Shop, World, pay, router};

async fn redis() -> anyhow::Result<RedisServer> {
    RedisServer::start(RedisOptions::new().private()).await
}

#[tokio::test]
async fn rule_51_a_handler_that_outlives_its_lease_never_runs_twice() -> anyhow::Result<()> {
    // So long that a busy machine does not miss its renewals.
    const LONG: Duration = Duration::from_secs(12);
    let redis = redis().await?;
    let orders = Orders::new(redis.url())?.with(Policy::Retry, LONG);
    let (owner, other) = (Process::start(&orders, &[]).await?, Process::start(&orders, &[]).await?);
    let first = owner.client().post("/pay").key("abc").header("x-wait", "1").spawn();
    orders.entered("abc").await?;
    let store = connect(&redis.url()).await?;
    let hash = orders.engine().await?.record("http", "abc").hash()?;
    eventually_async("the first lease to be over", async || {
        let record = DynStore::read(store.clone(), hash).await.ok().flatten();
        record.is_some_and(|record| record.read_at > record.created + LONG * 5 / 4)
    })
    .await?;
    other.client().post("/pay").key("abc").send().await?.assert_problem(409, "in-progress")?;
    orders.open_the_gate("abc")?;
    let first = first.reply().await?;
    let retry = other.client().post("/pay").key("abc").send().await?;
    assert_eq!((first.status, retry.is_replayed(), retry.answer()), (201, true, first.answer()));
    assert_eq!(orders.effects("abc")?, 1);
    Ok(())
}

#[tokio::test]
async fn rule_52_an_owner_that_was_stopped_and_taken_over_cannot_complete() -> anyhow::Result<()> {
    let redis = redis().await?;
    let orders = Orders::new(redis.url())?.with(Policy::Retry, LEASE);
    let engine = orders.engine().await?;
    let successor = Process::start(&orders, &[]).await?;
    for point in [AFTER_EFFECT, BEFORE_COMMIT] {
        let mut owner = Process::start(&orders, &[point]).await?;
        let (late, key) = owner.reach(point, point, |client| client.post("/pay")).await?;
        let key = key.as_str();
        owner.worker().stop()?;
        let winner = successor.settled("/pay", key).await?;
        assert_eq!((winner.status, winner.is_replayed()), (201, false), "{point}");
        let record = engine.record("http", key).inspect().await?.expect("the response is stored");

        owner.worker().go().await?;
        owner.worker().cont()?;
        let late = late.reply().await?;
        assert_eq!((late.is_replayed(), late.answer()), (true, winner.answer()), "{point}");
        let after = engine.record("http", key).inspect().await?.expect("the response is stored");
        assert_eq!(
            (after.revision == record.revision, after.fence),
            (true, record.fence),
            "{point}"
        );
        assert_eq!(
            successor.client().post("/pay").key(key).send().await?.answer(),
            winner.answer()
        );
        assert_eq!(
            orders.effects(key)?,
            2,
            "{point}: the effect of a stopped handler cannot be taken back"
        );
    }
    Ok(())
}

/// Kills a server at `point`, while it handles a key that begins with `key`. Gives the whole key.
async fn kill_at(orders: &Orders, key: &str, point: &str) -> anyhow::Result<String> {
    let mut server = Process::start(orders, &[point]).await?;
    let request = |client: &Client| {
        let request = client.post("/pay");
        // Renewals happen to handlers that take long.
        if point == DURING_RENEWAL { request.header("x-wait", "1") } else { request }
    };
    let (first, key) = server.reach(point, key, request).await?;
    server.kill().await?;
    assert!(first.reply().await.is_err(), "{point}: nobody answered");
    Ok(key)
}

#[tokio::test]
async fn rule_53_killed_before_the_handler_began_a_retry_runs_it() -> anyhow::Result<()> {
    let redis = redis().await?;
    let orders = Orders::new(redis.url())?;
    let usual = Duration::from_secs(15);
    for (policy, lease, point) in [
        (Policy::Hold, usual, BEFORE_SEND),
        (Policy::Retry, usual, BEFORE_SEND),
        (Policy::Retry, LEASE, AFTER_CLAIM),
    ] {
        let orders = orders.clone().with(policy, lease);
        let key = kill_at(&orders, &format!("{policy:?}-{point}"), point).await?;
        assert_eq!(orders.effects(&key)?, 0);
        let retry = Process::start(&orders, &[]).await?.settled("/pay", &key).await?;
        assert_eq!(
            (retry.status, retry.is_replayed(), orders.effects(&key)?),
            (201, false, 1),
            "{key}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rule_54_killed_after_the_effect_the_policy_decides() -> anyhow::Result<()> {
    let redis = redis().await?;
    let orders = Orders::new(redis.url())?;
    for (policy, runs) in [(Policy::Hold, 1), (Policy::Retry, 2), (Policy::Verify, 1)] {
        let orders = orders.clone().with(policy, LEASE);
        let key = kill_at(&orders, &format!("{policy:?}"), AFTER_EFFECT).await?;
        let server = Process::start(&orders, &[]).await?;
        let next = server.settled("/pay", &key).await?;
        match policy {
            Policy::Hold => next.assert_problem(409, "uncertain")?,
            Policy::Retry => assert_eq!((next.status, next.is_replayed()), (201, false)),
            Policy::Verify => {
                assert_eq!(
                    (next.status, next.is_replayed(), &next.body[..]),
                    (200, true, &b"found in the books"[..])
                );
                assert!(next.header("idempotency-key-expires").is_some());
            }
        }
        let again = server.client().post("/pay").key(&key).send().await?;
        assert_eq!(again.answer(), next.answer(), "{policy:?}");
        let is_asked = orders.effects(&format!("asked-{key}"))? > 0;
        assert_eq!(
            (orders.effects(&key)?, is_asked),
            (runs, policy == Policy::Verify),
            "{policy:?}"
        );
    }
    // Asked before the effect, the world says no, and the handler runs.
    let orders = orders.with(Policy::Verify, LEASE);
    let key = kill_at(&orders, "no", AFTER_CLAIM).await?;
    let next = Process::start(&orders, &[]).await?.settled("/pay", &key).await?;
    assert_eq!((next.status, orders.effects(&key)?), (201, 1));
    assert!(orders.effects(&format!("asked-{key}"))? > 0);
    Ok(())
}

/// Kills a server at each point, and looks at what becomes of the key.
async fn no_key_is_stuck(orders: Orders, policy: Policy) -> anyhow::Result<()> {
    let orders = orders.with(policy, LEASE);
    let engine = orders.engine().await?;
    let server = Process::start(&orders, &[]).await?;
    for point in POINTS {
        let key = &kill_at(&orders, &format!("{policy:?}-{point}"), point).await?;
        let mut next = server.settled("/pay", key).await?;
        if policy == Policy::Hold && next.status == 409 {
            next.assert_problem(409, "uncertain")?;
            let record = engine.record("http", key.as_str());
            let view = record.inspect().await?.expect("there is a record");
            let resolution = if orders.effects(key)? == 0 {
                Resolution::not_executed()
            } else {
                resolution(Response::builder().status(201).body("found by hand")?)
            };
            record.resolve(&view, resolution).await?;
            next = server.settled("/pay", key).await?;
        }
        assert_eq!(next.status, 201, "{key}: {next:?}");
        let again = server.client().post("/pay").key(key).send().await?;
        assert_eq!((again.is_replayed(), again.answer()), (true, next.answer()), "{key}");
        let most = if policy == Policy::Hold { 1 } else { 2 };
        assert!((1..=most).contains(&orders.effects(key)?), "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_55_no_crash_leaves_a_key_stuck() -> anyhow::Result<()> {
    let redis = redis().await?;
    let orders = Orders::new(redis.url())?;
    let (hold, retry) =
        (no_key_is_stuck(orders.clone(), Policy::Hold), no_key_is_stuck(orders, Policy::Retry));
    tokio::try_join!(hold, retry)?;
    Ok(())
}

#[tokio::test]
async fn rule_56_when_storing_fails_the_client_gets_the_real_response() -> anyhow::Result<()> {
    let world = World::setup()
        .engine(|builder| {
            let brief = Duration::from_millis(50);
            builder.commit_timeout(brief).background_commit(brief * 4)
        })
        .start()
        .await?;
    // It is stored, and nobody hears of it.
    world.store.always(Operation::Complete, Some(Fault::LostAnswer));
    let first = world.pay("lost answer").send().await?;
    assert_eq!((first.status, first.header("idempotency-key-expires")), (201, None));
    let mut retry = world.pay("lost answer").send().await?;
    eventually_async("the attempts to end", async || {
        if retry.is_replayed() {
            return true;
        }
        retry.assert_problem(409, "in-progress").expect("somebody still tries");
        retry = world.pay("lost answer").send().await.expect("the server answers");
        false
    })
    .await?;
    assert_eq!(retry.answer(), first.answer());
    // It is not stored, and after a while nobody tries any more.
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let first = world.pay("abc").send().await?;
    assert_eq!((first.status, first.is_replayed()), (201, false));
    let mut retry = world.pay("abc").send().await?;
    eventually_async("the attempts to end", async || {
        let name = retry.problem().expect("it is refused");
        assert!(["in-progress", "uncertain"].contains(&&*name), "{name}");
        retry = world.pay("abc").send().await.expect("the server answers");
        name == "uncertain"
    })
    .await?;
    retry.assert_problem(409, "uncertain")?;
    // The store is back before that.
    world.store.always(Operation::Complete, None);
    let first = world.pay("late").send().await?;
    let mut retry = world.pay("late").send().await?;
    // A busy machine may have been too slow for the brief time as well.
    eventually_async("the result", async || {
        retry = world.pay("late").send().await.expect("the server answers");
        retry.is_replayed()
    })
    .await?;
    assert_eq!(retry.answer(), first.answer());
    assert_eq!(
        (world.effects("lost answer"), world.effects("abc"), world.effects("late")),
        (1, 1, 1)
    );
    assert_eq!(world.state("abc").await?, Some(RecordState::InDoubt));
    Ok(())
}

/// Pays, and asks for its fence then.
async fn fenced(
    state: State<Shop>,
    key: Option<IdempotencyKey>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Body>, Error> {
    let answer = pay(state, key, method, uri, headers, body).await;
    Context::current().fence().await?;
    Ok(answer)
}

/// The owner comes back from longer than its lease, and its handler has run to its end: with a
/// receipt, with a status that says that nobody knows, or with the word that its claim is lost.
#[tokio::test]
async fn rule_52_our_own_client_does_not_repeat_what_an_operator_believed_not_to_have_happened()
-> anyhow::Result<()> {
    for (path, status) in [("/pay", "201"), ("/pay", "504"), ("/fenced", "201")] {
        let world = World::setup()
            .clock_by_hand()
            .routes(Router::new().route("/fenced", post(fenced)))
            .start()
            .await?;
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let request = Request::post(format!("http://{}{path}", world.client.address()))
            .header("idempotency-key", "\"abc\"")
            .header("x-wait", "1")
            .header("x-status", status)
            .body("{}".to_owned())?;
        // Its own time stands still: it would wait for a second attempt.
        let first = tokio::spawn(send(client(&layer(&ManualClock::new())), request));
        world.entered("abc").await?;
        world.clock.advance(Duration::from_secs(60));
        let record = world.record("abc");
        let view = record.inspect().await?.context("the record is there")?;
        assert_eq!(view.state, RecordState::InDoubt);
        record.resolve(&view, Resolution::not_executed()).await?;
        world.shop.gate.open();
        eventually_async("the end of the first one", async || {
            world.clock.advance(Duration::from_secs(1));
            first.is_finished()
        })
        .await?;
        let answer = first.await???;
        let problem =
            answer.headers.get("idempotency-problem").and_then(|problem| problem.to_str().ok());
        assert_eq!((answer.status, problem), (409, Some("uncertain")), "{path} {status}");
        assert_eq!((answer.attempts(), world.effects("abc")), (Some(1), 1), "{path} {status}");
    }
    Ok(())
}

/// How a second request with the key has come to run while the first one still does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Since {
    /// An operator has answered that nothing had happened.
    Freed(OnCrash),
    /// By the policy, after the lease of the first one.
    TakenOver,
}

/// A request that our own client has sent, and another one with its key that runs since.
struct Pair {
    world: World,
    /// Of the client.
    clock: ManualClock,
    first: JoinHandle<anyhow::Result<Outcome>>,
    /// Of another process.
    shop: Shop,
    second: Pending,
    _server: (Server, TempDir),
}

impl Pair {
    /// The handlers answer with `statuses`, when the gates of their shops are open.
    async fn start(since: Since, path: &str, statuses: [&str; 2]) -> anyhow::Result<Self> {
        let policy = match since {
            Since::Freed(policy) => policy,
            Since::TakenOver => OnCrash::Retry,
        };
        let routes = || Router::new().route("/fenced", post(fenced));
        let setup = World::setup().clock_by_hand().routes(routes());
        let world = setup.layer(move |layer| layer.with_on_crash(policy)).start().await?;
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let request = Request::post(format!("http://{}{path}", world.client.address()))
            .header("idempotency-key", "\"abc\"")
            .header("x-wait", "1")
            .header("x-status", statuses[0])
            .body("{}".to_owned())?;
        let clock = ManualClock::new();
        let layer = layer(&clock).with_deadline(DAY).with_max_attempts(9);
        let first = tokio::spawn(send(client(&layer), request));
        world.entered("abc").await?;
        world.clock.advance(Duration::from_secs(60));
        if let Since::Freed(_) = since {
            let record = world.record("abc");
            let view = record.inspect().await?.context("the record is there")?;
            record.resolve(&view, Resolution::not_executed()).await?;
        }
        let directory = tempfile::tempdir()?;
        let shop = Shop::open(directory.path())?;
        let layer = world.layer_of_another().with_on_crash(policy);
        let server = Server::start(router(&shop, routes()).layer(layer)).await?;
        let second = server.client().post(path).key("abc");
        let second = second.header("x-wait", "1").header("x-status", statuses[1]).spawn();
        eventually("the second one", || shop.count("entered-abc") == 1).await?;
        Ok(Self { world, clock, first, shop, second, _server: (server, directory) })
    }

    /// The first handler ends, and its client gets this answer.
    async fn first(&mut self) -> anyhow::Result<Answer> {
        self.world.shop.gate.open();
        let (clock, first) = (&self.clock, &self.first);
        eventually("the end of the first one", || {
            clock.advance(Duration::from_secs(1));
            first.is_finished()
        })
        .await?;
        Ok((&mut self.first).await???)
    }
}

fn problem(answer: &Answer) -> Option<&str> {
    answer.headers.get("idempotency-problem").and_then(|problem| problem.to_str().ok())
}

/// The second one frees the key, which a repetition of the first one would then take.
#[tokio::test]
async fn rule_52_our_own_client_does_not_repeat_what_runs_again_on_the_word_of_an_operator()
-> anyhow::Result<()> {
    for policy in [OnCrash::Hold, OnCrash::Retry] {
        for (path, status) in [("/pay", "201"), ("/pay", "504"), ("/fenced", "201")] {
            let mut pair = Pair::start(Since::Freed(policy), path, [status, "429"]).await?;
            let answer = pair.first().await?;
            assert_eq!(
                (answer.status, problem(&answer), answer.attempts()),
                (409, Some("uncertain"), Some(1)),
                "{policy:?} {path} {status}"
            );
            pair.shop.gate.open();
            assert_eq!(pair.second.reply().await?.status, 429);
            assert_eq!(pair.world.state("abc").await?, None);
            assert_eq!((pair.world.effects("abc"), pair.shop.count("abc")), (1, 1));
        }
    }
    Ok(())
}

/// Nobody runs the request any more: the second one does not know either what it has done.
#[tokio::test]
async fn rule_52_a_late_owner_whose_successor_does_not_know_is_uncertain() -> anyhow::Result<()> {
    for (status, expected) in [("201", (409, Some("uncertain"))), ("500", (500, None))] {
        let mut pair = Pair::start(Since::Freed(OnCrash::Hold), "/pay", [status, "504"]).await?;
        pair.shop.gate.open();
        assert_eq!(pair.second.answered().await?.status, 504);
        let answer = pair.first().await?;
        assert_eq!((answer.status, problem(&answer)), expected, "{status}");
        assert_eq!((answer.attempts(), pair.world.effects("abc")), (Some(1), 1), "{status}");
        pair.world.pay("abc").send().await?.assert_problem(409, "uncertain")?;
    }
    Ok(())
}

/// The record knows of both, and a repetition gets the answer of the second one.
#[tokio::test]
async fn rule_52_our_own_client_gets_the_answer_of_the_request_that_has_taken_over()
-> anyhow::Result<()> {
    for status in ["201", "504"] {
        let mut pair = Pair::start(Since::TakenOver, "/pay", [status, "201"]).await?;
        let requests = pair.world.store.requests(Operation::Claim);
        pair.world.shop.gate.open();
        eventually("the repetition", || {
            pair.clock.advance(Duration::from_secs(1));
            pair.world.store.requests(Operation::Claim) > requests
        })
        .await?;
        pair.shop.gate.open();
        let second = pair.second.answered().await?;
        let answer = pair.first().await?;
        assert_eq!((answer.status, answer.body.as_bytes()), (201, &second.body[..]), "{status}");
        assert!(answer.headers.contains_key("idempotency-replayed"), "{status}");
        assert_eq!((pair.world.effects("abc"), pair.shop.count("abc")), (1, 1), "{status}");
    }
    Ok(())
}

/// A response that says itself that its outcome is unknown is the first client's.
#[tokio::test]
async fn rule_63_a_late_owner_that_does_not_know_says_so_itself_while_another_one_runs()
-> anyhow::Result<()> {
    let mut pair = Pair::start(Since::TakenOver, "/pay", ["500", "201"]).await?;
    let answer = pair.first().await?;
    assert_eq!((answer.status, problem(&answer), answer.attempts()), (500, None, Some(1)));
    assert!(answer.body.contains("receipt"), "{}", answer.body);
    pair.shop.gate.open();
    assert_eq!(pair.second.reply().await?.status, 201);
    Ok(())
}

/// The handler has paid, and does not learn its fence.
#[tokio::test]
async fn rule_56_our_own_client_does_not_repeat_a_handler_whose_fence_the_store_does_not_tell()
-> anyhow::Result<()> {
    for fault in [Fault::Refused(StoreErrorKind::Full), Fault::LostRequest] {
        let world = World::setup()
            .clock_by_hand()
            .routes(Router::new().route("/fenced", post(fenced)))
            .start()
            .await?;
        world.store.always(Operation::Fence, Some(fault.clone()));
        let request = Request::post(format!("http://{}/fenced", world.client.address()))
            .header("idempotency-key", "\"abc\"")
            .body("{}".to_owned())?;
        let layer = layer(&world.clock).with_deadline(DAY).with_max_attempts(2);
        let first = tokio::spawn(send(client(&layer), request));
        eventually("the effect", || world.shop.count("abc") > 0).await?;
        eventually_async("the answer", async || {
            world.clock.advance(Duration::from_secs(1));
            first.is_finished()
        })
        .await?;
        let answer = first.await???;
        let problem =
            answer.headers.get("idempotency-problem").and_then(|problem| problem.to_str().ok());
        assert_eq!((answer.status, problem), (409, Some("uncertain")), "{fault:?}");
        assert_eq!((answer.attempts(), world.effects("abc")), (Some(1), 1), "{fault:?}");
        assert_eq!(world.state("abc").await?, Some(RecordState::InDoubt), "{fault:?}");
    }
    Ok(())
}

/// Everybody else gets the operator's.
#[tokio::test]
async fn rule_52_a_late_owner_that_does_not_know_gets_the_answer_of_the_operator()
-> anyhow::Result<()> {
    let world = World::setup().clock_by_hand().start().await?;
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let first = world.pay("abc").header("x-wait", "1").header("x-status", "504").spawn();
    world.entered("abc").await?;
    world.clock.advance(Duration::from_secs(60));
    let record = world.record("abc");
    let view = record.inspect().await?.context("the record is there")?;
    let answer = Response::builder().status(202).body(Bytes::from_static(b"found"))?;
    record.resolve(&view, resolution(answer)).await?;
    world.shop.gate.open();
    let first = first.reply().await?;
    assert_eq!((first.status, first.body.as_ref()), (202, &b"found"[..]));
    assert_eq!((world.engine.duplicates(), world.effects("abc")), (1, 1));
    Ok(())
}

/// It is cut off shortly before its lease is over, and the operator answers meanwhile.
#[tokio::test]
async fn rule_52_an_owner_that_does_not_know_gets_the_answer_of_the_operator_after_an_outage()
-> anyhow::Result<()> {
    let world = World::setup()
        .clock_by_hand()
        .layer(|layer| layer.with_on_crash(OnCrash::Retry))
        .start()
        .await?;
    for request in [Operation::Renew, Operation::Abandon] {
        world.store.always(request, Some(Fault::LostRequest));
    }
    let first = world.pay("abc").header("x-wait", "1").header("x-status", "504").spawn();
    world.entered("abc").await?;
    world.clock.advance(Duration::from_secs(14));
    world.shop.gate.open();
    eventually_async("the first try", async || world.store.requests(Operation::Abandon) > 0)
        .await?;
    world.clock.advance(Duration::from_secs(2));
    let record = world.record("abc");
    let view = record.inspect().await?.context("the record is there")?;
    let answer = Response::builder().status(202).body(Bytes::from_static(b"found"))?;
    record.resolve(&view, resolution(answer)).await?;
    world.store.always(Operation::Abandon, None);
    eventually_async("the end of the first one", async || {
        world.clock.advance(Duration::from_secs(1));
        first.is_answered()
    })
    .await?;
    let first = first.reply().await?;
    assert_eq!((first.status, first.body.as_ref()), (202, &b"found"[..]));
    assert_eq!((world.engine.duplicates(), world.effects("abc")), (1, 1));
    Ok(())
}
