//! The service: orders and payments, each of them behind the layer. No handler knows that requests
//! are repeated.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse as _, Response as AnyResponse};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use idempotency::Idempotency;
use idempotency::http::{
    IDEMPOTENCY_KEY, IdempotencyKey, IdempotencyLayer, RequestFingerprint, Scope, resolution,
};
use idempotency::record::{Resolution, State as RecordState};
use serde::Deserialize;
use serde_json::json;

use crate::provider::{Card, NotCharged, Provider, Receipt};
use crate::server::LostAnswer;

/// The name under which the layer keeps its records.
const OPERATION: &str = "shop";

#[derive(Clone)]
pub struct Shop {
    engine: Idempotency,
    provider: Arc<Provider>,
    orders: Arc<Mutex<HashSet<String>>>,
    /// Orders whose responses get lost.
    cut_off: Arc<Mutex<HashSet<String>>>,
}

pub fn router(engine: Idempotency) -> Router {
    // There is no login here, so there are no principals to separate. A service with clients names
    // the principal here.
    let once = IdempotencyLayer::new(engine.clone(), Scope::global())
        .with_operation(OPERATION)
        .with_fingerprint(RequestFingerprint::json());
    let status = once.status_service();
    let shop =
        Shop { engine, provider: Arc::default(), orders: Arc::default(), cut_off: Arc::default() };
    let lose = from_fn_with_state(shop.clone(), lose_answers);
    Router::new()
        .route("/orders", post(order).layer(once.clone()))
        .route("/orders/{order}/payments", post(pay).layer(once).layer(lose))
        .route_service("/status", status)
        // The rest is for the page and for use with curl: faults, an operator, and the provider's
        // books.
        .route("/", get(Html(include_str!("index.html"))))
        .route("/orders/{order}/answers", put(switch_answers))
        .route("/orders/{order}/settlement", put(settle))
        .route("/provider/{order}", get(account))
        .with_state(shop)
}

#[derive(Deserialize)]
struct NewOrder {
    order: String,
}

async fn order(State(shop): State<Shop>, Json(new): Json<NewOrder>) -> AnyResponse {
    if !shop.orders.lock().unwrap_or_else(PoisonError::into_inner).insert(new.order.clone()) {
        return problem(StatusCode::CONFLICT, "there is an order of this name already");
    }
    (StatusCode::CREATED, Json(json!({ "order": new.order }))).into_response()
}

#[derive(Deserialize)]
struct Payment {
    /// The amount in cents.
    amount: u64,
    #[serde(default)]
    card: Card,
}

/// Plain code that charges when it is called. The layer ensures that it is called once.
async fn pay(
    State(shop): State<Shop>,
    Path(order): Path<String>,
    key: IdempotencyKey,
    Json(payment): Json<Payment>,
) -> AnyResponse {
    if !shop.orders.lock().unwrap_or_else(PoisonError::into_inner).contains(&order) {
        return problem(StatusCode::NOT_FOUND, "there is no such order");
    }
    match shop.provider.charge(&order, key.as_str(), payment.amount, payment.card).await {
        Ok(receipt) => created(&receipt).into_response(),
        Err(NotCharged::Declined) => problem(StatusCode::PAYMENT_REQUIRED, "the card was declined"),
        // The provider may have charged. A 5xx means that the outcome is unknown: there is no retry
        // until an operator has decided.
        Err(NotCharged::NoAnswer) => {
            problem(StatusCode::GATEWAY_TIMEOUT, "the provider did not answer; it may have charged")
        }
    }
}

fn created(receipt: &Receipt) -> Response<String> {
    let mut response = Response::new(json!(receipt).to_string());
    *response.status_mut() = StatusCode::CREATED;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn problem(status: StatusCode, detail: &str) -> AnyResponse {
    (status, Json(json!({ "status": status.as_u16(), "detail": detail }))).into_response()
}

/// Loses responses in front of the layer: they have already been charged and recorded.
async fn lose_answers(
    State(shop): State<Shop>,
    Path(order): Path<String>,
    request: Request,
    next: Next,
) -> AnyResponse {
    let mut response = next.run(request).await;
    if shop.cut_off.lock().unwrap_or_else(PoisonError::into_inner).contains(&order) {
        response.extensions_mut().insert(LostAnswer);
    }
    response
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answers {
    Delivered,
    Lost,
}

async fn switch_answers(
    State(shop): State<Shop>,
    Path(order): Path<String>,
    Json(answers): Json<Answers>,
) {
    let mut cut_off = shop.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
    match answers {
        Answers::Delivered => cut_off.remove(&order),
        Answers::Lost => cut_off.insert(order),
    };
}

/// Acts as the operator: checks the provider's books, and resolves the record accordingly.
async fn settle(
    State(shop): State<Shop>,
    Path(order): Path<String>,
    headers: HeaderMap,
) -> Result<AnyResponse, idempotency::Error> {
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let record = shop.engine.record(OPERATION, key);
    let view = record.inspect().await?.filter(|view| view.state == RecordState::InDoubt);
    let Some(view) = view else {
        return Ok(problem(StatusCode::NOT_FOUND, "nothing is uncertain under this key"));
    };
    let (resolution, found) = match shop.provider.receipt(&order, key) {
        Some(receipt) => (resolution(created(&receipt)), "charged"),
        None => (Resolution::not_executed(), "not charged"),
    };
    record.resolve(&view, resolution).await?;
    Ok(Json(json!({ "found": found })).into_response())
}

async fn account(State(shop): State<Shop>, Path(order): Path<String>) -> AnyResponse {
    Json(shop.provider.account(&order)).into_response()
}
