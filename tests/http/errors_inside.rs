//! Rule 65: what the error of a guarded call inside of a handler, or of a layer there, says about
//! the key around it.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response as AnyResponse};
use axum::routing::post;
use bytes::Bytes;
use idempotency::http::client::{ClientError, RequestKey};
use idempotency::http::{IdempotencyLayer, Scope};
use idempotency::record::{Resolution, State as RecordState};
use idempotency::store::{
    CensusBudget, MemoryStore, Operation, Scan, SqliteStore, StoreError, StoreErrorKind,
};
use idempotency::testing::{Fault, FaultyStore, Gate, ManualClock};
use idempotency::tx::in_transaction;
use idempotency::{Context, Error, ErrorKind, Idempotency, OnConflict, OnCrash};
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use sqlx::sqlite::SqlitePoolOptions;

use crate::client::Reply;
use crate::scripted::{Scripted, client, layer, send};
use crate::world::{DAY, NO_PATIENCE, PATIENCE, Shop, World};

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
            .build()
            .unwrap();
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

    /// Leaves the call in doubt, after its effect.
    async fn doubt(&self, order: &'static str) -> anyhow::Result<()> {
        let first = self.begin(order).await?;
        first.abort();
        assert!(first.await.is_err());
        let record = self.engine.record("charge", order);
        let in_doubt = async || {
            let view = record.inspect().await.ok().flatten();
            view.is_some_and(|view| view.state == RecordState::InDoubt)
        };
        eventually_async("the doubt", in_doubt).await
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
                (status, error, "own words").into_response()
            } else {
                (status, "own words").into_response()
            }
        }
    };
    let (kept, lost) = (own(true), own(false));
    let resolved = |State(shop): State<Shop>, inner: Inner, order: String| async move {
        shop.effect(&format!("handled-{order}"));
        let record = inner.engine.record("charge", order.as_str());
        if let Some(view) = record.inspect().await? {
            record.resolve(&view, Resolution::not_executed()).await?;
        }
        Ok::<_, Error>("resolved")
    };
    let (one, two, three, four) = (inner.clone(), inner.clone(), inner.clone(), inner.clone());
    Router::new()
        .route(
            "/resolved",
            post(move |shop: State<Shop>, order: String| resolved(shop, four, order)),
        )
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
    inner.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Full)));
    order(&world, "/passed", "away").await?.assert_problem(503, "unavailable")?;
    inner.store.always(Operation::Claim, None);
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
        inner.doubt(name).await?;
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
        inner.store.always(Operation::Complete, Some(Fault::LostRequest));
        let refused = order(&world, path, name).await?;
        inner.store.always(Operation::Complete, None);
        assert_eq!((refused.status, inner.shop.effects.lines()?.len() > 2), (409, true), "{path}");
        order(&world, path, name).await?.assert_problem(409, "uncertain")?;
        assert_eq!(world.state(name).await?, Some(RecordState::InDoubt), "{path}");
    }
    Ok(())
}

/// The first try may have been applied. Made once more by itself, the handler would look at what
/// became of the call since, and give the same answer for an attempt that nobody has looked into.
#[tokio::test]
async fn rule_65_an_operators_answer_that_may_have_been_given_holds_the_key_of_its_handler()
-> anyhow::Result<()> {
    let (world, inner) = around_orders().await?;
    inner.doubt("doubt").await?;
    inner.store.next(Operation::Resolve, Fault::LostAnswer);
    inner.store.always(Operation::Resolve, Some(Fault::Refused(StoreErrorKind::Full)));
    for _ in 0..2 {
        order(&world, "/resolved", "doubt").await?.assert_problem(409, "uncertain")?;
    }
    assert_eq!(
        (world.state("doubt").await?, world.effects("handled-doubt")),
        (Some(RecordState::InDoubt), 1)
    );
    // Where it was not given for certain, that says nothing of the rest of the handler.
    inner.doubt("refused").await?;
    let refused = order(&world, "/resolved", "refused").await?;
    refused.assert_problem(503, "unavailable")?;
    assert_eq!(refused.json()?["detail"], "Retry later with the same key.", "an attempt has run");
    inner.store.always(Operation::Resolve, None);
    order(&world, "/resolved", "refused").await?.assert_problem(409, "uncertain")?;
    assert_eq!(world.effects("handled-refused"), 1);
    Ok(())
}

