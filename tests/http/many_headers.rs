//! Responses with as many headers as a `HeaderMap` can have: an answer or an error, never a panic.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use idempotency::http::client::{ClientError, ClientLayer};
use idempotency::http::{IdempotencyLayer, Problem, RequestBody, ResponseBody, Scope, resolution};
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::testing::{Fault, FaultyStore};
use idempotency::{ErrorKind, Idempotency};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

/// As many names as there is room for.
fn full(prefix: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for number in 0_u32.. {
        let name = HeaderName::try_from(format!("{prefix}-{number}")).expect("it is a name");
        if headers.try_append(name, HeaderValue::from_static("1")).is_err() {
            break;
        }
    }
    assert!(headers.len() > 20_000, "{}", headers.len());
    headers
}

/// The same, but for so many.
fn full_but(places: usize) -> HeaderMap {
    let mut headers = full("x");
    for number in 0..places {
        headers.remove(format!("x-{number}"));
    }
    headers
}

/// One name so often.
fn repeated(times: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..times {
        headers.append("link", HeaderValue::from_static("</>"));
    }
    headers
}

/// A service whose responses have these headers.
struct Scene {
    engine: Idempotency,
    layer: IdempotencyLayer,
    response: (StatusCode, HeaderMap),
    runs: Arc<AtomicUsize>,
}

impl Scene {
    fn new(status: StatusCode, headers: HeaderMap) -> Self {
        let engine = Idempotency::builder(MemoryStore::new())
            .max_result_size(8 * 1024 * 1024)
            .build()
            .unwrap();
        let layer = IdempotencyLayer::new(engine.clone(), Scope::global());
        Self { engine, layer, response: (status, headers), runs: Arc::default() }
    }

    async fn send(&self) -> anyhow::Result<Response<ResponseBody<Body>>> {
        let ((status, headers), runs) = (self.response.clone(), self.runs.clone());
        let service = self.layer.layer(service_fn(move |_: Request<RequestBody<Body>>| {
            let headers = headers.clone();
            runs.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut response = Response::new(Body::from("done"));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                Ok::<_, Infallible>(response)
            }
        }));
        Ok(service
            .oneshot(Request::post("/").header("idempotency-key", "abc").body(Body::empty())?)
            .await?)
    }
}

