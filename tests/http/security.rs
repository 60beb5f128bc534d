//! Rules 43 to 50: whose keys they are, and what the layer says.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Response, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use axum::{Router, body::Body};
use idempotency::http::{IdempotencyLayer, Scope};
use idempotency::store::{Operation, StoreErrorKind};
use idempotency::testing::Fault;
use tracing::field::{Field, Visit};
use tracing::span;

use crate::world::World;

/// Whose request it is, by a header that stands for what authentication finds out.
fn tenant() -> Scope {
    Scope::of(|request| request.headers.get("x-tenant")?.to_str().ok().map(str::to_owned))
}

#[tokio::test]
async fn rule_43_two_tenants_with_one_key_are_independent() -> anyhow::Result<()> {
    let world = World::setup().scope(tenant()).start().await?;
    let send = |tenant, body| world.pay("abc").header("x-tenant", tenant).body(body).send();
    let first = send("one", "one").await?;
    // What the other one gets is what a key gets that nobody has used: no replay, no mismatch, no
    // conflict.
    let other = send("two", "two").await?;
    assert_eq!((other.status, other.is_replayed(), world.effects("abc")), (201, false, 2));
    assert_ne!(first.body, other.body);
    assert_eq!(send("one", "one").await?.answer(), first.answer());
    assert_eq!(send("two", "two").await?.answer(), other.answer());
    // Also while the first one's runs.
    let running = world.pay("slow").header("x-tenant", "one").header("x-wait", "1").spawn();
    world.entered("slow").await?;
    let beside = world.pay("slow").header("x-tenant", "two").body("other").send().await?;
    assert_eq!((beside.status, beside.is_replayed()), (201, false));
    world.shop.gate.open();
    assert!(!running.reply().await?.is_replayed());
    Ok(())
}

