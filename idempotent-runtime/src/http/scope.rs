//! The scope of a request's key: the principal that it belongs to.

use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use crate::key::{IntoKey, Key};

/// The principal that a key belongs to: the part of a record's name that keeps the keys of two
/// tenants apart.
///
/// It is a required argument of the layer. Without it, one client could read the responses of
/// another by guessing keys.
///
/// ```
/// use http::request::Parts;
/// use idempotency::http::Scope;
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// // The principal that the authentication in front of the layer established.
/// let scope = Scope::of(|request| request.extensions.get::<Tenant>().map(|tenant| tenant.0));
/// ```
#[derive(Clone)]
pub struct Scope(Option<Arc<Principal>>);

type Principal = dyn Fn(&Parts) -> Option<Key> + Send + Sync;

impl Scope {
    /// One namespace for all clients: for services with a single client, or whose keys come from a
    /// trusted source.
    pub const fn global() -> Self {
        Self(None)
    }

    /// The principal that `principal` finds in the head of the request. If it finds none (`None`,
    /// or a principal that contains a `None`), a request with a key is refused (401), and so is one
    /// whose body would have to be read for the key that it needs
    /// ([`with_key_from_body`](super::IdempotencyLayer::with_key_from_body)).
    pub fn of<K: IntoKey>(principal: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(move |request| principal(request).map(|principal| Key::of(&principal)))))
    }

    /// Returns the scope of a request (R43), or `Nobody` if it has no principal (R44).
    pub(super) fn of_request(&self, request: &Parts) -> Result<Option<Key>, Nobody> {
        let Some(principal) = &self.0 else { return Ok(None) };
        principal(request).filter(|principal| !principal.is_missing()).map(Some).ok_or(Nobody)
    }
}

/// The error of a request that has no principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nobody;

impl<F, K> From<F> for Scope
where
    F: Fn(&Parts) -> Option<K> + Send + Sync + 'static,
    K: IntoKey,
{
    fn from(principal: F) -> Self {
        Self::of(principal)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Scope(…)" } else { "Scope(global)" })
    }
}
