//! One key on several routes, each of which has a layer of its own on one engine: none gets the
//! answer of another.

use axum::Router;
use axum::extract::State as Shared;
use axum::http::Method;
use axum::routing::{any, post, put};
use idempotency::http::{IdempotencyKey, IdempotencyLayer, OnStatus, RequestFingerprint, Scope};
use idempotency::record::State;
use idempotency::store::MemoryStore;
use idempotency::{Error, Idempotency, OnCrash, WithEngine as _, idempotent};

use crate::client::Client;
use crate::world::{Server, Shop, World, pay};

/// One way of counting for each kind of payload, and one more for a version that the service has
/// chosen.
fn ways() -> Vec<RequestFingerprint> {
    vec![
        RequestFingerprint::body(),
        RequestFingerprint::json(),
        RequestFingerprint::fields(["/amount"]),
        RequestFingerprint::custom(|_, _| Vec::new()),
        RequestFingerprint::custom(|_, _| Vec::new()).version(9),
    ]
}

fn layer(world: &World, fingerprint: &RequestFingerprint, on_crash: OnCrash) -> IdempotencyLayer {
    IdempotencyLayer::new(world.engine.clone(), Scope::global())
        .with_fingerprint(fingerprint.clone())
        .with_methods([Method::POST, Method::PUT])
        .with_on_crash(on_crash)
        .with_on_status(|status, _| match status.as_u16() {
            504 => OnStatus::Hold,
            _ => OnStatus::standard(status),
        })
}

/// `/pay` counts by `one` and may run again, `/refund` and a PUT of `/pay` count by `other` and hold.
async fn server(
    world: &World,
    one: &RequestFingerprint,
    other: &RequestFingerprint,
) -> anyhow::Result<(Server, Client)> {
    let router = Router::new()
        .route(
            "/pay",
            post(pay).layer(layer(world, one, OnCrash::Retry)).merge(put(pay).layer(layer(
                world,
                other,
                OnCrash::Hold,
            ))),
        )
        .route("/refund", any(pay).layer(layer(world, other, OnCrash::Hold)))
        .with_state(world.shop.clone());
    let server = Server::start(router).await?;
    let client = server.client();
    Ok((server, client))
}

const BODY: &str = r#"{"amount":100}"#;

#[tokio::test]
async fn rule_30_two_routes_that_count_different_things_never_share_an_answer() -> anyhow::Result<()>
{
    let world = World::new().await?;
    for (first, one) in ways().iter().enumerate() {
        for (second, other) in ways().iter().enumerate() {
            let (_server, client) = server(&world, one, other).await?;
            let key = format!("{first}-{second}");
            let paid = client.post("/pay").key(&key).body(BODY).send().await?;
            client
                .post("/refund")
                .key(&key)
                .body(BODY)
                .send()
                .await?
                .assert_problem(422, "mismatch")?;
            client
                .request(Method::PUT, "/pay")
                .key(&key)
                .body(BODY)
                .send()
                .await?
                .assert_problem(422, "mismatch")?;
            let retry = client.post("/pay").key(&key).body(BODY).send().await?;
            assert_eq!(
                (retry.is_replayed(), retry.answer(), world.effects(&key)),
                (true, paid.answer(), 1),
                "{key}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_30_another_route_takes_over_no_request_that_may_run_again() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (first, one) in ways().iter().enumerate() {
        for (second, other) in ways().iter().enumerate() {
            let (_server, client) = server(&world, one, other).await?;
            let key = format!("{first}-{second}");
            let held =
                client.post("/pay").key(&key).header("x-status", "504").body(BODY).send().await?;
            assert_eq!(
                (held.status, world.state(&key).await?),
                (504, Some(State::InProgress)),
                "{key}"
            );
            client
                .post("/refund")
                .key(&key)
                .body(BODY)
                .send()
                .await?
                .assert_problem(422, "mismatch")?;
            assert_eq!(world.effects(&key), 1, "{key}");
            let retry = client.post("/pay").key(&key).body(BODY).send().await?;
            assert_eq!(
                (retry.status, retry.is_replayed(), world.effects(&key)),
                (201, false, 2),
                "{key}"
            );
        }
    }
    Ok(())
}

/// A router that is nested sees paths without their prefix.
#[tokio::test]
async fn rule_30_routes_that_are_nested_are_told_apart_by_the_path_that_the_client_sent()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let inner = || {
        Router::new().route("/new", any(pay)).layer(layer(
            &world,
            &RequestFingerprint::body(),
            OnCrash::Retry,
        ))
    };
    let deeper = Router::new().nest("/deeper", inner());
    let router = Router::new().nest("/payments", inner()).nest("/refunds", inner().merge(deeper));
    let server = Server::start(router.with_state(world.shop.clone())).await?;
    let client = server.client();
    let paid = client.post("/payments/new").key("abc").body(BODY).send().await?;
    for other in ["/refunds/new", "/refunds/deeper/new"] {
        client.post(other).key("abc").body(BODY).send().await?.assert_problem(422, "mismatch")?;
    }
    let retry = client.post("/payments/new").key("abc").body(BODY).send().await?;
    assert_eq!(
        (retry.is_replayed(), retry.answer(), world.effects("abc")),
        (true, paid.answer(), 1)
    );
    Ok(())
}

/// A build without the feature `axum` sees what is left of the path alone. A server whose router
/// cuts nothing off stands for one: its fingerprints are of that path too.
#[tokio::test]
async fn rule_35_a_build_that_sees_the_whole_path_names_the_fingerprint_of_one_that_did_not()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let serve = async |prefix: Option<&str>, fingerprint: RequestFingerprint| {
        let routes = Router::new().route("/new", any(pay)).layer(layer(
            &world,
            &fingerprint,
            OnCrash::Retry,
        ));
        let routes = match prefix {
            Some(prefix) => Router::new().nest(prefix, routes),
            None => routes,
        };
        Server::start(routes.with_state(world.shop.clone())).await
    };
    let part = || RequestFingerprint::body().without_original_path();
    let before = serve(None, RequestFingerprint::body()).await?;
    let first = before.client().post("/new").key("abc").body(BODY).send().await?;
    assert_eq!(first.status, 201);

    let unnamed = serve(Some("/payments"), RequestFingerprint::body()).await?;
    let retry =
        |server: &Server| server.client().post("/payments/new").key("abc").body(BODY).send();
    retry(&unnamed).await?.assert_problem(422, "mismatch")?;
    let named = [RequestFingerprint::body().formerly(part()), part()];
    for fingerprint in named {
        let server = serve(Some("/payments"), fingerprint).await?;
        let replay = retry(&server).await?;
        assert_eq!((replay.is_replayed(), replay.answer()), (true, first.answer()));
        let other = server.client().post("/payments/new").key("abc").body("{}").send().await?;
        other.assert_problem(422, "mismatch")?;
    }

    // New records count with the whole path.
    let server = serve(Some("/payments"), RequestFingerprint::body().formerly(part())).await?;
    server.client().post("/payments/new").key("def").body(BODY).send().await?;
    let whole = unnamed.client().post("/payments/new").key("def").body(BODY).send().await?;
    assert!(whole.is_replayed());
    let rest = before.client().post("/new").key("def").body(BODY).send().await?;
    rest.assert_problem(422, "mismatch")?;
    assert_eq!((world.effects("abc"), world.effects("def")), (1, 1));
    Ok(())
}

