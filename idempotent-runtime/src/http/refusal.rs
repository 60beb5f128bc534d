//! The response to a request that is refused: the layer's decision, in the form of the service.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::header::{
    ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
    HeaderMap, HeaderName, HeaderValue, LINK, SET_COOKIE, TRAILER, TRANSFER_ENCODING, VARY, VIA,
    WWW_AUTHENTICATE,
};
use http_body_util::Full;

use super::effects::{LeftNothing, NothingHappened, OfLayer};
use super::headers::IDEMPOTENCY_PROBLEM;
use super::names::HeaderNames;
use super::options::Options;
use super::problem::{DOCUMENTATION, PROBLEM_JSON, Plain, Problem, ProblemKind};
use super::response_body::ResponseBody;
use super::{hook, stripe};
use crate::error::{Error, ErrorKind};

/// A function that changes the form of a refusal.
pub(super) type Shape = dyn Fn(&Problem, Response<Bytes>) -> Response<Bytes> + Send + Sync;

/// The form of refusals before the service's function changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BaseForm {
    ProblemDetails,
    Stripe,
}

impl BaseForm {
    fn of(self, problem: &Problem) -> Response<Bytes> {
        match self {
            Self::ProblemDetails => problem.response(),
            Self::Stripe => stripe::response(problem),
        }
    }
}

