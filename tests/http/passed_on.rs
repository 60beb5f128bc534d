//! What a gateway passes on of an upstream's response: its version, and pieces that are as small as
//! they come.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, Response, Version};
use futures::future::poll_fn;
use futures::stream;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use idempotency::Idempotency;
use idempotency::http::{IdempotencyLayer, Problem, RequestBody, ResponseBody, Scope};
use idempotency::record::State as RecordState;
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::testing::{Fault, FaultyStore};
use idempotency_test_support::deadline::{eventually_async, within};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// How many bytes of a response are kept, its headers among them.
const LIMIT: usize = 1_000;

fn layer_on(store: FaultyStore<MemoryStore>) -> IdempotencyLayer {
    let engine =
        Idempotency::builder(store).claim_timeout(Duration::from_millis(10)).build().unwrap();
    IdempotencyLayer::new(engine, Scope::global())
        .with_max_response_body(LIMIT)
        .with_fail_open()
        .with_problem(|_: &Problem, mut response: Response<Bytes>| {
            *response.version_mut() = Version::HTTP_3;
            response
        })
}

/// A response of an upstream, as the path says.
async fn upstream(request: Request<RequestBody<Body>>) -> Result<Response<Body>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/whole" => (200, Body::from("whole")),
        "/pieces" => {
            (200, Body::from_stream(stream::iter(["in ", "pieces"].map(Ok::<_, io::Error>))))
        }
        "/large" => (200, Body::from("l".repeat(LIMIT))),
        "/empty" => (204, Body::empty()),
        "/held" => (504, Body::from("held")),
        "/released" => (429, Body::from("released")),
        _ => panic!("the test asks for it"),
    };
    let response = Response::builder().status(status).version(Version::HTTP_10);
    Ok(response.body(body).expect("the response is well-formed"))
}

async fn send(
    layer: &IdempotencyLayer,
    version: Version,
    path: &str,
    key: Option<String>,
) -> anyhow::Result<Response<ResponseBody<Body>>> {
    let request = Request::post(path).version(version);
    let request = match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    };
    Ok(layer.layer(service_fn(upstream)).oneshot(request.body(Body::empty())?).await?)
}

/// With the version of another hop, a server ends a body of unknown length with its connection, and
/// one that breaks off looks whole.
#[tokio::test]
async fn rule_25_every_response_of_a_guarded_request_has_the_version_of_its_own_hop()
-> anyhow::Result<()> {
    let store = FaultyStore::new(MemoryStore::new());
    let layer = layer_on(store.clone());
    let paths = ["/whole", "/pieces", "/large", "/empty", "/held", "/released", "/panic"];
    // What a client of HTTP/1.0 gets, the server frames for it.
    let versions = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];
    for version in versions {
        for path in paths {
            // The first answer, and what is said to the retry.
            for _ in 0..2 {
                let response =
                    send(&layer, version, path, Some(format!("{path}{version:?}"))).await?;
                assert_eq!(
                    response.version(),
                    Version::HTTP_11,
                    "{path}, {version:?}: {}",
                    response.status()
                );
            }
        }
        let refusal = send(&layer, version, "/whole", None).await?;
        assert_eq!((refusal.status().as_u16(), refusal.version()), (400, Version::HTTP_11));
    }
    store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    for version in versions {
        for path in paths {
            let response = send(&layer, version, path, Some("unprotected".to_owned())).await?;
            let is_marked = response.headers().contains_key("idempotency-bypassed");
            assert_eq!(
                (response.version(), is_marked),
                (Version::HTTP_11, true),
                "{path}, {version:?}"
            );
        }
    }
    Ok(())
}

/// What a piece was received in, with room for many more. It counts those that are held.
struct Received {
    bytes: Vec<u8>,
    held: Arc<AtomicUsize>,
}

impl Received {
    fn new(held: &Arc<AtomicUsize>) -> Self {
        held.fetch_add(1, Ordering::SeqCst);
        Self { bytes: vec![b'x'; 8_192], held: held.clone() }
    }
}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A byte of each buffer, and trailers where they are asked for.
struct Trickle {
    pieces: usize,
    is_announced: bool,
    has_trailers: bool,
    held: Arc<AtomicUsize>,
    /// How many buffers were held when the next one was asked for.
    most: Arc<AtomicUsize>,
}

impl HttpBody for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.most.fetch_max(self.held.load(Ordering::SeqCst), Ordering::SeqCst);
        let Some(left) = self.pieces.checked_sub(1) else {
            let trailers = std::mem::take(&mut self.has_trailers)
                .then(|| Ok(Frame::trailers(HeaderMap::new())));
            return Poll::Ready(trailers);
        };
        self.pieces = left;
        let buffer = Bytes::from_owner(Received::new(&self.held));
        Poll::Ready(Some(Ok(Frame::data(buffer.slice(..1)))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_announced {
            SizeHint::with_exact(self.pieces as u64)
        } else {
            SizeHint::default()
        }
    }
}

#[tokio::test]
async fn rule_25_small_pieces_do_not_hold_the_buffers_that_they_came_in() -> anyhow::Result<()> {
    for (name, version, is_announced, has_trailers, pieces) in [
        ("pieces", Version::HTTP_11, false, false, 900),
        ("pieces with trailers", Version::HTTP_11, false, true, 900),
        ("pieces past the limit", Version::HTTP_11, false, false, 5_000),
        ("announced", Version::HTTP_11, true, false, 900),
        ("announced with trailers", Version::HTTP_11, true, true, 900),
        ("to an old client", Version::HTTP_10, false, false, 900),
        ("past the limit to an old client", Version::HTTP_10, false, false, 5_000),
    ] {
        let (held, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counting, counted) = (held.clone(), most.clone());
        let service = service_fn(move |_: Request<RequestBody<Body>>| {
            let (held, most) = (counting.clone(), counted.clone());
            let body = Trickle { pieces, is_announced, has_trailers, held, most };
            async { Ok::<_, Infallible>(Response::new(body)) }
        });
        let engine = Idempotency::new(MemoryStore::new());
        let layer =
            IdempotencyLayer::new(engine.clone(), Scope::global()).with_max_response_body(LIMIT);
        let request = Request::post("/")
            .version(version)
            .header("idempotency-key", "abc")
            .body(Body::empty())?;
        let mut body = Box::pin(layer.layer(service).oneshot(request).await?.into_body());
        // A slow client: it takes nothing before all that is recorded was read.
        let record = engine.record("http", "abc");
        let is_recorded = async || {
            let view = record.inspect().await.ok().flatten();
            view.is_some_and(|view| view.state == RecordState::Completed)
        };
        eventually_async("the record", is_recorded).await?;
        // But for the one with which the limit is passed.
        let last = held.load(Ordering::SeqCst);
        assert_eq!((most.load(Ordering::SeqCst), last), (0, usize::from(pieces > LIMIT)), "{name}");
        let mut taken = Vec::new();
        while let Some(frame) =
            within("a piece", poll_fn(|task| body.as_mut().poll_frame(task))).await?
        {
            taken.extend(frame.map_err(anyhow::Error::from_boxed)?.into_data().ok());
        }
        assert_eq!(taken.concat(), vec![b'x'; pieces], "{name}");
        // What nobody took is one buffer, and not a list of pieces. What is past the limit comes as
        // it is.
        let past_limit = pieces.saturating_sub(LIMIT - 100);
        assert!(taken.len() <= 3 + past_limit, "{name}: {} pieces", taken.len());
    }
    Ok(())
}
