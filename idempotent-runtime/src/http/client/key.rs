//! The key that a request is sent with.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, request};
use sfv::{ItemSerializer, StringRef};
use uuid::Uuid;

use super::layer::Options;
use super::unlabelled::Place;
use crate::edge::Attempt;
use crate::error::{Error, ErrorKind};
use crate::http::method::is_grpc;

/// The key of a request, as an extension of the request.
///
/// ```
/// use http::Request;
/// use idempotency::http::client::RequestKey;
///
/// # fn example(order: u64) -> Result<Request<String>, Box<dyn std::error::Error>> {
/// let mut request = Request::post("https://example.com/payments").body(String::new())?;
/// request.extensions_mut().insert(RequestKey::new(format!("order-{order}"))?);
/// # Ok(request)
/// # }
/// # example(7).unwrap();
/// ```
///
/// `Debug` does not show the key: keys must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestKey(Arc<str>);

impl RequestKey {
    /// Creates a key of printable ASCII characters. Services accept 255 of them, or fewer.
    ///
    /// # Errors
    /// [`InvalidKey`](ErrorKind::InvalidKey) if it is blank or contains other characters.
    pub fn new(key: impl Into<Arc<str>>) -> Result<Self, Error> {
        let key = key.into();
        let is_usable =
            !key.trim().is_empty() && key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if is_usable { Ok(Self(key)) } else { Err(unusable()) }
    }

    /// Returns the key without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestKey({} octets)", self.0.len())
    }
}

fn unusable() -> Error {
    Error::new(ErrorKind::InvalidKey).with_text(
        "the key cannot be sent in a header",
        "use printable ASCII characters, for example a UUID",
    )
}

/// The error of a body, or of a verification, that makes a request in a wrong way.
fn misused(attempt: &Attempt) -> Error {
    let context = attempt.context();
    Error::new(ErrorKind::Config).of_record(Some(&context.operation().into()), &context.key())
}

/// The purpose of a request inside a guarded call, as an extension of the request. The request's
/// key is the one that [`Context::derive_key`](crate::Context::derive_key) returns for this label,
/// the same in every attempt. Outside of a guarded call it has no effect.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Context, Error, Idempotency, store::MemoryStore};
/// use http::Request;
/// use idempotency::http::client::RequestLabel;
///
/// # async fn example(engine: &Idempotency) -> Result<(), Error> {
/// let charge = engine.call("orders.pay", 7).ttl(Duration::from_secs(86_400)).run(|| async {
///     let mut request = Request::post("https://example.com/payments").body(()).expect("it is well-formed");
///     request.extensions_mut().insert(RequestLabel::new("charge"));
///     // … sent through the layer, its key is `Context::current().derive_key("charge")`.
///     # Ok::<_, Error>(())
/// });
/// # charge.await
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLabel(Arc<str>);

