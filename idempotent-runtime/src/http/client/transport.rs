//! Properties of the client behind the layer: copyable bodies and temporary errors.

/// A function that copies the body of a request for a further attempt. Set by
/// [`ClientLayer::with_body_copy`].
///
/// [`ClientLayer::with_body_copy`]: super::ClientLayer::with_body_copy
pub trait BodyCopy<B> {
    /// Returns a copy of the body, or `None` if it cannot be copied: the request is then sent once.
    fn copy(&self, body: &B) -> Option<B>;
}

/// The default: bodies are cloned, and must be `Clone`.
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

/// A function that recognises temporary errors of the client. Set by [`ClientLayer::with_errors`].
///
/// [`ClientLayer::with_errors`]: super::ClientLayer::with_errors
pub trait PassingError<E> {
    /// Returns true if a further attempt can have another outcome.
    fn can_pass(&self, error: &E) -> bool;
}

/// The default: every error is temporary.
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