/// A handler that adds a line to a basket, in a transaction.
async fn baskets() -> anyhow::Result<(sqlx::SqlitePool, Router<Shop>)> {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    let store = SqliteStore::from_pool(pool.clone());
    store.migrate().await?;
    // The database looks at the rule when everything is there.
    let tables = "CREATE TABLE baskets (id INTEGER PRIMARY KEY);
        CREATE TABLE lines (basket INT REFERENCES baskets (id) DEFERRABLE INITIALLY DEFERRED)";
    sqlx::raw_sql(tables).execute(&pool).await?;
    let engine = Idempotency::new(store);
    let baskets = pool.clone();
    let add = move |State(shop): State<Shop>, order: String| async move {
        let (engine, order, shop) = (&engine, order.as_str(), &shop);
        let added = in_transaction(&baskets, |mut transaction| async move {
            let call = engine.call("baskets.add", order).ttl(DAY);
            call.run_in(&mut transaction, async |connection| {
                shop.effect(&format!("ran-{order}"));
                let line = sqlx::query("INSERT INTO lines VALUES (7)").execute(connection).await;
                line.expect("the rule is looked at later");
                // Larger than a result may be.
                let large = if order == "large" { "x".repeat(300_000) } else { String::new() };
                Ok::<_, Error>(format!("added{large}"))
            })
            .await
        });
        added.await
    };
    Ok((pool, Router::new().route("/baskets", post(add))))
}

#[tokio::test]
async fn rule_65_a_call_whose_transaction_was_rolled_back_is_not_said_not_to_have_run()
-> anyhow::Result<()> {
    let (pool, routes) = baskets().await?;
    let world = World::setup().routes(routes).start().await?;
    // The rule refuses it as long as the data are as they are: nothing invites to send it again.
    for runs in 1..=2 {
        let refused = order(&world, "/baskets", "refused").await?;
        refused.assert_problem(500, "internal")?;
        let ran = "The call was run, and its transaction was rolled back.";
        assert_eq!(
            (&refused.json()?["detail"], refused.header("retry-after")),
            (&ran.into(), None)
        );
        assert_eq!((world.state("refused").await?, world.effects("ran-refused")), (None, runs));
    }
    // Its record cannot be written now.
    sqlx::raw_sql("INSERT INTO baskets VALUES (7)").execute(&pool).await?;
    let full = "CREATE TRIGGER full BEFORE UPDATE ON idempotency_records
        BEGIN SELECT RAISE(ABORT, 'no room'); END";
    sqlx::raw_sql(full).execute(&pool).await?;
    let unwritten = order(&world, "/baskets", "unwritten").await?;
    unwritten.assert_problem(503, "unavailable")?;
    let ran =
        "The call was run, and its transaction was rolled back. Retry later with the same key.";
    assert_eq!(
        (&unwritten.json()?["detail"], unwritten.header("retry-after")),
        (&ran.into(), Some("1"))
    );
    assert_eq!((world.state("unwritten").await?, world.effects("ran-unwritten")), (None, 1));
    sqlx::raw_sql("DROP TRIGGER full").execute(&pool).await?;
    assert_eq!(order(&world, "/baskets", "unwritten").await?.status, 200);
    // Nothing of it is kept either, not even a marker: the key is free.
    for runs in 1..=2 {
        let large = order(&world, "/baskets", "large").await?;
        large.assert_problem(500, "internal")?;
        let ran = "The call was run, and its transaction was rolled back.";
        assert_eq!((&large.json()?["detail"], large.header("retry-after")), (&ran.into(), None));
        assert_eq!((world.state("large").await?, world.effects("ran-large")), (None, runs));
    }
    let (lines,): (i64,) = sqlx::query_as("SELECT count(*) FROM lines").fetch_one(&pool).await?;
    assert_eq!((lines, world.effects("ran-unwritten")), (1, 2));
    Ok(())
}

