//! The helpers of `idempotency::testing` with a service behind the layer, which they call itself.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::post;
use idempotency::Idempotency;
use idempotency::http::{IdempotencyLayer, Scope};
use idempotency::store::MemoryStore;
use idempotency::testing::{crash_at_every_await, run_concurrently};
use tokio::task::yield_now;
use tower::ServiceExt as _;

fn service(waits: bool) -> Router {
    let handler = async move || {
        if waits {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
    Router::new().route("/orders", post(handler)).layer(layer)
}

async fn order(service: &Router, key: usize) -> axum::http::Response<Body> {
    yield_now().await; // a middleware in front
    let request = Request::post("/orders").header("idempotency-key", format!("\"order-{key}\""));
    service.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of")]
async fn one_key_for_all_requests_is_reported() {
    let service = service(true);
    crash_at_every_await(|_| order(&service, 7), async |_, _| {}).await;
}

#[tokio::test]
async fn requests_with_keys_of_their_own_are_looked_at() {
    let service = service(true);
    let points = crash_at_every_await(
        |number| order(&service, number),
        async |number, _| {
            order(&service, number).await;
        },
    );
    assert!(points.await >= 2);
}

#[tokio::test]
#[should_panic(expected = "could not look: no body of")]
async fn requests_at_once_to_a_handler_that_never_waits_are_reported() {
    let service = service(false);
    run_concurrently(16, |_| order(&service, 7)).await;
}

#[tokio::test]
async fn requests_at_once_to_a_handler_that_waits_are_looked_at() {
    let service = service(true);
    assert_eq!(run_concurrently(16, |_| order(&service, 7)).await.len(), 16);
}
