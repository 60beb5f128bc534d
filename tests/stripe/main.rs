//! The official client of Stripe's API against a service behind `stripe()`, over sockets: it takes
//! each refusal for an error, and sends again what it may.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use axum::{Router, routing::any};
use idempotency::Idempotency;
use idempotency::http::{IdempotencyLayer, Problem, ProblemKind, Scope};
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::testing::{Fault, FaultyStore, Gate, ManualClock};
use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::packages::stripe_client;
use idempotency_test_support::server::node;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What happened, counted by key: requests in front of the layer, charges behind it.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<HashMap<(String, &'static str), usize>>>);

impl Counts {
    fn add(&self, key: &str, what: &'static str) {
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((key.to_owned(), what))
            .or_default() += 1;
    }

    fn of(&self, key: &str, what: &'static str) -> usize {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&(key.to_owned(), what)).copied().unwrap_or_default()
    }
}

struct Shop {
    store: FaultyStore<MemoryStore>,
    gate: Gate,
    counts: Counts,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn key_of(request: &Request) -> String {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    key.unwrap_or("none").to_owned()
}

/// Charges, and does what the word at the beginning of the key says.
async fn charge(counts: Counts, gate: Gate, request: Request) -> Response<Body> {
    let key = key_of(&request);
    counts.add(&key, "charges");
    let word = key.split('-').next().unwrap_or_default();
    match word {
        "panics" => panic!("the test asked for it"),
        "refuses" => return Problem::new(ProblemKind::Mismatch).into_response(),
        "waits" => gate.wait().await,
        _ => {}
    }
    let pad = if word == "large" { "x".repeat(2_000) } else { String::new() };
    let charge =
        json!({"id": format!("ch_{}", counts.of(&key, "charges")), "object": "charge", "pad": pad});
    let status = if word == "fails" { 500 } else { 200 };
    let body = if word == "fails" {
        json!({"error": {"type": "api_error", "message": "it fails"}})
    } else {
        charge
    };
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Body::from(body.to_string())).expect("the response is well-formed")
}

impl Shop {
    async fn open(
        layer: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer,
    ) -> anyhow::Result<Self> {
        Self::on(MemoryStore::new(), Duration::from_secs(20), layer).await
    }

    async fn on(
        memory: MemoryStore,
        patience: Duration,
        layer: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer,
    ) -> anyhow::Result<Self> {
        let store = FaultyStore::new(memory);
        let engine = Idempotency::builder(store.clone()).claim_timeout(patience).build()?;
        let scope = Scope::of(|request| {
            let secret = request.headers.get("authorization")?.to_str().ok()?;
            (secret != "Bearer sk_test_nobody").then(|| secret.to_owned())
        });
        let layer = layer(IdempotencyLayer::new(engine, scope).stripe());
        let (counts, gate) = (Counts::default(), Gate::new());
        let handler = {
            let (counts, gate) = (counts.clone(), gate.clone());
            move |request: Request| charge(counts.clone(), gate.clone(), request)
        };
        let counting = counts.clone();
        let count = from_fn(move |request: Request, next: Next| {
            counting.add(&key_of(&request), "requests");
            async move { Ok::<_, Infallible>(next.run(request).await) }
        });
        let router = Router::new().route("/v1/{*path}", any(handler)).layer(layer).layer(count);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let server =
            tokio::spawn(
                async move { axum::serve(listener, router).await.expect("the server serves") },
            );
        Ok(Self { store, gate, counts, address, server })
    }

    /// What became of one request by the client.
    async fn order(&self, order: Value) -> anyhow::Result<Value> {
        client(self.address, order).await
    }

    /// How many requests and charges there were under `key`.
    fn counted(&self, key: &str) -> (usize, usize) {
        (self.counts.of(key, "requests"), self.counts.of(key, "charges"))
    }
}

async fn client(address: SocketAddr, order: Value) -> anyhow::Result<Value> {
    let packages = stripe_client()?;
    ensure!(
        packages.join("node_modules/stripe/package.json").is_file(),
        "the client of Stripe's API is missing: `cargo xtask test servers` installs it into {}",
        packages.display()
    );
    let mut command = tokio::process::Command::new(node()?);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stripe/client.mjs")).arg(&packages);
    command.arg(address.port().to_string()).arg(order.to_string());
    command
        .env_remove("NODE_OPTIONS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let output = within("the client", command.output()).await??;
    ensure!(output.status.success(), "{order}: {}", output.status);
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{order}: {}", output.stdout.escape_ascii()))
}

/// The type of the error, and its status.
fn error(outcome: &Value) -> (&str, u64) {
    (outcome["error"].as_str().unwrap_or("none"), outcome["status"].as_u64().unwrap_or_default())
}

#[tokio::test]
async fn the_client_takes_each_refusal_for_an_error_and_a_charge_for_a_charge() -> anyhow::Result<()>
{
    let day = Duration::from_secs(86_400);
    // The store alone knows that it is later.
    let clock = ManualClock::new();
    let shop = Shop::on(MemoryStore::with_clock(clock.clone()), Duration::from_secs(20), |layer| {
        let layer = layer.with_max_request_body(1_000).with_max_response_body(1_000);
        layer.with_ttl(day).with_refusal_after_expiry(30 * day)
    })
    .await?;
    let paid = shop.order(json!({"key": "abc"})).await?;
    assert_eq!(paid["charge"], "ch_1", "{paid}");
    let again = shop.order(json!({"key": "abc"})).await?;
    assert_eq!((&again["charge"], again["replayed"].as_str()), (&paid["charge"], Some("true")));

    // Without retries, so that the refusal itself is seen.
    let mismatch = shop.order(json!({"key": "abc", "amount": 200})).await?;
    assert_eq!(error(&mismatch), ("StripeIdempotencyError", 400), "{mismatch}");
    // The handler refuses it, as with the error of a guarded call.
    let inside = shop.order(json!({"key": "refuses-1"})).await?;
    assert_eq!(error(&inside), ("StripeIdempotencyError", 400), "{inside}");
    let malformed = shop.order(json!({"key": "k".repeat(300)})).await?;
    assert_eq!(error(&malformed), ("StripeInvalidRequestError", 400), "{malformed}");
    let nobody = shop.order(json!({"key": "abc", "secret": "sk_test_nobody"})).await?;
    assert_eq!(error(&nobody), ("StripeAuthenticationError", 401), "{nobody}");
    let large = shop.order(json!({"key": "new", "amount": "1".repeat(2_000)})).await?;
    assert_eq!(error(&large), ("StripeAPIError", 413), "{large}");
    shop.order(json!({"key": "large-1"})).await?;
    let not_kept = shop.order(json!({"key": "large-1", "retries": 2})).await?;
    assert_eq!(
        (error(&not_kept), shop.counted("large-1")),
        (("StripeAPIError", 409), (2, 1)),
        "{not_kept}"
    );
    shop.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Corrupt));
    let internal = shop.order(json!({"key": "new"})).await?;
    assert_eq!(
        (error(&internal), &internal["raw"]),
        (("StripeAPIError", 500), &json!("api_error")),
        "{internal}"
    );
    clock.advance(2 * day);
    let expired = shop.order(json!({"key": "abc"})).await?;
    assert_eq!(error(&expired), ("StripeIdempotencyError", 400), "{expired}");
    assert_eq!((shop.counts.of("abc", "charges"), shop.counts.of("new", "charges")), (1, 0));

    let keyless = Shop::open(|layer| layer.with_methods([Method::DELETE])).await?;
    let missing = keyless.order(json!({"method": "DELETE"})).await?;
    assert_eq!(
        (error(&missing), keyless.counted("none")),
        (("StripeInvalidRequestError", 400), (1, 0)),
        "{missing}"
    );
    Ok(())
}