/// They send a request again after 5xx.
#[tokio::test]
async fn rule_66_clients_of_stripe_do_not_repeat_a_call_whose_commit_the_database_refuses()
-> anyhow::Result<()> {
    let (pool, routes) = baskets().await?;
    let world = World::setup().layer(IdempotencyLayer::stripe).routes(routes).start().await?;
    let refused = order(&world, "/baskets", "refused").await?;
    sqlx::raw_sql("INSERT INTO baskets VALUES (7)").execute(&pool).await?;
    let large = order(&world, "/baskets", "large").await?;
    for refused in [refused, large] {
        assert_eq!(
            (refused.status, refused.header("stripe-should-retry")),
            (500, Some("false")),
            "{refused:?}"
        );
        assert_eq!(refused.header("idempotency-problem"), Some("internal"));
    }
    let full = "CREATE TRIGGER full BEFORE UPDATE ON idempotency_records
        BEGIN SELECT RAISE(ABORT, 'no room'); END";
    sqlx::raw_sql(full).execute(&pool).await?;
    let unwritten = order(&world, "/baskets", "unwritten").await?;
    assert_eq!(
        (unwritten.status, unwritten.header("stripe-should-retry")),
        (503, Some("true")),
        "{unwritten:?}"
    );
    Ok(())
}

/// The handler may have done something before.
#[tokio::test]
async fn rule_65_a_call_that_did_not_run_does_not_say_so_of_its_request() -> anyhow::Result<()> {
    let (world, inner) = around_orders().await?;
    let full = || Some(Fault::Refused(StoreErrorKind::Full));
    inner.store.always(Operation::Claim, full());
    let refused = order(&world, "/passed", "inside").await?;
    refused.assert_problem(503, "unavailable")?;
    let of_call = "The call was not run. Retry later with the same key.";
    assert_eq!((&refused.json()?["detail"], world.effects("handled-inside")), (&of_call.into(), 1));
    // What the layer refuses was not run at all.
    world.store.always(Operation::Claim, full());
    let refused = order(&world, "/passed", "around").await?;
    refused.assert_problem(503, "unavailable")?;
    let of_request = "It was not run this time. Retry later with the same key.";
    assert_eq!(
        (&refused.json()?["detail"], world.effects("handled-around")),
        (&of_request.into(), 0)
    );
    Ok(())
}

/// An earlier step of it may have run.
#[tokio::test]
async fn rule_65_a_step_that_did_not_run_does_not_say_so_of_its_handler() -> anyhow::Result<()> {
    let charge = async |State(shop): State<Shop>| {
        let context = Context::current();
        context.step("reserve", async || Ok::<_, Error>(())).await?;
        shop.effect("reserved");
        shop.gate.wait().await;
        context.step("charge", async || Ok::<_, Error>(())).at_most_once().await?;
        Ok::<_, Error>("charged")
    };
    let brief = Duration::from_millis(50);
    let world = World::setup()
        .engine(move |builder| builder.commit_timeout(brief))
        .layer(|layer| layer.with_on_crash(OnCrash::Resume))
        .routes(Router::new().route("/steps", post(charge)))
        .start()
        .await?;
    let first = world.client.post("/steps").key("abc").spawn();
    eventually("the first step", || world.effects("reserved") == 1).await?;
    world.store.always(Operation::Checkpoint, Some(Fault::Refused(StoreErrorKind::Full)));
    world.shop.gate.open();
    let refused = first.reply().await?;
    refused.assert_problem(503, "unavailable")?;
    assert_eq!(refused.json()?["detail"], "Retry later with the same key.");
    world.store.always(Operation::Checkpoint, None);
    assert_eq!(world.client.post("/steps").key("abc").send().await?.status, 200);
    Ok(())
}

