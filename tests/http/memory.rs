//! How much memory one request with a key holds, as its thread has asked the allocator for it.

use std::convert::Infallible;
use std::io;

use allocation_counter::{AllocationInfo, measure};
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use futures::future::poll_fn;
use futures::{StreamExt as _, stream};
use hyper::body::Body as _;
use idempotency::Idempotency;
use idempotency::http::{IdempotencyLayer, RequestBody, RequestFingerprint, ResponseBody, Scope};
use idempotency::record::State as RecordState;
use idempotency::store::MemoryStore;
use idempotency::testing::Gate;
use idempotency_test_support::deadline::{eventually_async, within};
use tokio::runtime::Runtime;
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::lengths::WithLength;

/// What a server reads at once, and no power of two.
static PIECE: [u8; 16_300] = [b'x'; 16_300];
/// For all that is not the body: the record, the tasks, the tables of the store.
const BESIDE: usize = 48 * 1024;

/// Everything happens on the thread that counts.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A layer on `engine` that has answered a request, so that the tables have their size.
fn layer_on(engine: &Idempotency, runtime: &Runtime) -> IdempotencyLayer {
    let layer = IdempotencyLayer::new(engine.clone(), Scope::global());
    let first = async {
        let service = layer.layer(service_fn(async |_: Request<RequestBody<Body>>| {
            Ok::<_, Infallible>(Response::new(Body::from("first")))
        }));
        service.oneshot(request("first", Body::from("first"))).await
    };
    assert_eq!(runtime.block_on(first).expect("the service answers").status(), 200);
    layer
}

fn layer(runtime: &Runtime) -> IdempotencyLayer {
    layer_on(&Idempotency::new(MemoryStore::new()), runtime)
}

fn request(key: &str, body: Body) -> Request<Body> {
    let request = Request::post("/").header("idempotency-key", key).body(body);
    request.expect("the request is well-formed")
}

/// `size` bytes that nobody had to allocate, in pieces. Perhaps it says its length.
fn pieces(size: usize, is_announced: bool) -> Body {
    let starts = (0..size).step_by(PIECE.len());
    let pieces = starts.map(move |start| &PIECE[..PIECE.len().min(size - start)]);
    let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, io::Error>)));
    Body::new(WithLength { length: is_announced.then_some(size as u64), body })
}

/// A byte, the rest when `proceed` is open, and no end. It opens `asked` when it is asked for more.
fn endless(size: usize, proceed: Gate, asked: Gate) -> Body {
    let first = stream::once(async { Ok(Bytes::from_static(b"x")) });
    let rest = stream::once(async move {
        proceed.wait().await;
        pieces(size - 1, false).into_data_stream()
    });
    let more = stream::once(async move {
        asked.open();
        std::future::pending::<Result<Bytes, axum::Error>>().await
    });
    Body::from_stream(first.chain(rest.flatten()).chain(more))
}

#[track_caller]
fn assert_within(what: &str, bytes: u64, limit: usize) {
    let most = (limit + BESIDE) as u64;
    assert!(bytes < most, "{what}: {bytes} bytes, and {most} are the limit");
}

fn held(counted: &AllocationInfo) -> u64 {
    u64::try_from(counted.bytes_current).expect("nothing from before is freed")
}