#[tokio::test]
async fn the_client_comes_again_while_a_charge_is_made_and_gets_the_one_charge()
-> anyhow::Result<()> {
    let shop = Shop::open(|layer| layer).await?;
    let order = json!({"key": "waits-1", "retries": 8});
    let first = tokio::spawn(client(shop.address, order.clone()));
    eventually("the charge to begin", || shop.counted("waits-1").1 == 1).await?;
    let busy = shop.order(json!({"key": "waits-1"})).await?;
    assert_eq!(
        (error(&busy), &busy["code"]),
        (("StripeAPIError", 409), &json!("idempotency_key_in_use")),
        "{busy}"
    );
    let second = tokio::spawn(client(shop.address, order));
    eventually("the client to come again", || shop.counted("waits-1").0 >= 4).await?;
    shop.gate.open();
    let charges = [first.await??, second.await??].map(|outcome| outcome["charge"].clone());
    assert_eq!((charges, shop.counted("waits-1").1), ([json!("ch_1"), json!("ch_1")], 1));
    Ok(())
}

#[tokio::test]
async fn the_client_comes_again_after_a_store_that_was_away_and_not_after_an_unknown_outcome()
-> anyhow::Result<()> {
    let shop = Shop::open(|layer| layer).await?;
    shop.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Full));
    let paid = shop.order(json!({"key": "abc", "retries": 2})).await?;
    assert_eq!((&paid["charge"], shop.counted("abc")), (&json!("ch_1"), (2, 1)), "{paid}");

    // The panic is a 500, after which the client asks once more, and is told that nobody knows.
    let uncertain = shop.order(json!({"key": "panics-1", "retries": 5})).await?;
    assert_eq!(
        (error(&uncertain), &uncertain["raw"]),
        (("StripeAPIError", 409), &json!("api_error")),
        "{uncertain}"
    );
    assert_eq!(shop.counted("panics-1"), (2, 1));
    Ok(())
}

#[tokio::test]
async fn the_client_does_not_repeat_what_ran_unprotected() -> anyhow::Result<()> {
    let no_patience = Duration::from_millis(10);
    let shop = Shop::on(MemoryStore::new(), no_patience, IdempotencyLayer::with_fail_open).await?;
    shop.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    for key in ["fails-1", "panics-1"] {
        let failed = shop.order(json!({"key": key, "retries": 5})).await?;
        assert_eq!(
            (error(&failed), shop.counted(key)),
            (("StripeAPIError", 500), (1, 1)),
            "{failed}"
        );
    }
    Ok(())
}