/// Handlers that make a guarded call without a key.
fn without_key() -> Router<Shop> {
    async fn call(shop: Shop) -> Result<String, Error> {
        shop.effect("handled");
        let engine = Idempotency::new(MemoryStore::new());
        let coupon = None::<u32>;
        let body = || async { Ok::<_, Error>("redeemed".to_owned()) };
        engine.call("redeem", coupon).ttl(DAY).run(body).await
    }
    let passed = |State(shop): State<Shop>| call(shop);
    let kept = |State(shop): State<Shop>| async move {
        let error = call(shop).await.expect_err("there is no coupon");
        (StatusCode::BAD_REQUEST, error, "no coupon")
    };
    Router::new().route("/passed", post(passed)).route("/kept", post(kept))
}

#[tokio::test]
async fn rule_65_what_a_guarded_call_says_of_its_own_key_is_not_said_of_the_requests()
-> anyhow::Result<()> {
    let world = World::setup().routes(without_key()).start().await?;
    for handled in 1..=2 {
        world.client.post("/passed").key("abc").send().await?.assert_problem(500, "internal")?;
        assert_eq!((world.state("abc").await?, world.effects("handled")), (None, handled));
    }
    // The handler's own words stay.
    let kept = world.client.post("/kept").key("abc").send().await?;
    assert_eq!((kept.status, &kept.body[..], kept.problem().ok()), (400, &b"no coupon"[..], None));
    assert_eq!(world.state("abc").await?, None);
    Ok(())
}

/// The layer around it still learns that the call did not run.
#[tokio::test]
async fn rule_65_what_a_guarded_call_says_of_its_own_key_frees_the_keys_of_both_layers()
-> anyhow::Result<()> {
    let engine = Idempotency::builder(MemoryStore::new()).claim_timeout(PATIENCE).build()?;
    let inside = IdempotencyLayer::new(engine.clone(), Scope::global()).with_operation("inside");
    let world = World::setup().routes(without_key().layer(inside)).start().await?;
    for handled in 1..=2 {
        world.client.post("/passed").key("abc").send().await?.assert_problem(500, "internal")?;
        assert_eq!((world.state("abc").await?, world.effects("handled")), (None, handled));
        assert!(engine.record("inside", "abc").inspect().await?.is_none());
    }
    Ok(())
}

#[tokio::test]
async fn rule_65_what_a_guarded_call_says_of_its_own_key_is_not_said_without_protection_either()
-> anyhow::Result<()> {
    for is_disabled in [true, false] {
        let world = World::setup()
            .engine(|builder| builder.claim_timeout(NO_PATIENCE))
            .layer(IdempotencyLayer::with_fail_open)
            .routes(without_key())
            .start()
            .await?;
        if is_disabled {
            world.engine.disable("http");
        } else {
            world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
        }
        let answer = world.client.post("/passed").key("abc").send().await?;
        answer.assert_problem(500, "internal")?;
        assert_eq!(
            (answer.header("idempotency-bypassed"), world.effects("handled")),
            (Some("true"), 1)
        );
    }
    Ok(())
}

/// The first request has taken effect downstream. Freed, the key would let a client send it again
/// with whatever else the handler does.
#[tokio::test]
async fn rule_65_two_requests_of_a_handler_that_would_have_one_key_hold_that_of_the_handler()
-> anyhow::Result<()> {
    let service = Scripted::start([]).await?;
    let request = service.post("/charge");
    let charges = move || {
        let request = request.clone();
        async move {
            let downstream = client(&layer(&ManualClock::new()).with_max_attempts(1));
            for _ in 0..2 {
                match send(downstream.clone(), request.clone()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(ClientError::NotSent(error))) => return Err(error),
                    _ => panic!("the service answers"),
                }
            }
            Ok("charged twice")
        }
    };
    let world =
        World::setup().routes(Router::new().route("/charges", post(charges))).start().await?;
    let send = || world.client.post("/charges").key("abc").send();
    send().await?.assert_problem(500, "internal")?;
    for _ in 0..2 {
        send().await?.assert_problem(409, "uncertain")?;
    }
    assert_eq!(
        (world.state("abc").await?, service.received().len()),
        (Some(RecordState::InDoubt), 1)
    );
    Ok(())
}