#[tokio::test]
async fn rule_44_a_request_without_a_key_needs_no_principal_where_keys_are_optional()
-> anyhow::Result<()> {
    let header =
        World::setup().scope(tenant()).layer(IdempotencyLayer::with_optional_key).start().await?;
    let body = World::setup()
        .scope(tenant())
        .layer(|layer| layer.with_optional_key().with_key_from_body("/id"));
    let body = body.start().await?;
    for world in [&header, &body] {
        assert_eq!(
            (world.client.post("/pay").send().await?.status, world.effects("none")),
            (201, 1)
        );
    }
    header.pay("abc").send().await?.assert_problem(401, "no-principal")?;
    let with_key = || body.client.post("/pay").body(r#"{"id":"abc"}"#);
    with_key().send().await?.assert_problem(401, "no-principal")?;
    assert_eq!((body.records().await?, body.effects("abc")), (0, 0));
    assert_eq!(
        (with_key().header("x-tenant", "one").send().await?.status, body.effects("abc")),
        (201, 1)
    );
    // Where a key is required, nobody's body is read for one.
    let world = World::setup()
        .scope(tenant())
        .layer(|layer| layer.with_key_from_body("/id"))
        .start()
        .await?;
    for body in ["{}", r#"{"id":"abc"}"#, "no JSON"] {
        world.client.post("/pay").body(body).send().await?.assert_problem(401, "no-principal")?;
    }
    assert_eq!(world.shop.effects.lines()?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn rule_44_a_missing_principal_is_refused_before_any_lookup() -> anyhow::Result<()> {
    // A closure is a scope as well; without one the layer cannot be made.
    let world = World::setup()
        .scope(|request: &axum::http::request::Parts| {
            request.headers.get("x-tenant").map(|tenant| tenant.as_bytes().to_vec())
        })
        .start()
        .await?;
    world.pay("abc").send().await?.assert_problem(401, "no-principal")?;
    // Nobody is asked for where there is no key: a key in the header is missing before that.
    world.client.post("/pay").send().await?.assert_problem(400, "missing")?;
    assert_eq!((world.store.requests(Operation::Claim), world.shop.effects.lines()?.len()), (0, 0));
    assert_eq!(world.pay("abc").header("x-tenant", "one").send().await?.status, 201);
    world.pay("abc").send().await?.assert_problem(401, "no-principal")?;
    assert_eq!(world.store.requests(Operation::Claim), 1);
    // A principal of which a part is missing is none.
    let world = World::setup()
        .scope(Scope::of(|request| {
            let user = request.headers.get("x-user").map(|user| user.as_bytes().to_vec());
            Some(("shop", user))
        }))
        .start()
        .await?;
    world.pay("abc").send().await?.assert_problem(401, "no-principal")?;
    assert_eq!((world.store.requests(Operation::Claim), world.shop.effects.lines()?.len()), (0, 0));
    assert_eq!(world.pay("abc").header("x-user", "one").send().await?.status, 201);
    Ok(())
}

#[tokio::test]
async fn rule_45_authorization_runs_before_a_replay() -> anyhow::Result<()> {
    async fn authorize(request: Request, next: Next) -> Response<Body> {
        match request.headers().get("authorization") {
            Some(token) if token == "Bearer good" => next.run(request).await,
            _ => StatusCode::UNAUTHORIZED.into_response(),
        }
    }
    let world =
        World::setup().around(|router: Router| router.layer(from_fn(authorize))).start().await?;
    let send = |token| world.pay("abc").header("authorization", token).send();
    assert_eq!(send("Bearer good").await?.status, 201);
    let (stolen, claims) = (send("Bearer revoked").await?, world.store.requests(Operation::Claim));
    assert_eq!((stolen.status, stolen.body.len(), claims), (401, 0, 1));
    assert!(send("Bearer good").await?.is_replayed());
    Ok(())
}

#[tokio::test]
async fn rule_46_preconditions_are_part_of_the_request_and_not_evaluated_again()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let send = |name, value: &'static str| world.pay("abc").header(name, value).send();
    // The handler would now refuse the precondition: it is not asked.
    let first = send("if-match", "\"1\"").await?;
    let retry =
        world.pay("abc").header("if-match", "\"1\"").header("x-status", "412").send().await?;
    assert_eq!((retry.is_replayed(), retry.answer()), (true, first.answer()));
    send("if-match", "\"2\"").await?.assert_problem(422, "mismatch")?;
    send("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT")
        .await?
        .assert_problem(422, "mismatch")?;
    world.pay("abc").send().await?.assert_problem(422, "mismatch")?;
    assert!(
        world
            .pay("abc")
            .header("if-match", "\"1\"")
            .header("if-none-match", "*")
            .send()
            .await?
            .is_replayed()
    );
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

/// Collects what the crate says about itself.
struct Log(Arc<Mutex<String>>);

struct Writer<'a>(&'a mut String);

impl Visit for Writer<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("idempote")
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        attributes.record(&mut Writer(&mut log));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut Writer(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        event.record(&mut Writer(&mut log));
        log.push('\n');
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// What all threads of this test process log.
pub fn log() -> &'static Mutex<String> {
    static LOG: OnceLock<Arc<Mutex<String>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(String::new()));
        tracing::subscriber::set_global_default(Log(log.clone())).expect("nobody else listens");
        log
    })
}

#[tokio::test]
async fn rule_47_no_key_body_or_result_is_in_logs_or_error_bodies() -> anyhow::Result<()> {
    const SECRETS: [&str; 3] = ["k3y-of-mine", "b0dy-of-mine", "t3nant-of-mine"];
    let log = log();
    let world = World::setup()
        .scope(tenant())
        .layer(|layer| layer.with_max_request_body(100))
        .start()
        .await?;
    let send = |key: &str, body: &str| {
        world
            .pay(key)
            .header("x-tenant", "t3nant-of-mine")
            .body(format!("b0dy-of-mine {body}"))
            .send()
    };
    let mut said = Vec::new();
    assert_eq!(send("k3y-of-mine", "").await?.status, 201);
    assert!(send("k3y-of-mine", "").await?.is_replayed());
    said.push((422, send("k3y-of-mine", "other").await?));
    said.push((413, send("k3y-of-mine", &"x".repeat(100)).await?));
    said.push((400, send(&"k3y-of-mine".repeat(30), "").await?));
    said.push((401, world.pay("k3y-of-mine").body("b0dy-of-mine").send().await?));
    world.store.next(Operation::Complete, Fault::Refused(StoreErrorKind::Refused));
    assert_eq!(send("k3y-of-mine 2", "").await?.status, 201);
    world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Corrupt)));
    said.push((500, send("k3y-of-mine 3", "").await?));
    world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Full)));
    said.push((503, send("k3y-of-mine 4", "").await?));

    for (status, reply) in &said {
        assert_eq!(reply.status, *status);
        let text = format!("{:?} {}", reply.headers, reply.body.escape_ascii());
        assert!(!SECRETS.iter().any(|secret| text.contains(secret)), "{text}");
    }
    let logged = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(
        logged.contains("operation=http") && logged.contains("could not be answered"),
        "{logged}"
    );
    assert!(!SECRETS.iter().any(|secret| logged.contains(secret)), "{logged}");
    Ok(())
}

