//! Which requests the layers are about, by their method and by what they carry.

use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, Request};

/// Whether requests with a method are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    Never,
    /// Those that have a key. Nothing says that such a method has effects, so none is asked for.
    WithKey,
    Always,
}

/// The safe ones of the methods that are registered, beyond those that [`Method::is_safe`] knows.
const SAFE: [&str; 5] = ["PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH"];

/// Whether a request is guarded by a layer that is about these methods.
pub(super) fn guarded<B>(request: &Request<B>, methods: &[Method]) -> Coverage {
    let coverage = of_method(request.method(), methods);
    if !is_grpc(request.headers()) {
        return coverage;
    }
    match coverage {
        // Frameworks read every type that ends so as JSON: what is behind the layer may be no
        // service of gRPC.
        Coverage::Always | Coverage::WithKey if ends_in_json(request.headers()) => {
            Coverage::WithKey
        }
        _ => Coverage::Never,
    }
}

/// Whether requests with `method` are guarded where those with one of `methods` are.
///
/// Methods are compared without regard to case. `post` is another method than `POST` to HTTP, but a
/// route for any method runs its handler for both, and browsers send `patch` as it is written. For
/// the same reason a method that nobody knows is guarded where there is a key.
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

/// Whether this is a request of gRPC or gRPC-Web. Their outcome is in a trailer, where neither
/// layer looks, and their services know nothing of the header.
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

/// Whether the type of the body ends in `+json`.
fn ends_in_json(headers: &HeaderMap) -> bool {
    const SUFFIX: &[u8] = b"+json";
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let essence =
            value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        essence.len() >= SUFFIX.len()
            && essence[essence.len() - SUFFIX.len()..].eq_ignore_ascii_case(SUFFIX)
    })
}