/// Sends a request twice to a handler that fails with this error after its effect. Returns the
/// first answer: the second says that the outcome is unknown.
async fn held_after(name: &str, error: Error) -> anyhow::Result<Reply> {
    let handler = move |State(shop): State<Shop>| async move {
        shop.effect("charged");
        Err::<&str, _>(error)
    };
    let routes = Router::new().route("/failing", post(handler));
    let world = World::setup().routes(routes).start().await?;
    let send = || world.client.post("/failing").key("abc").send();
    let first = send().await?;
    let (retry, state) = (send().await?, world.state("abc").await?);
    assert_eq!(
        (first.is_replayed(), state, world.effects("charged")),
        (false, Some(RecordState::InDoubt), 1),
        "{name}: {first:?}"
    );
    retry.assert_problem(409, "uncertain")?;
    Ok(first)
}

/// They say nothing of what the handler did before: freed, the key would let a client, which sends
/// a request again after 503, repeat that.
#[tokio::test]
async fn rule_65_a_record_that_cannot_be_looked_at_or_answered_holds_the_key_of_the_handler()
-> anyhow::Result<()> {
    use Operation::{Census, Read, Remove, Resolve, Scan as List};

    let directory = tempfile::tempdir()?;
    let inner = Inner::new(Shop::open(directory.path())?);
    inner.doubt("order").await?;
    let engine = Idempotency::builder(inner.store.clone()).claim_timeout(NO_PATIENCE).build()?;
    let record = engine.record("charge", "order");
    let view = record.inspect().await?.expect("it is in doubt");
    let running = inner.begin("running").await?;
    let is_running = inner.engine.record("charge", "running").forget().await.unwrap_err();
    assert_eq!(is_running.kind(), ErrorKind::InProgress);
    running.abort();
    for operation in [Read, Resolve, Remove, List, Census] {
        inner.store.always(operation, Some(Fault::Refused(StoreErrorKind::Unavailable)));
    }
    let mut list = engine.records(Scan::default());
    let sources = [
        ("inspect", record.inspect().await.unwrap_err()),
        ("resolve", record.resolve(&view, Resolution::not_executed()).await.unwrap_err()),
        ("forget", record.forget().await.unwrap_err()),
        ("find", engine.find("0123456789ab").await.unwrap_err()),
        ("records", list.next().await.expect("it has not ended").unwrap_err()),
        ("census", engine.census(CensusBudget::of(PATIENCE)).await.unwrap_err()),
    ];
    for (name, error) in sources {
        held_after(name, error).await?.assert_problem(503, "unavailable")?;
    }
    held_after("forget what runs", is_running).await?;
    Ok(())
}

/// Neither is it said of the key of the request.
#[tokio::test]
async fn rule_65_a_key_that_belongs_to_no_guarded_call_holds_that_of_the_handler()
-> anyhow::Result<()> {
    let service = Scripted::start([]).await?;
    // The refusal of a request whose head was changed.
    let not_sent = async |change: fn(&mut HeaderMap)| {
        let mut request = service.post("/charge");
        change(request.headers_mut());
        match send(client(&layer(&ManualClock::new()).with_max_attempts(1)), request).await? {
            Err(ClientError::NotSent(error)) => Ok(error),
            _ => Err(anyhow::anyhow!("the request was sent")),
        }
    };
    let two_headers = not_sent(|headers| {
        headers.append("idempotency-key", HeaderValue::from_static("a"));
        headers.append("idempotency-key", HeaderValue::from_static("b"));
    });
    let blank = not_sent(|headers| {
        headers.insert("idempotency-key", HeaderValue::from_static("\"\""));
    });
    let no_room = not_sent(|headers| {
        for number in 0.. {
            let name = HeaderName::try_from(format!("x-{number}")).expect("it is a name");
            if headers.try_insert(name, HeaderValue::from_static("1")).is_err() {
                break;
            }
        }
    });
    let engine = Idempotency::new(MemoryStore::new());
    let sources = [
        ("blank", RequestKey::new("").unwrap_err()),
        ("not ASCII", RequestKey::new("Gebühr").unwrap_err()),
        ("two headers", two_headers.await?),
        ("a blank header", blank.await?),
        ("no room", no_room.await?),
        (
            "a record without a key",
            engine.record("charge", None::<u32>).inspect().await.unwrap_err(),
        ),
    ];
    for (name, error) in sources {
        held_after(name, error).await?.assert_problem(500, "internal")?;
    }
    Ok(())
}