/// Headers that describe a body byte by byte, and its framing.
const OF_BODY: [HeaderName; 8] = [
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TRAILER,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Headers to which each layer adds values of its own.
const LISTS: [HeaderName; 6] =
    [ACCESS_CONTROL_EXPOSE_HEADERS, LINK, SET_COOKIE, VARY, VIA, WWW_AUTHENTICATE];

/// Returns the problem of which `response` is the plain form. If something behind the layer has
/// given it another type, its form is that one's.
fn plain<B>(response: &Response<B>) -> Option<&Problem> {
    let Plain(problem) = response.extensions().get()?;
    let is_plain = response.headers().get(CONTENT_TYPE).is_some_and(|value| value == PROBLEM_JSON);
    is_plain.then_some(problem)
}

impl Options {
    /// Returns the response of a handler, in the form of the layer and with its address and header
    /// names if it is a problem in the plain form (R66).
    ///
    /// Clients of the layer know one form of refusals, and those of Stripe's API take another one
    /// for a result. The decision about the key stays: it is made from the extensions, and so is
    /// the one of a layer around this one. So does everything that the handler and other layers
    /// have added to the plain form or changed in it: headers, and the status.
    pub(super) fn in_form<B>(&self, response: Response<B>) -> Response<ResponseBody<B>> {
        let has_form = self.form != BaseForm::ProblemDetails
            || self.shape.is_some()
            || *self.documentation != *DOCUMENTATION
            || self.markers.names != HeaderNames::default();
        let problem = plain(&response).filter(|_| has_form).cloned();
        let Some(problem) = problem else { return response.map(ResponseBody::untouched) };
        let plain = problem.response();
        let (refusal, body) = self.refusal(problem, None).into_parts();
        let (mut head, _) = response.into_parts();
        let is_chosen = head.status != plain.status();
        // To clients of Stripe's API any other status is a result.
        let is_possible = self.form != BaseForm::Stripe
            || head.status.is_client_error()
            || head.status.is_server_error();
        if !(is_chosen && is_possible) {
            head.status = refusal.status;
        }
        head.headers = self.headers_in_form(&head.headers, plain.headers(), refusal.headers);
        head.extensions.remove::<Plain>();
        Response::from_parts(head, ResponseBody::full(body))
    }

    /// Returns the headers of a refusal, and those of the response in whose place it is, which
    /// began as `plain`.
    fn headers_in_form(
        &self,
        response: &HeaderMap,
        plain: &HeaderMap,
        refusal: HeaderMap,
    ) -> HeaderMap {
        let mut headers = refusal;
        for name in response.keys().filter(|name| !OF_BODY.contains(name)) {
            let is_list = LISTS.contains(name);
            let is_in_form = headers.contains_key(name) || plain.contains_key(name);
            let is_own = name == CONTENT_TYPE
                || name == IDEMPOTENCY_PROBLEM
                || self.markers.names.written().contains(&name);
            let is_untouched = response.get_all(name).iter().eq(plain.get_all(name).iter());
            if is_in_form && (is_own || (is_untouched && !is_list)) {
                continue;
            }
            if !is_list {
                headers.remove(name);
            }
            for value in response.get_all(name) {
                let is_there = is_list && headers.get_all(name).iter().any(|there| there == value);
                if !is_there && headers.try_append(name, value.clone()).is_err() {
                    // What the refusal has itself is more important.
                    return headers;
                }
            }
        }
        headers
    }

    /// Returns the response that reports `problem`, and the `error` behind it to the layers in
    /// front.
    ///
    /// The service decides the form (R66). The layer ensures that it is a refusal, that it is not
    /// cached, and that its kind is recognisable.
    pub(super) fn refusal(&self, problem: Problem, error: Option<&Error>) -> Response<Full<Bytes>> {
        self.refusal_with(problem, error, |_| true)
    }

    /// Returns the response that replaces an unprotected one which was lost or has no room for its
    /// marker.
    pub(super) fn unprotected_failure(&self) -> Response<Full<Bytes>> {
        let problem = Problem::new(ProblemKind::Internal);
        self.refusal_with(problem, None, |headers| self.markers.bypassed(headers))
    }

    /// `mark` adds further headers of this refusal, and returns false if there is no room.
    fn refusal_with(
        &self,
        problem: Problem,
        error: Option<&Error>,
        mark: impl Fn(&mut HeaderMap) -> bool,
    ) -> Response<Full<Bytes>> {
        let problem = problem.or_documentation(&self.documentation);
        let has_room = |headers: &mut HeaderMap| {
            // The server sets these, because it knows the body.
            headers.remove(CONTENT_LENGTH);
            headers.remove(TRANSFER_ENCODING);
            headers.try_insert(CACHE_CONTROL, HeaderValue::from_static("no-store")).is_ok()
                && self.markers.refused(headers, problem.kind())
                && mark(headers)
        };
        let shaped = self.shaped(&problem).and_then(|mut response| {
            if has_room(response.headers_mut()) {
                return Some(response);
            }
            tracing::error!(
                "`with_problem` left no room for the headers of a refusal, and its response is not \
                 used"
            );
            None
        });
        let mut response = shaped.unwrap_or_else(|| {
            let mut response = self.form.of(&problem);
            // It has only a few headers, so there is room.
            has_room(response.headers_mut());
            response
        });
        let extensions = response.extensions_mut();
        // A layer around this one relies on these, so they must not depend on the service's
        // response.
        extensions.remove::<NothingHappened>();
        extensions.remove::<ErrorKind>();
        extensions.remove::<LeftNothing>();
        extensions.remove::<Error>();
        extensions.insert(problem.kind());
        if let Some(kind) = problem.error_kind() {
            extensions.insert(kind);
        }
        if let Some(left_nothing) = problem.left_nothing() {
            extensions.insert(left_nothing);
        }
        if let Some(error) = error {
            extensions.insert(error.clone());
        }
        extensions.insert(OfLayer);
        response.map(Full::new)
    }

    /// Returns the form of the service's function, or `None` if there is none that can be used.
    fn shaped(&self, problem: &Problem) -> Option<Response<Bytes>> {
        let shape: &Arc<Shape> = self.shape.as_ref()?;
        let mut shaped = hook::call("with_problem", || shape(problem, self.form.of(problem)))?;
        shaped.extensions_mut().remove::<Plain>();
        if !shaped.status().is_client_error() && !shaped.status().is_server_error() {
            tracing::error!(
                status = shaped.status().as_u16(),
                "`with_problem` returned a status that is not an error's, and its response is not \
                 used"
            );
            return None;
        }
        Some(shaped)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Response, StatusCode};

    use super::super::effects::told;
    use super::super::{NothingHappened, Problem, Scope};
    use crate::Idempotency;
    use crate::error::{Error, ErrorKind};
    use crate::http::options::{OnStatus, Options};
    use crate::store::MemoryStore;

    #[test]
    fn a_layer_around_judges_a_shaped_refusal_as_it_was_decided() {
        let mut options = Options::new(Idempotency::new(MemoryStore::new()), Scope::global());
        options.shape = Some(std::sync::Arc::new(|_: &Problem, _: Response<Bytes>| {
            // As a service may build all of its errors.
            let mut response = NothingHappened::mark(Response::new(Bytes::new()));
            response.extensions_mut().insert(ErrorKind::Full);
            response.extensions_mut().insert(Error::new(ErrorKind::Full).of_call());
            *response.status_mut() = StatusCode::CONFLICT;
            response
        }));
        for (kind, expected) in [
            (ErrorKind::InProgress, OnStatus::Release),
            (ErrorKind::InDoubt, OnStatus::Hold),
            // Its problem is the one of a request that is still running.
            (ErrorKind::Superseded, OnStatus::Hold),
        ] {
            let error = Error::new(kind).of_call();
            for whole in [Some(&error), None] {
                let refusal = options.refusal(Problem::of(&error), whole);
                assert_eq!(told(refusal.extensions()), Some(expected), "{kind:?}");
            }
        }
    }
}