#[tokio::test]
async fn a_response_with_more_headers_than_a_replay_can_have_is_delivered_and_not_kept()
-> anyhow::Result<()> {
    for (times, is_kept) in [(16_384, true), (16_385, false), (70_000, false)] {
        let scene = Scene::new(StatusCode::OK, repeated(times));
        let links = |response: &Response<_>| response.headers().get_all("link").iter().count();
        let first = scene.send().await?;
        assert_eq!((first.status(), links(&first)), (StatusCode::OK, times));
        for _ in 0..2 {
            let retry = scene.send().await?;
            let expected =
                if is_kept { (StatusCode::OK, times) } else { (StatusCode::CONFLICT, 0) };
            assert_eq!((retry.status(), links(&retry)), expected);
            assert_eq!(retry.headers().contains_key("idempotency-replayed"), is_kept);
        }
        assert_eq!(scene.runs.load(Ordering::SeqCst), 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_response_without_room_for_markers_is_delivered_and_kept() -> anyhow::Result<()> {
    let scene = Scene::new(StatusCode::OK, full("x-passed-on"));
    let first = scene.send().await?;
    assert_eq!((first.status(), first.headers()), (StatusCode::OK, &scene.response.1));
    let retry = scene.send().await?;
    assert_eq!(
        retry.headers().get("idempotency-replayed"),
        Some(&HeaderValue::from_static("true"))
    );
    Ok(())
}

/// Clients go by the mark, and would send the request again.
#[tokio::test]
async fn an_unprotected_response_without_room_for_its_mark_is_a_refusal_that_has_it()
-> anyhow::Result<()> {
    let disabled = Scene::new(StatusCode::OK, full("x-passed-on"));
    disabled.engine.disable("http");
    let mut open = Scene::new(StatusCode::OK, full("x-passed-on"));
    let store = FaultyStore::new(MemoryStore::new());
    store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    open.engine = Idempotency::builder(store).claim_timeout(Duration::from_millis(10)).build()?;
    // A form with room for what every refusal says, and not for the mark.
    let shape = |_: &Problem, mut response: Response<Bytes>| {
        *response.headers_mut() = full_but(3);
        response
    };
    open.layer = IdempotencyLayer::new(open.engine.clone(), Scope::global())
        .with_fail_open()
        .with_problem(shape);
    for scene in [disabled, open] {
        let response = scene.send().await?;
        let marks = ["idempotency-bypassed", "idempotency-problem"]
            .map(|name| response.headers().get(name));
        assert_eq!(
            marks.map(|mark| mark.map(HeaderValue::as_bytes)),
            [Some(&b"true"[..]), Some(b"internal")]
        );
        assert_eq!((response.status().as_u16(), scene.runs.load(Ordering::SeqCst)), (500, 1));
    }
    Ok(())
}

#[tokio::test]
async fn a_form_of_refusals_without_room_for_markers_is_not_taken() -> anyhow::Result<()> {
    for (headers, of_stripe) in [(full_but(0), false), (full_but(1), false), (full_but(1), true)] {
        let mut scene = Scene::new(StatusCode::OK, HeaderMap::new());
        let layer = if of_stripe { scene.layer.stripe() } else { scene.layer };
        scene.layer = layer.with_problem(move |_: &Problem, mut response: Response<Bytes>| {
            *response.headers_mut() = headers.clone();
            response
        });
        let mut service = scene.layer.layer(service_fn(async |_: Request<RequestBody<Body>>| {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }));
        let response = service.ready().await?.call(Request::post("/").body(Body::empty())?).await?;
        let told = ["cache-control", "idempotency-problem", "content-type"]
            .map(|name| response.headers().get(name));
        let form = if of_stripe { "application/json" } else { "application/problem+json" };
        let expected = [&b"no-store"[..], b"missing", form.as_bytes()];
        assert_eq!(told.map(|value| value.map(HeaderValue::as_bytes)), expected.map(Some));
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    Ok(())
}

#[tokio::test]
async fn a_request_without_room_for_its_key_is_not_sent() -> anyhow::Result<()> {
    let sent = Arc::new(AtomicUsize::new(0));
    let counting = sent.clone();
    let client = ClientLayer::new().layer(service_fn(move |_: Request<String>| {
        counting.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Infallible>(Response::new(())) }
    }));
    let mut request = Request::post("http://shop/").body(String::new())?;
    *request.headers_mut() = full("x-passed-on");
    let error = client.clone().oneshot(request).await.err();
    let Some(ClientError::NotSent(error)) = error else { anyhow::bail!("it was sent: {error:?}") };
    assert_eq!(error.kind(), ErrorKind::InvalidKey, "{error}");
    assert_eq!(sent.load(Ordering::SeqCst), 0);
    // One that has its key already.
    let mut request = Request::post("http://shop/").body(String::new())?;
    *request.headers_mut() = full_but(1);
    request.headers_mut().try_insert("idempotency-key", HeaderValue::from_static("\"abc\""))?;
    client.oneshot(request).await?;
    assert_eq!(sent.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn an_operators_response_with_too_many_headers_is_a_refusal() -> anyhow::Result<()> {
    for headers in [full("x-by-hand"), repeated(70_000)] {
        let scene = Scene::new(StatusCode::GATEWAY_TIMEOUT, HeaderMap::new());
        assert_eq!(scene.send().await?.status(), StatusCode::GATEWAY_TIMEOUT);
        let record = scene.engine.record("http", "abc");
        let view = record.inspect().await?.expect("there is a record");
        let mut response = Response::new("by hand");
        *response.headers_mut() = headers;
        record.resolve(&view, resolution(response)).await?;
        for _ in 0..2 {
            let retry = scene.send().await?;
            assert_eq!(
                (retry.status(), scene.runs.load(Ordering::SeqCst)),
                (StatusCode::CONFLICT, 1)
            );
        }
    }
    Ok(())
}
