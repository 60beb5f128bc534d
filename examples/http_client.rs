//! `reqwest` behind the client layer: the response to a charge is lost, and the retry has the same
//! key.
//!
//! ```sh
//! cargo run --example http_client --features http
//! ```
//!
//! The service runs in the same process, on a real socket. It breaks the first connection after the
//! charge was made.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::{Router, routing::post};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use idempotency::Idempotency;
use idempotency::http::client::{ClientLayer, Sent};
use idempotency::http::{IDEMPOTENCY_REPLAYED, IdempotencyLayer, Scope};
use idempotency::store::MemoryStore;
use tokio::net::TcpListener;
use tower::{Layer as _, ServiceExt as _, service_fn};

/// Charges, and counts its charges.
async fn charge(State(charges): State<Arc<AtomicU32>>, order: String) -> (StatusCode, String) {
    let number = charges.fetch_add(1, Ordering::SeqCst) + 1;
    (StatusCode::CREATED, format!("receipt {number} for {order}"))
}

/// Serves `router`, and breaks the first connection instead of sending its response.
async fn serve(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    let is_first = Arc::new(AtomicBool::new(true));
    loop {
        let (stream, _) = listener.accept().await?;
        let (router, is_first) = (router.clone(), is_first.clone());
        let answer = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let (router, is_first) = (router.clone(), is_first.clone());
            async move {
                let answer = router.oneshot(request.map(Body::new)).await?;
                // hyper closes a connection whose service fails.
                ensure!(!is_first.swap(false, Ordering::SeqCst), "the answer is lost");
                Ok(answer)
            }
        });
        tokio::spawn(
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).into_future(),
        );
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let charges = Arc::new(AtomicU32::new(0));
    let guard = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
    let router =
        Router::new().route("/charges", post(charge)).with_state(charges.clone()).layer(guard);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, router));

    // reqwest has a request type of its own. This adapter is all that is needed.
    let plain = reqwest::Client::new();
    let transport = service_fn(move |request: Request<Bytes>| {
        let plain = plain.clone();
        async move { Ok(Response::from(plain.execute(request.try_into()?).await?)) }
    });
    let client = ClientLayer::new()
        .with_deadline(Duration::from_secs(30))
        .with_errors(|error: &reqwest::Error| !error.is_builder())
        .layer(transport);

    let request =
        Request::post(format!("http://{address}/charges")).body(Bytes::from("order 7"))?;
    let answer = client.oneshot(request).await?;
    let attempts = answer.extensions().get().map_or(0, Sent::attempts);
    let is_replayed = answer.headers().contains_key(IDEMPOTENCY_REPLAYED);
    let status = answer.status();
    let receipt = reqwest::Response::from(answer).text().await.context("the receipt")?;
    let charges = charges.load(Ordering::SeqCst);
    println!("answer: {status}, {receipt}");
    println!("attempts = {attempts}, replayed = {is_replayed}, charges = {charges}");
    ensure!(
        (status, charges, attempts, is_replayed) == (StatusCode::CREATED, 1, 2, true),
        "it was to be charged once"
    );
    Ok(())
}
