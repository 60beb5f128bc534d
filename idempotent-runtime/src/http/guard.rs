//! One request with a key: runs its call, then replays or records the response.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response, request};
use tokio::sync::oneshot;

use super::handled::{Outcome, is_its_own, is_not_kept};
use super::handler::{Delivery, Handler, Handles, Readable, Unhandled, take};
use super::key::IdempotencyKey;
use super::options::{Crash, Options};
use super::problem::{Problem, ProblemKind};
use super::request_body::RequestBody;
use super::response_body::{OpenEnd, ResponseBody};
use super::service::refusal;
use super::stored::{Stored, not_kept, of_response, read, result};
use crate::Verdict;
use crate::clock::Timestamp;
use crate::edge::{Attempt, EdgeCall, EdgeOutcome, EdgeResult};
use crate::error::Error;

/// One request whose key is known.
pub(super) struct Guard {
    pub(super) options: Arc<Options>,
    pub(super) key: IdempotencyKey,
    pub(super) head: Arc<request::Parts>,
    pub(super) bytes: Bytes,
}

impl Guard {
    pub(super) async fn run<S, B, R>(
        self,
        service: S,
        body: RequestBody<B>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Readable,
    {
        let request = Request::from_parts((*self.head).clone(), body);
        let unhandled: Unhandled<S, B> = Arc::new(Mutex::new(Some((service, request))));
        let (delivery, delivered) = oneshot::channel();
        let (options, head) = (self.options.clone(), self.head.clone());
        let is_bypassed = Arc::new(AtomicBool::new(false));
        let handler = Handler {
            options,
            request: head,
            unhandled: unhandled.clone(),
            delivery,
            end: OpenEnd::new(),
            is_bypassed: is_bypassed.clone(),
        };
        match until_answered(self.claim(handler), delivered).await {
            Answered::Live(response) => Ok(response),
            Answered::Panicked => Ok(self.panicked(is_bypassed.load(Ordering::Acquire))),
            Answered::Ended(outcome, response) => {
                self.conclude(outcome, response, &unhandled).await
            }
        }
    }

    /// Returns the answer to a request whose call has ended. `response` is the handler's own
    /// response if it ran.
    async fn conclude<S, B, R>(
        &self,
        outcome: Outcome<S::Error>,
        response: Option<Response<ResponseBody<R>>>,
        unhandled: &Unhandled<S, B>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Send + 'static,
    {
        // R60: fail open only if nothing is known about the key.
        let may_fail_open = self.options.fail_open && outcome.may_fail_open();
        Ok(match outcome {
            EdgeOutcome::Executed(Ok(())) | EdgeOutcome::Unprotected(Ok(())) => {
                response.unwrap_or_else(|| self.refuse(ProblemKind::Internal))
            }
            EdgeOutcome::Executed(Err(error)) | EdgeOutcome::Unprotected(Err(error)) => {
                return Err(error);
            }
            EdgeOutcome::Replayed { result, .. } => self.replay(result.into_bytes()).await,
            EdgeOutcome::Lost { error, .. } => self.refused(&error),
            EdgeOutcome::Refused { error, .. } => match response {
                // R56: the handler has done its work, so the client gets its response although it
                // was not stored. No lifetime is promised for it.
                Some(mut response) if is_not_kept(&error, &self.options.crash) => {
                    response.headers_mut().remove(self.options.markers.names.expires());
                    response
                }
                None if may_fail_open => match take(unhandled) {
                    Some((service, request)) => return self.bypass(service, request).await,
                    None => self.refused(&error),
                },
                _ => self.refused(&error),
            },
        })
    }

    /// Returns the call of the request. The handler, and functions that it calls, find the key in
    /// its scope.
    pub(super) fn call(&self) -> EdgeCall {
        self.options.call(self.key.as_str(), self.key.tenant()).extension(self.key.clone())
    }

    fn call_with_fingerprints(&self) -> EdgeCall {
        let fingerprint = &self.options.fingerprint;
        let call = self.call().fingerprint(fingerprint.of(&self.head, &self.bytes));
        fingerprint
            .former(&self.head, &self.bytes)
            .into_iter()
            .fold(call, |call, former| call.former_fingerprint(Some(former)))
    }

    /// Runs the handler under the claim, in a task of its own (R24). The verification callback runs
    /// there too: it takes time, and a client that disconnects must not cancel it.
    ///
    /// The task also calls `settled`, so the held end of a streamed response is released or failed
    /// even if the caller is gone by then.
    async fn claim<S, B, R>(&self, handler: Handler<S, B, R>) -> Outcome<S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Readable,
    {
        let call = self.call_with_fingerprints();
        let end = handler.end.clone();
        let options = self.options.clone();
        let settled = move |outcome: &Outcome<S::Error>| {
            end.close(is_its_own(outcome, &options.crash));
        };
        let body = |turn| handler.run(turn);
        match &self.options.crash {
            Crash::Policy(policy) => call.on_crash(*policy).run_detached(body, settled).await,
            Crash::Verify(question) => {
                let request = Request::from_parts((*self.head).clone(), self.bytes.clone());
                let (question, options) = (question.clone(), self.options.clone());
                let ask = move |attempt: Attempt| async move {
                    let verdict = question(attempt.context().clone(), request).await;
                    vouch(&options, &attempt, verdict)
                };
                call.on_crash_verify(ask).run_detached(body, settled).await
            }
        }
    }

    async fn replay<R>(&self, record: Bytes) -> Response<ResponseBody<R>> {
        match read(record) {
            Some(Stored::Whole(response, until)) => {
                let expires = match until {
                    Some(until) => until,
                    None => self.expiry().await,
                };
                match self.options.markers.replay(response, expires) {
                    Some(response) => response.map(ResponseBody::whole),
                    None => self.refuse(ProblemKind::Internal),
                }
            }
            Some(Stored::NotKept) => self.refuse(ProblemKind::NotKept),
            None => self.refuse(ProblemKind::Internal),
        }
    }

    /// Returns the expiry of a record whose response does not carry one, for example because an
    /// operator wrote it.
    async fn expiry(&self) -> Timestamp {
        let view = self.call().record().inspect().await.ok().flatten();
        view.map_or_else(|| self.options.clock.now(), |view| view.expires)
    }

    fn refuse<R>(&self, kind: ProblemKind) -> Response<ResponseBody<R>> {
        refusal(&self.options, Problem::new(kind))
    }

    pub(super) fn refused<R>(&self, error: &Error) -> Response<ResponseBody<R>> {
        let problem = Problem::of_request(error);
        if problem.kind() == ProblemKind::Internal {
            tracing::error!(%error, "a request with an idempotency key could not be answered");
        }
        self.options.refusal(problem, Some(error)).map(ResponseBody::full)
    }

    /// Returns the answer to a request whose handler, or a function before it, panicked (R23).
    pub(super) fn panicked<R>(&self, is_bypassed: bool) -> Response<ResponseBody<R>> {
        if is_bypassed {
            // There may be an effect, and no record would stop a second one: the marker must.
            self.options.unprotected_failure().map(ResponseBody::full)
        } else {
            self.refuse(ProblemKind::Internal)
        }
    }
}

/// Turns the verdict of the verification callback into what the record stores.
fn vouch(
    options: &Options,
    attempt: &Attempt,
    verdict: Verdict<Response<Bytes>>,
) -> Verdict<EdgeResult> {
    let response = match verdict {
        Verdict::Completed(response) if response.status().is_informational() => {
            let status = response.status().as_u16();
            tracing::error!(
                status,
                "the verification of a request returned a status that no final response has"
            );
            return Verdict::Unknown;
        }
        Verdict::Completed(response) => response,
        Verdict::NotExecuted => return Verdict::NotExecuted,
        Verdict::Unknown => return Verdict::Unknown,
    };
    let (head, body) = response.into_parts();
    let ttl = options.ttl_of(&head);
    let until = attempt.store_time().map(|now| now + ttl);
    let status = head.status;
    let mut answer = of_response(Response::from_parts(head, body), until);
    if answer.bytes().len() > options.response_limit() {
        answer = result(status, not_kept(status));
    }
    Verdict::Completed(answer.with_ttl(ttl))
}

/// The end of a guarded call, as seen by the request that waits for it.
enum Answered<R, E> {
    /// The response is streamed, and the call continues on its own.
    Live(Response<ResponseBody<R>>),
    /// The panic hook has already reported it.
    Panicked,
    Ended(Outcome<E>, Option<Response<ResponseBody<R>>>),
}

/// Waits for the end of `guarded`, or for a response that is sent before that end.
///
/// A `Live` response is returned at once; a `Settled` one only together with the end, when its
/// record is written. The handler sends from another task, so both futures may be ready in one
/// poll, and the handler may send between the two polls of one iteration. `try_recv` after the end
/// catches that last case: without it the response would be dropped and the client would get a
/// refusal instead.
async fn until_answered<R, E>(
    guarded: impl Future<Output = Outcome<E>>,
    mut delivered: oneshot::Receiver<Delivery<R>>,
) -> Answered<R, E> {
    let mut guarded = pin!(catching_panics(guarded));
    let mut response = None;
    let mut is_delivered = false;
    loop {
        tokio::select! {
            biased;
            delivery = &mut delivered, if !is_delivered => {
                is_delivered = true;
                match delivery {
                    Ok(Delivery::Live(response)) => return Answered::Live(response),
                    Ok(Delivery::Settled(settled)) => response = Some(settled),
                    // No response will be delivered: the end decides.
                    Err(_) => {}
                }
            }
            ending = &mut guarded => {
                let Some(ending) = ending else { return Answered::Panicked };
                // Delivered after this iteration polled `delivered`, before it polled `guarded`.
                if let (false, Ok(Delivery::Live(last) | Delivery::Settled(last))) = (is_delivered, delivered.try_recv()) {
                    response = Some(last);
                }
                return Answered::Ended(ending, response);
            }
        }
    }
}

/// Returns the output of `future`, or `None` if it panics. After a panic it is not polled again.
async fn catching_panics<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|task| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(task))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
        Err(_) => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::Response;
    use http_body_util::Full;
    use tokio::sync::oneshot;

    use super::{Answered, Delivery, EdgeOutcome, Outcome, ResponseBody, until_answered};

    type Body = Full<Bytes>;

    #[tokio::test]
    async fn a_response_that_is_delivered_and_settled_at_once_is_not_missed() {
        for live in [true, false] {
            let (delivery, delivered) = oneshot::channel::<Delivery<Body>>();
            let answered = until_answered(
                async move {
                    let response =
                        Response::new(ResponseBody::whole(Bytes::from_static(b"answer")));
                    let _ = delivery.send(if live {
                        Delivery::Live(response)
                    } else {
                        Delivery::Settled(response)
                    });
                    Outcome::<Infallible>::Executed(Ok(()))
                },
                delivered,
            );
            let answered = answered.await;
            assert!(matches!(answered, Answered::Ended(EdgeOutcome::Executed(_), Some(_))));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_wait() {
        let (_delivery, delivered) = oneshot::channel::<Delivery<Body>>();
        let panicking = async { panic!("the test asks for it") };
        let answered: Answered<Body, Infallible> = until_answered(panicking, delivered).await;
        assert!(matches!(answered, Answered::Panicked));
    }
}
