//! The names of the headers that the layers read and write.

use http::header::{self, HeaderMap, HeaderName};

use super::headers::{
    IDEMPOTENCY_BYPASSED, IDEMPOTENCY_KEY_EXPIRES, IDEMPOTENCY_PROBLEM, IDEMPOTENCY_REPLAYED,
};
use super::headers::{NEVER, REPLAYED, STRIPE_REPLAYED, STRIPE_SHOULD_RETRY};
use super::key::IDEMPOTENCY_KEY;
use crate::error::Error;

/// The names of the headers that the layers use, for services whose clients know other ones. The
/// layer of a service and the one of its clients have the same.
///
/// ```
/// # use idempotent_runtime::{Error, Idempotency, store::MemoryStore};
/// # use idempotent_runtime::http::{IdempotencyLayer, Scope};
/// use idempotent_runtime::http::HeaderNames;
/// use idempotent_runtime::http::client::ClientLayer;
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
/// A name is checked when it is set: [`Config`](crate::ErrorKind::Config) if it is not a header's
/// name, if it is the name of a header that means something else to HTTP, if it is the usual name
/// of another one of the five, or if another one has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    key: HeaderName,
    replayed: HeaderName,
    expires: HeaderName,
    bypassed: HeaderName,
    problem: HeaderName,
}

/// What else means something to HTTP, to browsers or to the layers.
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

/// How the names begin of those that mean something together.
const FAMILIES: [&str; 7] =
    ["accept-", "access-control-", "cdn-", "content-", "if-", "proxy-", "sec-"];

/// The usual names. Clients take each for what it usually says, so it says nothing else under other
/// names.
const USUAL: [HeaderName; 6] = [
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_REPLAYED,
    STRIPE_REPLAYED,
    IDEMPOTENCY_KEY_EXPIRES,
    IDEMPOTENCY_BYPASSED,
    IDEMPOTENCY_PROBLEM,
];

impl HeaderNames {
    /// `Idempotency-Key`, `Idempotency-Replayed`, `Idempotency-Key-Expires`, `Idempotency-Bypassed`
    /// and `Idempotency-Problem`.
    pub fn new() -> Self {
        Self {
            key: IDEMPOTENCY_KEY,
            replayed: IDEMPOTENCY_REPLAYED,
            expires: IDEMPOTENCY_KEY_EXPIRES,
            bypassed: IDEMPOTENCY_BYPASSED,
            problem: IDEMPOTENCY_PROBLEM,
        }
    }

    /// The name of the header with the key of a request.
    pub fn with_key(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_KEY], |names| &mut names.key)
    }

    /// The name of the header that tells replays.
    pub fn with_replayed(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_REPLAYED, STRIPE_REPLAYED], |names| &mut names.replayed)
    }

    /// The name of the header with the end of an answer's lifetime.
    pub fn with_expires(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_KEY_EXPIRES], |names| &mut names.expires)
    }

    /// The name of the header that tells what ran without protection.
    pub fn with_bypassed(self, name: impl TryInto<HeaderName>) -> Result<Self, Error> {
        self.set(name, &[IDEMPOTENCY_BYPASSED], |names| &mut names.bypassed)
    }

    /// The name of the header that tells why a request is refused.
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
        // A header may have the name that it has.
        *place(&mut self) = HeaderName::from_static("-");
        let is_taken = name == self.key || self.written().contains(&&name);
        if is_reserved || is_taken {
            return Err(Error::config(format!("the header `{name}` means something else already")));
        }
        *place(&mut self) = name;
        Ok(self)
    }

    /// The name of the header with the key of a request.
    pub fn key(&self) -> &HeaderName {
        &self.key
    }

    /// The name of the header that tells replays.
    pub fn replayed(&self) -> &HeaderName {
        &self.replayed
    }

    /// The name of the header with the end of an answer's lifetime.
    pub fn expires(&self) -> &HeaderName {
        &self.expires
    }

    /// The name of the header that tells what ran without protection.
    pub fn bypassed(&self) -> &HeaderName {
        &self.bypassed
    }

    /// The name of the header that tells why a request is refused.
    pub fn problem(&self) -> &HeaderName {
        &self.problem
    }

    /// With the marker of replays that Stripe's API has.
    pub(super) fn of_stripe(mut self) -> Self {
        self.replayed = STRIPE_REPLAYED;
        self
    }

    /// Those that a service writes.
    pub(super) fn written(&self) -> [&HeaderName; 4] {
        [&self.replayed, &self.expires, &self.bypassed, &self.problem]
    }

    /// Whether an answer is from a record, or of a request that ran without one. It is the same
    /// under the names that are usual: nobody else uses them.
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