#[test]
fn a_request_holds_no_more_than_its_body_while_its_handler_runs() {
    const LIMIT: usize = 2 * 1024 * 1024;
    for is_announced in [true, false] {
        let runtime = runtime();
        let layer = layer(&runtime);
        let entered = Gate::new();
        let opened = entered.clone();
        let service = layer.layer(service_fn(move |request: Request<RequestBody<Body>>| {
            let entered = opened.clone();
            async move {
                entered.open();
                std::future::pending::<()>().await;
                drop(request);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }));
        let counted = measure(|| {
            runtime.spawn(service.oneshot(request("abc", pieces(LIMIT, is_announced))));
            runtime.block_on(within("the handler", entered.wait())).expect("it begins");
        });
        let name = if is_announced { "announced" } else { "in pieces" };
        assert_within(name, held(&counted), LIMIT);
        // Where the length is known, no more than its beginning is copied into more room.
        let most = if is_announced { LIMIT + 64 * 1024 } else { 2 * LIMIT };
        assert_within(name, counted.bytes_max, most);
    }
}

#[test]
fn a_response_of_known_length_takes_the_room_of_its_record_from_the_beginning() {
    const SIZE: usize = 200_000;
    let runtime = runtime();
    let layer = layer(&runtime);
    let service = layer.layer(service_fn(async |_: Request<RequestBody<Body>>| {
        Ok::<_, Infallible>(Response::new(pieces(SIZE, true)))
    }));
    let counted = measure(|| {
        let answer = runtime.block_on(service.oneshot(request("abc", Body::empty())));
        assert_eq!(answer.expect("the service answers").body().size_hint().exact(), Some(200_000));
    });
    assert_within("known", counted.bytes_max, SIZE);
}

/// What a response in pieces holds, whose client takes a part of it, when its handler has no more
/// for now. All but its first byte comes when the gate is open.
fn in_flight(limit: usize, size: usize, takes: impl AsyncFnOnce(ResponseBody<Body>, &Gate)) -> u64 {
    let runtime = runtime();
    let layer = layer(&runtime).with_max_response_body(limit);
    let (proceed, asked) = (Gate::new(), Gate::new());
    let gates = (proceed.clone(), asked.clone());
    let service = layer.layer(service_fn(move |_: Request<RequestBody<Body>>| {
        let body = endless(size, gates.0.clone(), gates.1.clone());
        async { Ok::<_, Infallible>(Response::new(body)) }
    }));
    let counted = measure(|| {
        runtime.block_on(async {
            let answer = service.oneshot(request("abc", Body::empty())).await;
            takes(answer.expect("the service answers").into_body(), &proceed).await;
            proceed.open();
            within("the handler", asked.wait()).await.expect("it gets there");
        });
    });
    held(&counted)
}

/// Takes this much, and lets go of it.
async fn take(body: &mut std::pin::Pin<Box<ResponseBody<Body>>>, size: usize) {
    let mut taken = 0;
    while taken < size {
        let frame = poll_fn(|task| body.as_mut().poll_frame(task)).await;
        taken +=
            frame.expect("there is more").expect("it goes on").data_ref().map_or(0, Bytes::len);
    }
}

#[test]
fn a_response_in_pieces_takes_no_more_than_its_record_may() {
    const LIMIT: usize = 150_000;
    let held = in_flight(LIMIT, 140_000, async |body, proceed| {
        let mut body = Box::pin(body);
        proceed.open();
        take(&mut body, 140_000).await;
        // It stays connected.
        std::mem::forget(body);
    });
    assert_within("in pieces", held, LIMIT);
}

#[test]
fn nothing_is_kept_for_a_client_that_is_gone() {
    const LIMIT: usize = 150_000;
    let before = in_flight(LIMIT, 140_000, async |body, _| drop(body));
    assert_within("it goes before the rest arrives", before, LIMIT);
    let after = in_flight(LIMIT, 140_000, async |body, proceed| {
        proceed.open();
        // All of it arrives, and nobody takes it.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        drop(body);
    });
    assert_within("it goes after the rest has arrived", after, LIMIT);
}

/// The worst bodies: each of their values is a list of one, or their list has just grown.
#[test]
fn json_takes_fifty_one_times_its_size_at_most() {
    const SIZE: usize = 100_000;
    for element in ["[0],", "{\"\":0},", "0,", "[[0]],", "\"\",", "{},"] {
        for count in [SIZE / element.len(), (1 << 16) + 1] {
            let runtime = runtime();
            let layer = layer(&runtime).with_fingerprint(RequestFingerprint::json());
            let service = layer.layer(service_fn(async |_: Request<RequestBody<Body>>| {
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }));
            let elements = element.repeat(count);
            let body = Bytes::from(format!("[{}]", elements.trim_end_matches(',')));
            let size = body.len();
            let counted = measure(|| {
                let answer = runtime.block_on(service.oneshot(request("abc", Body::from(body))));
                assert_eq!(answer.expect("the service answers").status(), 200);
            });
            assert_within(element, counted.bytes_max, 51 * size);
        }
    }
}

/// A record is kept for long: it has no room that it does not need.
#[test]
fn a_record_takes_no_more_than_its_response() {
    const SIZE: usize = 70_000;
    let runtime = runtime();
    let engine = Idempotency::new(MemoryStore::new());
    let service = layer_on(&engine, &runtime);
    let service = service.layer(service_fn(async |_: Request<RequestBody<Body>>| {
        Ok::<_, Infallible>(Response::new(pieces(SIZE, false)))
    }));
    let record = engine.record("http", "abc");
    let is_written = async || {
        let view = record.inspect().await.ok().flatten();
        view.is_some_and(|view| view.state == RecordState::Completed)
    };
    let counted = measure(|| {
        runtime.block_on(async {
            let answer = service.oneshot(request("abc", Body::empty())).await;
            let mut body = Box::pin(answer.expect("the service answers").into_body());
            take(&mut body, SIZE).await;
            eventually_async("the record", is_written).await.expect("it is written");
        });
    });
    assert_within("the record", held(&counted), SIZE);
}
