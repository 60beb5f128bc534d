//! Whose requests they are.

use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use crate::key::{IntoKey, Key};

/// Who is asking: the part of the name of a record that keeps the keys of two tenants apart.
///
/// A required argument of the layer: without it, one client could read the answers to another by
/// guessing keys.
///
/// ```
/// use http::request::Parts;
/// use idempotent_runtime::http::Scope;
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// // What the authentication in front of the layer has found out.
/// let scope = Scope::of(|request| request.extensions.get::<Tenant>().map(|tenant| tenant.0));
/// ```
#[derive(Clone)]
pub struct Scope(Option<Arc<Principal>>);

type Principal = dyn Fn(&Parts) -> Option<Key> + Send + Sync;

impl Scope {
    /// One name space for all clients: right where there is one client, or where keys come from a
    /// trusted place.
    pub const fn global() -> Self {
        Self(None)
    }

    /// What `principal` finds in the head of the request. Where it finds nobody, which is also a
    /// principal with a `None` in it, a request with a key is refused (401), and so is one whose
    /// body is not read yet for the key that it needs
    /// ([`with_key_from_body`](super::IdempotencyLayer::with_key_from_body)).
    pub fn of<K: IntoKey>(principal: impl Fn(&Parts) -> Option<K> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(move |request| principal(request).map(|principal| Key::of(&principal)))))
    }

    /// The scope of a request, if there is somebody who asks.
    pub(super) fn of_request(&self, request: &Parts) -> Result<Option<Key>, Nobody> {
        let Some(principal) = &self.0 else { return Ok(None) };
        principal(request).filter(|principal| !principal.is_missing()).map(Some).ok_or(Nobody)
    }
}

/// The request has no principal.
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