#[tokio::test]
async fn rule_48_errors_of_the_layer_are_problem_details() -> anyhow::Result<()> {
    // `assert_problem` looks at the content type, the status in the document and `Cache-Control`
    // each time.
    let world = World::setup()
        .scope(tenant())
        .layer(|layer| layer.with_max_request_body(10))
        .start()
        .await?;
    let pay = |key| world.pay(key).header("x-tenant", "one");
    world.client.post("/pay").send().await?.assert_problem(400, "missing")?;
    pay("").send().await?.assert_problem(400, "malformed")?;
    world.pay("abc").send().await?.assert_problem(401, "no-principal")?;
    pay("abc").body("x".repeat(11)).send().await?.assert_problem(413, "too-large")?;
    pay("abc").send().await?;
    pay("abc").body("other").send().await?.assert_problem(422, "mismatch")?;
    let running = pay("running").header("x-wait", "1").spawn();
    world.entered("running").await?;
    pay("running").send().await?.assert_problem(409, "in-progress")?;
    world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Full)));
    let unavailable = pay("new").send().await?;
    unavailable.assert_problem(503, "unavailable")?;
    let document = unavailable.json()?;
    let members: Vec<_> =
        document.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    assert_eq!(members, ["detail", "status", "title", "type"]);
    assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()));
    world.shop.gate.open();
    running.reply().await?;
    Ok(())
}

#[tokio::test]
async fn rule_49_each_kind_of_refusal_has_a_type_of_its_own() -> anyhow::Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    let world = World::setup()
        .clock_by_hand()
        .layer(|layer| layer.with_ttl(SECOND).with_refusal_after_expiry(SECOND * 60))
        .start()
        .await?;
    let mut types = std::collections::BTreeSet::new();
    let mut collect = |reply: &crate::client::Reply| -> anyhow::Result<()> {
        types.insert(reply.json()?["type"].as_str().unwrap_or_default().to_owned());
        Ok(())
    };
    collect(&world.client.post("/pay").send().await?)?;
    collect(&world.pay(" ").send().await?)?;
    world.pay("abc").send().await?;
    collect(&world.pay("abc").body("other").send().await?)?;
    let running = world.pay("running").header("x-wait", "1").spawn();
    world.entered("running").await?;
    collect(&world.pay("running").send().await?)?;
    world.shop.gate.open();
    running.reply().await?;
    world.pay("held").header("x-status", "504").send().await?;
    let uncertain = world.pay("held").send().await?;
    uncertain.assert_problem(409, "uncertain")?;
    collect(&uncertain)?;
    world.clock.advance(SECOND * 2);
    let expired = world.pay("abc").send().await?;
    expired.assert_problem(410, "expired")?;
    collect(&expired)?;
    world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Full)));
    let unavailable = world.pay("new").send().await?;
    unavailable.assert_problem(503, "unavailable")?;
    collect(&unavailable)?;
    let expected =
        ["expired", "in-progress", "malformed", "mismatch", "missing", "unavailable", "uncertain"];
    let base = "https://docs.rs/idempotency/latest/idempotency/http/index.html";
    assert_eq!(types, expected.iter().map(|name| format!("{base}#{name}")).collect());
    Ok(())
}

#[tokio::test]
async fn rule_50_browsers_may_read_the_markers() -> anyhow::Result<()> {
    let world = World::new().await?;
    let exposed = |reply: &crate::client::Reply| {
        let values = reply.headers.get_all("access-control-expose-headers");
        let text =
            values.iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
        text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let reply = world.pay("abc").header("origin", "https://shop.example").send().await?;
        let markers: Vec<_> =
            reply.headers.keys().filter(|name| name.as_str().starts_with("idempotency-")).collect();
        assert!(!markers.is_empty());
        for marker in markers {
            assert!(exposed(&reply).contains(&marker.to_string()), "{marker} of {reply:?}");
        }
    }
    let running = world.pay("running").header("x-wait", "1").spawn();
    world.entered("running").await?;
    assert!(exposed(&world.pay("running").send().await?).contains(&"retry-after".to_owned()));
    world.shop.gate.open();
    running.reply().await?;
    Ok(())
}
