//! What the layer has to know of the client that it is around.

/// How the body of a request is copied for a further attempt. Made by
/// [`ClientLayer::with_body_copy`].
///
/// [`ClientLayer::with_body_copy`]: super::ClientLayer::with_body_copy
pub trait BodyCopy<B> {
    /// A copy of the body, `None` where there can be none: the request is then sent once.
    fn copy(&self, body: &B) -> Option<B>;
}

/// The default: bodies are cloned. They are `Clone` then.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClonedBody;

impl<B: Clone> BodyCopy<B> for ClonedBody {
    fn copy(&self, body: &B) -> Option<B> {
        Some(body.clone())
    }
}

impl<B, F: Fn(&B) -> Option<B>> BodyCopy<B> for F {
    fn copy(&self, body: &B) -> Option<B> {
        self(body)
    }
}

/// Which errors of the client can pass. Made by [`ClientLayer::with_errors`].
///
/// [`ClientLayer::with_errors`]: super::ClientLayer::with_errors
pub trait PassingError<E> {
    /// Whether a further attempt can have another outcome.
    fn can_pass(&self, error: &E) -> bool;
}

/// The default: every error can pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyError;

impl<E> PassingError<E> for AnyError {
    fn can_pass(&self, _: &E) -> bool {
        true
    }
}

impl<E, F: Fn(&E) -> bool> PassingError<E> for F {
    fn can_pass(&self, error: &E) -> bool {
        self(error)
    }
}