#[idempotent(name = "routes.charge", key = IdempotencyKey::current(), ttl = "24h")]
async fn charge(shop: &Shop, route: &str) -> Result<String, Error> {
    shop.effect(route);
    Ok(format!("charged by {route}"))
}

/// Where routes have records of their own, so has what their handlers call with the key of the
/// request.
#[tokio::test]
async fn rule_30_the_key_of_a_request_is_another_one_under_another_operation() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let operation = |name: &'static str| {
        layer(&world, &RequestFingerprint::body(), OnCrash::Retry).with_operation(name)
    };
    let pay = |Shared(shop): Shared<Shop>| async move { charge(&shop, "pay").await };
    let donate = |Shared(shop): Shared<Shop>| async move { charge(&shop, "donate").await };
    let router = Router::new()
        .route("/pay", post(pay).layer(operation("pay")))
        .route("/donate", post(donate).layer(operation("donate")));
    let server = Server::start(router.with_state(world.shop.clone())).await?;
    for route in ["pay", "donate"] {
        for _ in 0..2 {
            let reply = server.client().post(&format!("/{route}")).key("abc").send().await?;
            assert_eq!(
                (reply.status, &reply.body[..]),
                (200, format!("charged by {route}").as_bytes())
            );
        }
        assert_eq!(world.effects(route), 1);
    }
    Ok(())
}

/// Two services in one process, each with records of its own, share a function below their
/// handlers, and the engine that is installed for it.
#[tokio::test]
async fn the_key_of_a_request_is_another_one_in_another_namespace() -> anyhow::Result<()> {
    let world = World::new().await?;
    let shared = Idempotency::new(MemoryStore::new());
    let service = |namespace: &'static str| {
        let engine = Idempotency::builder(world.memory.clone()).namespace(namespace).build()?;
        let shared = shared.clone();
        let handler = move |Shared(shop): Shared<Shop>| async move {
            charge(&shop, namespace).with_engine(&shared).await
        };
        let layer = IdempotencyLayer::new(engine, Scope::global());
        anyhow::Ok(Router::new().route(&format!("/{namespace}"), post(handler)).layer(layer))
    };
    let server =
        Server::start(service("shop")?.merge(service("bank")?).with_state(world.shop.clone()))
            .await?;
    for namespace in ["shop", "bank"] {
        for _ in 0..2 {
            let reply = server.client().post(&format!("/{namespace}")).key("abc").send().await?;
            assert_eq!(
                (reply.status, &reply.body[..]),
                (200, format!("charged by {namespace}").as_bytes())
            );
        }
        assert_eq!(world.effects(namespace), 1);
    }
    Ok(())
}
