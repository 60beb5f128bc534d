//! Responses that break off, as the server in front of the layer gets them: how much comes before
//! the error, and what the error says.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, Response};
use futures::future::poll_fn;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use idempotency::http::{IdempotencyLayer, RequestBody, Scope};
use idempotency::store::{MemoryStore, Operation};
use idempotency::testing::{Fault, FaultyStore, Gate, ManualClock};
use idempotency::{Idempotency, OnCrash};
use idempotency_test_support::deadline::within;
use tower::{Layer as _, ServiceExt as _, service_fn};

/// What a body does when it is asked for more.
#[derive(Clone)]
enum Step {
    Data(&'static str),
    Trailers,
    Fails,
    Panics,
    /// It opens the gate, and has nothing more.
    Hangs(Gate),
}

use Step::{Data, Fails, Hangs, Panics, Trailers};

struct Steps {
    steps: VecDeque<Step>,
    length: Option<u64>,
}

impl HttpBody for Steps {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(Hangs(asked)) = self.steps.front() {
            asked.open();
            return Poll::Pending;
        }
        Poll::Ready(self.steps.pop_front().map(|step| match step {
            Data(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
            Trailers => Ok(Frame::trailers(HeaderMap::new())),
            Fails => Err(io::Error::other("the disk is gone")),
            Panics | Hangs(_) => panic!("the test asks for it"),
        }))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A response of these steps.
#[derive(Clone)]
struct Answer {
    /// Its `Content-Length`.
    declared: Option<u64>,
    /// The length that its body knows.
    known: Option<u64>,
    steps: Vec<Step>,
}

impl Answer {
    fn response(self) -> Response<Body> {
        let response = Response::builder().status(201);
        let response = match self.declared {
            Some(length) => response.header("content-length", length),
            None => response,
        };
        let body = Steps { steps: self.steps.into(), length: self.known };
        response.body(Body::new(body)).expect("the response is well-formed")
    }

    /// What arrives of it, and the error that ends it.
    async fn through(self, layer: &IdempotencyLayer) -> anyhow::Result<(String, Option<String>)> {
        let service = layer.layer(service_fn(move |_: Request<RequestBody<Body>>| {
            let response = self.clone().response();
            async { Ok::<_, Infallible>(response) }
        }));
        let request = Request::post("/").header("idempotency-key", "abc").body(Body::empty())?;
        let mut body = Box::pin(service.oneshot(request).await?.into_body());
        let mut data = Vec::new();
        loop {
            let frame = within("a frame", poll_fn(|task| body.as_mut().poll_frame(task))).await?;
            match frame {
                None => return Ok((String::from_utf8(data)?, None)),
                Some(Ok(frame)) => {
                    let piece = frame.into_data().unwrap_or_default();
                    data.extend_from_slice(&piece);
                }
                Some(Err(error)) => {
                    assert!(body.is_end_stream(), "nothing follows {error}");
                    let after = poll_fn(|task| body.as_mut().poll_frame(task));
                    assert!(within("the end", after).await?.is_none(), "after {error}");
                    return Ok((String::from_utf8(data)?, Some(error.to_string())));
                }
            }
        }
    }
}

/// A response whose handler has said how long it is, and one in pieces.
fn both(declared: Option<u64>, known: u64, steps: &[Step]) -> [(&'static str, Answer); 2] {
    let answer = |known| Answer { declared, known, steps: steps.to_vec() };
    [("known", answer(Some(known))), ("in pieces", answer(None))]
}

const OF_ITS_BODY: &str = "the disk is gone";
const OF_ITS_LENGTH: &str = "the body has a different length than the response declares";
const OF_ITS_HANDLER: &str = "the handler ended before its response";
const OF_ITS_CLAIM: &str = "the claim of the request has ended, and its answer is another one";

#[tokio::test]
async fn rule_25_a_response_that_breaks_off_says_why_after_what_there_was_of_it()
-> anyhow::Result<()> {
    // What arrives of one whose length is known, and of one in pieces.
    for (name, declared, known, steps, arrives, error) in [
        ("fails", None, 8, &[Data("half"), Fails][..], ["half", "half"], OF_ITS_BODY),
        ("is short", Some(8), 8, &[Data("half")], ["half", "half"], OF_ITS_LENGTH),
        ("has trailers", Some(8), 8, &[Data("half"), Trailers], ["half", "half"], OF_ITS_LENGTH),
        // Never as much as its client would take for the whole.
        ("is long", Some(6), 6, &[Data("half"), Data("half")], ["halfh", "half"], OF_ITS_LENGTH),
        ("goes on", Some(4), 4, &[Data("half"), Data("more")], ["hal", ""], OF_ITS_LENGTH),
        ("fails at its end", Some(4), 4, &[Data("half"), Fails], ["hal", ""], OF_ITS_BODY),
    ] {
        for ((kind, answer), arrives) in both(declared, known, steps).into_iter().zip(arrives) {
            let engine = Idempotency::new(MemoryStore::new());
            let layer = IdempotencyLayer::new(engine, Scope::global());
            let (data, said) = answer.through(&layer).await?;
            assert_eq!((&*data, said.as_deref()), (arrives, Some(error)), "{name}, {kind}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn rule_25_a_response_whose_body_panics_breaks_off() -> anyhow::Result<()> {
    let engine = Idempotency::new(MemoryStore::new());
    let layer = IdempotencyLayer::new(engine, Scope::global());
    let answer = Answer { declared: None, known: None, steps: vec![Data("half"), Panics] };
    let (data, error) = answer.through(&layer).await?;
    assert_eq!((&*data, error.as_deref()), ("half", Some(OF_ITS_HANDLER)));
    Ok(())
}

/// Another attempt may answer the request, so this one does not.
#[tokio::test]
async fn rule_25_a_response_that_is_not_the_answer_breaks_off_and_says_so() -> anyhow::Result<()> {
    for known in [Some(8), None] {
        let asked = Gate::new();
        let steps = vec![Data("half"), Hangs(asked.clone())];
        let answer = Answer { declared: None, known, steps };
        let clock = ManualClock::new();
        let store = FaultyStore::new(MemoryStore::with_clock(clock.clone()));
        store.always(Operation::Renew, Some(Fault::LostRequest));
        let engine = Idempotency::builder(store).clock(clock.clone()).build()?;
        let layer = IdempotencyLayer::new(engine, Scope::global()).with_on_crash(OnCrash::Retry);
        let lease = async {
            asked.wait().await;
            clock.advance(Duration::from_secs(60));
        };
        let (answered, ()) = tokio::join!(answer.through(&layer), lease);
        let (data, error) = answered?;
        assert_eq!((&*data, error.as_deref()), ("half", Some(OF_ITS_CLAIM)), "{known:?}");
    }
    // It is complete, and its record cannot be written.
    let store = FaultyStore::new(MemoryStore::new());
    store.always(Operation::Complete, Some(Fault::LostRequest));
    let soon = Duration::from_millis(10);
    let engine = Idempotency::builder(store).commit_timeout(soon).build()?;
    let layer = IdempotencyLayer::new(engine, Scope::global()).with_on_crash(OnCrash::Retry);
    let answer = Answer { declared: None, known: None, steps: vec![Data("whole")] };
    let (data, error) = answer.through(&layer).await?;
    assert_eq!((&*data, error.as_deref()), ("whole", Some(OF_ITS_CLAIM)));
    Ok(())
}
