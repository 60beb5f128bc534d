//! Requests that the layers guard, by their method and content type (R12, R68).

use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, Request};

/// The extent to which requests with a method are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    Never,
    /// Guarded if the request has a key. The method may have no effects, so no key is required.
    WithKey,
    Always,
}

/// Registered methods that are safe, in addition to those that [`Method::is_safe`] knows.
const SAFE: [&str; 5] = ["PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH"];

/// Returns how a layer for these methods guards a request.
pub(super) fn guarded<B>(request: &Request<B>, methods: &[Method]) -> Coverage {
    let coverage = of_method(request.method(), methods);
    if !is_grpc(request.headers()) {
        return coverage;
    }
    match coverage {
        // Frameworks read every type with this suffix as JSON, so the service behind may not be
        // gRPC.
        Coverage::Always | Coverage::WithKey if ends_in_json(request.headers()) => {
            Coverage::WithKey
        }
        _ => Coverage::Never,
    }
}

/// Returns how requests with `method` are guarded by a layer for `methods`.
///
/// Case is ignored. To HTTP, `post` and `POST` are different methods, but a route for any method
/// runs its handler for both, and browsers send `patch` as written. For the same reason an unknown
/// method is guarded if the request has a key.
pub(super) fn of_method(method: &Method, methods: &[Method]) -> Coverage {
    let spelled = method.as_str().to_ascii_uppercase();
    let is_standard = |method: &Method| {
        [Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::CONNECT].contains(method)
    };
    match Method::from_bytes(spelled.as_bytes()) {
        Ok(method) if method.is_safe() || SAFE.contains(&method.as_str()) => Coverage::Never,
        _ if methods.iter().any(|method| method.as_str().eq_ignore_ascii_case(&spelled)) => {
            Coverage::Always
        }
        Ok(method) if is_standard(&method) => Coverage::Never,
        _ => Coverage::WithKey,
    }
}

/// Returns true for requests of gRPC and gRPC-Web. Their outcome is in a trailer, which neither
/// layer reads, and their services do not know the header (R68).
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &str = "application/grpc";
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(Ok(content_type)), None) = (types.next().map(|value| value.to_str()), types.next())
    else {
        return false;
    };
    let Some((start, rest)) = content_type.split_at_checked(GRPC.len()) else { return false };
    start.eq_ignore_ascii_case(GRPC)
        && rest.trim_start().chars().next().is_none_or(|next| "+-;".contains(next))
}

/// Returns true if the type of the body ends in `+json`.
fn ends_in_json(headers: &HeaderMap) -> bool {
    const SUFFIX: &[u8] = b"+json";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let essence =
            value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        essence.len() >= SUFFIX.len()
            && essence[essence.len() - SUFFIX.len()..].eq_ignore_ascii_case(SUFFIX)
    })
}