#[tokio::test]
async fn rule_65_what_is_not_of_a_guarded_call_holds_the_key_of_the_handler() -> anyhow::Result<()>
{
    let unavailable = StoreError::new(StoreErrorKind::Unavailable, Operation::Connect);
    let refused = held_after("a store that was not connected", unavailable.into()).await?;
    // There was no call.
    assert_eq!(refused.json()?["detail"], "Retry later with the same key.");
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Idempotency::builder(store.clone()).claim_timeout(NO_PATIENCE).build()?;
    store.always(Operation::Read, Some(Fault::Refused(StoreErrorKind::Unavailable)));
    let body = || async { engine.record("charge", "order").inspect().await.map(drop) };
    let of_its_body = engine.call("charge", "other").ttl(DAY).run(body).await.unwrap_err();
    held_after("the body of a guarded call", of_its_body).await?;
    Ok(())
}

/// It does not say of which call it is.
#[tokio::test]
async fn rule_65_a_kind_without_its_error_holds_the_key_of_the_handler() -> anyhow::Result<()> {
    for kind in [ErrorKind::InProgress, ErrorKind::StoreUnavailable, ErrorKind::MissingKey] {
        let handler = move |State(shop): State<Shop>| async move {
            shop.effect("handled");
            (StatusCode::SERVICE_UNAVAILABLE, kind, "own words")
        };
        let routes = Router::new().route("/kind", post(handler));
        let world = World::setup().routes(routes).start().await?;
        assert_eq!(world.client.post("/kind").key("abc").send().await?.status, 503, "{kind:?}");
        let retry = world.client.post("/kind").key("abc").send().await?;
        retry.assert_problem(409, "uncertain")?;
        assert_eq!(world.effects("handled"), 1, "{kind:?}");
    }
    Ok(())
}

/// They would send it again by themselves after 500, and it would end in the same way.
#[tokio::test]
async fn rule_66_clients_of_stripe_do_not_repeat_a_call_that_has_no_valid_key() -> anyhow::Result<()>
{
    let world =
        World::setup().layer(IdempotencyLayer::stripe).routes(without_key()).start().await?;
    let refused = world.client.post("/passed").key("abc").send().await?;
    assert_eq!(
        (refused.status, refused.header("stripe-should-retry"), world.state("abc").await?),
        (500, Some("false"), None),
        "{refused:?}"
    );
    assert_eq!(refused.header("idempotency-problem"), Some("internal"));
    let own_key = || async { Err::<&str, _>(RequestKey::new("").unwrap_err()) };
    let routes = Router::new().route("/passed", post(own_key));
    let world = World::setup().layer(IdempotencyLayer::stripe).routes(routes).start().await?;
    let refused = world.client.post("/passed").key("abc").send().await?;
    assert_eq!(
        (refused.status, refused.header("stripe-should-retry"), world.state("abc").await?),
        (500, Some("false"), Some(RecordState::InDoubt)),
        "{refused:?}"
    );
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

    inner.doubt("doubt").await?;
    assert_eq!(order(&world, "/lost", "doubt").await?.status, 500);
    order(&world, "/lost", "doubt").await?.assert_problem(409, "uncertain")
}

#[tokio::test]
async fn rule_65_the_refusal_of_a_layer_inside_is_not_stored_by_the_one_around_it()
-> anyhow::Result<()> {
    let engine = Idempotency::builder(MemoryStore::new()).claim_timeout(PATIENCE).build()?;
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
    let error = || Error::from(StoreError::new(StoreErrorKind::Unavailable, Operation::Claim));
    let plain = idempotency::http::Problem::of(&error()).to_response();
    let axum: AnyResponse = error().into_response();
    for extensions in [plain.extensions(), axum.extensions()] {
        assert_eq!(extensions.get(), Some(&ErrorKind::StoreUnavailable));
        assert_eq!(extensions.get(), Some(&idempotency::http::ProblemKind::Unavailable));
    }
}