impl RequestLabel {
    /// Creates a label. The text must be different for each request of a body.
    pub fn new(label: impl Into<Arc<str>>) -> Self {
        Self(label.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key of a request, as it is sent.
pub(super) struct Chosen {
    pub(super) header: HeaderValue,
    /// The place of a request that only its address distinguishes from others of its body.
    pub(super) place: Option<Place>,
}

impl Options {
    /// Returns the key of a request, or `None` if the request is passed on unchanged.
    pub(super) fn key_of(&self, request: &request::Parts) -> Result<Option<Chosen>, Error> {
        // R68: its service does not know the header, and a retry would be a second request.
        if is_grpc(&request.headers) {
            return Ok(None);
        }
        let mut own = request.headers.get_all(self.names.key()).iter();
        if let Some(header) = own.next() {
            // It is up to the service which one it would use.
            if own.next().is_some() {
                return Err(Error::new(ErrorKind::InvalidKey).with_text(
                    "the request has more than one header with a key",
                    "send only one",
                ));
            }
            return Ok(Some(Chosen { header: header.clone(), place: None }));
        }
        if let Some(key) = request.extensions.get::<RequestKey>() {
            return self.chosen(key.as_str(), None).map(Some);
        }
        let is_one_of_ours =
            |method: &Method| method.as_str().eq_ignore_ascii_case(request.method.as_str());
        if !self.methods.iter().any(is_one_of_ours) {
            return Ok(None);
        }
        let Some(attempt) = Attempt::current() else {
            return self.chosen(&self.fresh()?.to_string(), None).map(Some);
        };
        if let Some(label) = request.extensions.get::<RequestLabel>() {
            return self.chosen(&attempt.context().derive_key(label.as_str()), None).map(Some);
        }
        // It would get the response to the same lookup of an earlier attempt, or to the body's
        // request.
        if attempt.is_verification() {
            return Err(misused(&attempt).with_text(
                "a request of the verification after a crash does not say whether it repeats an \
                 earlier one",
                "give it the `RequestLabel` of the one that it repeats, or a new `RequestKey`",
            ));
        }
        let key = attempt.context().derive_key(&format!("{} {}", request.method, request.uri));
        // A mistake in the body, and no key of anybody's that cannot be used: the request before it
        // may have taken effect.
        let place = Place::take(&attempt, &key).ok_or_else(|| {
            misused(&attempt).with_text(
                "two requests of the body have the same method and address, and would have the \
                 same key",
                "give each a `RequestLabel`",
            )
        })?;
        self.chosen(&key, Some(place)).map(Some)
    }

    /// Inserts `key` into the headers of its request.
    pub(super) fn give(&self, headers: &mut HeaderMap, key: Chosen) -> Result<Chosen, Error> {
        let name = self.names.key();
        // Removing an existing one first frees its place, so that it fits even into a full map.
        headers.remove(name);
        match headers.try_insert(name, key.header.clone()) {
            Ok(_) => Ok(key),
            Err(error) => Err(Error::new(ErrorKind::InvalidKey)
                .with_text("the request has no room for its key", "send fewer headers")
                .with_source(error)),
        }
    }

    fn chosen(&self, key: &str, place: Option<Place>) -> Result<Chosen, Error> {
        let mut header = if self.bare_keys {
            bare(key).ok_or_else(unusable)?
        } else {
            let string = StringRef::from_str(key).map_err(|_| unusable())?;
            HeaderValue::try_from(ItemSerializer::new().bare_item(string).finish())
                .map_err(|_| unusable())?
        };
        header.set_sensitive(true);
        Ok(Chosen { header, place })
    }

    fn fresh(&self) -> Result<Uuid, Error> {
        let mut random = [0; 10];
        self.randomness.fill(&mut random).map_err(|error| {
            Error::new(ErrorKind::Config)
                .with_detail("no random numbers are available for a new key")
                .with_source(error)
        })?;
        Ok(uuid::Builder::from_unix_timestamp_millis(self.clock.now().as_millis(), &random)
            .into_uuid())
    }
}

/// Returns the key without quotes, or `None` if a service would read another one: white space
/// around a header's value is not part of it, and a value that begins with a quote is a quoted key.
fn bare(key: &str) -> Option<HeaderValue> {
    let is_read_as_it_is = key.trim() == key && !key.starts_with('"');
    HeaderValue::from_str(key).ok().filter(|_| is_read_as_it_is)
}

#[cfg(test)]
mod tests {
    use super::{RequestKey, bare};
    use crate::error::ErrorKind;

    #[test]
    fn keys_that_no_header_can_have_are_refused() {
        for key in ["", "  ", "a\nb", "a\tb", "ä", "\u{7f}"] {
            assert_eq!(RequestKey::new(key).unwrap_err().kind(), ErrorKind::InvalidKey, "{key:?}");
        }
        assert_eq!(RequestKey::new("a \"b\"").unwrap().as_str(), "a \"b\"");
        for key in ["abc ", " abc", "\"abc\"", "\"abc\";x"] {
            assert!(
                RequestKey::new(key).is_ok() && bare(key).is_none(),
                "{key:?} would be the key abc without quotes"
            );
        }
        assert!(bare("a b").is_some());
        assert_eq!(format!("{:?}", RequestKey::new("secret").unwrap()), "RequestKey(6 octets)");
    }
}
