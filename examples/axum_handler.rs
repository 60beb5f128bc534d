//! An annotated service function behind axum, with its errors as HTTP statuses.
//!
//! ```sh
//! cargo run --example axum_handler             # starts the server, sends it requests, prints the statuses
//! cargo run --example axum_handler -- --serve  # stays on 127.0.0.1:3000
//! curl -i -H 'Idempotency-Key: k1' --json '{"card": "visa-4242", "amount": 500}' http://127.0.0.1:3000/charges
//! ```

use std::future::IntoFuture as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, body::Body, extract::State, routing::post};
use futures::future::select;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::Mutex};

#[derive(Clone, Serialize, Deserialize)]
struct Charge {
    card: String,
    amount: u64,
}

/// Charges a card. With `detach`, the charge is finished even if the client disconnects and axum
/// drops the handler. A service with several clients also sets `scope = …`, so that their keys
/// never collide.
#[idempotent(key = key, ttl = "24h", fingerprint = charge, on_conflict = reject, detach)]
async fn pay(bank: Arc<Bank>, key: Option<String>, charge: Charge) -> Result<String, Error> {
    Ok(bank.charge(&charge).await)
}

async fn post_charge(
    State(bank): State<Arc<Bank>>,
    headers: HeaderMap,
    Json(charge): Json<Charge>,
) -> Response {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    pay(bank, key, charge).await.map_or_else(|error| refusal(&error), IntoResponse::into_response)
}

fn refusal(error: &Error) -> Response {
    let status = match error.kind() {
        ErrorKind::MissingKey | ErrorKind::InvalidKey => StatusCode::BAD_REQUEST,
        ErrorKind::InProgress | ErrorKind::InDoubt => StatusCode::CONFLICT,
        ErrorKind::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
        _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    // No retry resolves a record in doubt: that conflict has no `Retry-After`.
    let wait = error.is_retryable().then(|| error.retry_after().unwrap_or(Duration::from_secs(1)));
    let retry_after =
        wait.map(|wait| [(header::RETRY_AFTER, wait.as_millis().div_ceil(1000).to_string())]);
    (status, retry_after, error.to_string()).into_response()
}

/// The bank, outside of the service. It counts its charges, and makes one at a time.
#[derive(Default)]
struct Bank {
    charges: Mutex<u32>,
}

impl Bank {
    async fn charge(&self, charge: &Charge) -> String {
        let mut charges = self.charges.lock().await;
        *charges += 1;
        format!("receipt {} over {} from {}", *charges, charge.amount, charge.card)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (engine, bank) = (Idempotency::new(MemoryStore::new()), Arc::new(Bank::default()));
    engine.clone().install()?;
    let serve = std::env::args().nth(1).as_deref() == Some("--serve");
    let listener = TcpListener::bind(("127.0.0.1", if serve { 3000 } else { 0 })).await?;
    let address = listener.local_addr()?;
    let server = axum::serve(
        listener,
        Router::new().route("/charges", post(post_charge)).with_state(bank.clone()),
    );
    if serve {
        println!("listening on http://{address}/charges");
        return Ok(server.await?);
    }
    tokio::spawn(server.into_future());

    let client = Client::builder(TokioExecutor::new()).build_http();
    let send = async |what: &str, key: Option<&str>, amount: u32| {
        let request = Request::post(format!("http://{address}/charges"))
            .header("content-type", "application/json");
        let request =
            key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        let body = Body::from(format!(r#"{{"card": "visa-4242", "amount": {amount}}}"#));
        let response = client.request(request.body(body)?).await?;
        let wait = response.headers().get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok());
        let wait = wait.map_or_else(String::new, |seconds| format!(", retry after {seconds} s"));
        println!("{what:24} {}{wait}", response.status());
        anyhow::Ok(())
    };
    send("a charge", Some("k1"), 500).await?;
    send("the same again", Some("k1"), 500).await?;
    send("the key, another amount", Some("k1"), 900).await?;
    send("no key", None, 500).await?;

    let busy = bank.charges.lock().await; // the first of the two has to wait
    let one = pin!(send("a double submit", Some("k2"), 700));
    let other = pin!(send("a double submit", Some("k2"), 700));
    let (refused, charged) = select(one, other).await.factor_first();
    refused?;
    drop(busy);
    charged.await?;

    engine.shutdown(Duration::from_secs(5)).await;
    send("at shutdown", Some("k3"), 500).await?;
    println!("the bank made {} charges", bank.charges.lock().await);
    Ok(())
}
