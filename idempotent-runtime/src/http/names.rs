//! The names of the headers that the layers read and write (R67).

use http::header::{self, HeaderMap, HeaderName};

use super::headers::{
    IDEMPOTENCY_BYPASSED, IDEMPOTENCY_KEY_EXPIRES, IDEMPOTENCY_PROBLEM, IDEMPOTENCY_REPLAYED,
};
use super::headers::{NEVER, REPLAYED, STRIPE_REPLAYED, STRIPE_SHOULD_RETRY};
use super::key::IDEMPOTENCY_KEY;
use crate::error::Error;

/// The names of the headers that the layers use, for services whose clients expect other names. The
/// layer of a service and the layer of its clients must use the same names.
///
/// ```
/// # use idempotency::{Error, Idempotency, store::MemoryStore};
/// # use idempotency::http::{IdempotencyLayer, Scope};
/// use idempotency::http::HeaderNames;
/// use idempotency::http::client::ClientLayer;
///
/// # fn example(engine: Idempotency) -> Result<(), Error> {
/// let names = HeaderNames::new().with_key("x-request-key")?.with_replayed("x-request-replayed")?;
/// let server = IdempotencyLayer::new(engine, Scope::global()).with_header_names(names.clone());
/// let client = ClientLayer::new().with_header_names(names);
/// # Ok(())
/// # }
/// # example(Idempotency::new(MemoryStore::new())).unwrap();
/// ```
///
/// # Errors
/// A name is checked when it is set: [`Config`](crate::ErrorKind::Config) if it is not a valid
/// header name, if that header has another meaning in HTTP, if it is the usual name of another of
/// the five headers, or if another one has it already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    key: HeaderName,
    replayed: HeaderName,
    expires: HeaderName,
    bypassed: HeaderName,
    problem: HeaderName,
}

/// Names that already have a meaning to HTTP, to browsers or to the layers.
const RESERVED: [HeaderName; 26] = [
    header::ACCEPT,
    header::AGE,
    header::ALLOW,
    header::ALT_SVC,
    header::CACHE_STATUS,
    header::DNT,
    header::EXPECT,
    header::EXPIRES,
    header::FORWARDED,
    header::FROM,
    header::HOST,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PRAGMA,
    header::RANGE,
    header::REFERER,
    header::REFERRER_POLICY,
    header::REFRESH,
    header::RETRY_AFTER,
    header::SERVER,
    header::STRICT_TRANSPORT_SECURITY,
    header::UPGRADE_INSECURE_REQUESTS,
    header::USER_AGENT,
    header::VIA,
    header::WARNING,
    STRIPE_SHOULD_RETRY,
];

/// Prefixes of header families that are reserved as a whole.
const FAMILIES: [&str; 7] =
    ["accept-", "access-control-", "cdn-", "content-", "if-", "proxy-", "sec-"];

/// The usual names. Clients interpret each of them with its usual meaning even if other names are
/// set, so none of them may get another meaning.
const USUAL: [HeaderName; 6] = [
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_REPLAYED,
    STRIPE_REPLAYED,
    IDEMPOTENCY_KEY_EXPIRES,
    IDEMPOTENCY_BYPASSED,
    IDEMPOTENCY_PROBLEM,
];

impl HeaderNames {
    /// Creates the usual names: `Idempotency-Key`, `Idempotency-Replayed`,
    /// `Idempotency-Key-Expires`, `Idempotency-Bypassed` and `Idempotency-Problem`.
    pub fn new() -> Self {
        Self {
            key: IDEMPOTENCY_KEY,
            replayed: IDEMPOTENCY_REPLAYED,
            expires: IDEMPOTENCY_KEY_EXPIRES,
            bypassed: IDEMPOTENCY_BYPASSED,
            problem: IDEMPOTENCY_PROBLEM,
        }
    }

    /// Sets the name of the header with the key of a request.
    pub fn with_key(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_KEY], |names| &mut names.key)
    }

    /// Sets the name of the header that marks replays.
    pub fn with_replayed(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_REPLAYED, STRIPE_REPLAYED], |names| &mut names.replayed)
    }

    /// Sets the name of the header with the expiry of a response.
    pub fn with_expires(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_KEY_EXPIRES], |names| &mut names.expires)
    }

    /// Sets the name of the header that marks responses that ran without protection.
    pub fn with_bypassed(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_BYPASSED], |names| &mut names.bypassed)
    }

    /// Sets the name of the header with the reason for a refusal.
    pub fn with_problem(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_PROBLEM], |names| &mut names.problem)
    }

    fn set(
        mut self,
        name: impl TryInto<HeaderName>,
        usual: &[HeaderName],
        place: impl Fn(&mut Self) -> &mut HeaderName,
    ) -> Result<Self, Error> {
        let name = name.try_into().map_err(|_| Error::config("a header cannot have this name"))?;
        let is_reserved =
            [&NEVER[..], &REPLAYED, &RESERVED].iter().any(|names| names.contains(&name))
                || FAMILIES.iter().any(|family| name.as_str().starts_with(family))
                || (USUAL.contains(&name) && !usual.contains(&name));
        // A header may keep the name that it has.
        *place(&mut self) = HeaderName::from_static("-");
        let is_taken = name == self.key || self.written().contains(&&name);
        if is_reserved || is_taken {
            return Err(Error::config(format!("the header `{name}` already has another meaning")));
        }
        *place(&mut self) = name;
        Ok(self)
    }

    /// The name of the header with the key of a request.
    pub fn key(&self) -> &HeaderName {
        &self.key
    }

    /// The name of the header that marks replays.
    pub fn replayed(&self) -> &HeaderName {
        &self.replayed
    }

    /// The name of the header with the expiry of a response.
    pub fn expires(&self) -> &HeaderName {
        &self.expires
    }

    /// The name of the header that marks responses that ran without protection.
    pub fn bypassed(&self) -> &HeaderName {
        &self.bypassed
    }

    /// The name of the header with the reason for a refusal.
    pub fn problem(&self) -> &HeaderName {
        &self.problem
    }

    /// Uses the replay marker of Stripe's API.
    pub(super) fn of_stripe(mut self) -> Self {
        self.replayed = STRIPE_REPLAYED;
        self
    }

    /// The names of the headers that a service writes.
    pub(super) fn written(&self) -> [&HeaderName; 4] {
        [&self.replayed, &self.expires, &self.bypassed, &self.problem]
    }

    /// Returns true if a response comes from a record, or from a request that ran without one. The
    /// usual names count as well, because nothing else uses them.
    pub(super) fn mark_final(&self, headers: &HeaderMap) -> bool {
        let usual = [&IDEMPOTENCY_REPLAYED, &STRIPE_REPLAYED, &IDEMPOTENCY_BYPASSED];
        usual
            .into_iter()
            .chain([&self.replayed, &self.bypassed])
            .any(|name| headers.contains_key(name))
    }
}

impl Default for HeaderNames {
    fn default() -> Self {
        Self::new()
    }
}
