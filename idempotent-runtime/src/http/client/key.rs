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
use crate::http::key::IDEMPOTENCY_KEY;
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
///
/// Inside a [step](crate::Context::step) the key also depends on the step, as that of `derive_key`
/// does. [`of_step`](Self::of_step) names the step, so that the label stands for the same request
/// everywhere: in the step, and in the verification after a crash, which runs outside of every step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLabel {
    text: Arc<str>,
    /// The name and the index of the step that it names.
    step: Option<(Arc<str>, u64)>,
}

impl RequestLabel {
    /// Creates a label. The text must be different for each request of a body, or of a step.
    pub fn new(label: impl Into<Arc<str>>) -> Self {
        Self { text: label.into(), step: None }
    }

    /// Names the [step](crate::Context::step) that sends the request.
    ///
    /// In a call that verifies after a crash, a label in a step must name it, and the verification
    /// repeats the request with the same label:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Context, Error, Idempotency, Verdict, store::MemoryStore};
    /// use idempotency::http::client::RequestLabel;
    ///
    /// # async fn send(_: &RequestLabel) -> Result<u32, Error> { Ok(7) }
    /// # async fn example(engine: &Idempotency) -> Result<u32, Error> {
    /// let charge = &RequestLabel::new("charge").of_step("pay");
    /// engine
    ///     .call("orders.pay", 7)
    ///     .ttl(Duration::from_secs(86_400))
    ///     .on_crash_verify(|_| async { Ok(Verdict::Completed(send(charge).await?)) })
    ///     .run(|| async { Context::current().step("pay", || send(charge)).await })
    ///     .await
    /// # }
    /// ```
    ///
    /// Without the step, the verification would send a request with another key, which is a second
    /// charge. It is simpler to send such requests outside of steps, or to derive their keys there
    /// and pass them in as [`RequestKey`]s.
    #[must_use]
    pub fn of_step(self, name: impl Into<Arc<str>>) -> Self {
        self.of_step_at(name, 0)
    }

    /// Like [`of_step`](Self::of_step), for a step with an index
    /// ([`step_at`](crate::Context::step_at)).
    #[must_use]
    pub fn of_step_at(self, name: impl Into<Arc<str>>, index: u64) -> Self {
        Self { step: Some((name.into(), index)), ..self }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the key of the request in this attempt.
    fn key_in(&self, attempt: &Attempt) -> Result<String, Error> {
        let context = attempt.context();
        let is_in_step = attempt.step_try().is_some();
        if let Some((step, index)) = &self.step {
            let key = context.derive_key_in_step(step, *index, &self.text);
            // Another step would send this one's request, and get its answer.
            if is_in_step && key != context.derive_key(&self.text) {
                return Err(misused(attempt).with_text(
                    "the label of a request names another step than the one that sends it",
                    "name the step that sends it: `RequestLabel::of_step`, or `of_step_at` with the \
                     index of `step_at`",
                ));
            }
            return Ok(key);
        }
        // The verification cannot know that a step was meant, and would repeat the request with
        // another key. So it has to be known here, where nothing has been sent.
        if attempt.may_be_verified() && is_in_step {
            return Err(misused(attempt).with_text(
                "the label of a request does not name the step that sends it, so the verification \
                 after a crash could not repeat the request",
                "name the step with `RequestLabel::of_step`, or `of_step_at`, here and in the \
                 verification",
            ));
        }
        Ok(context.derive_key(&self.text))
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
            // To the service it is none, and a retry would be a second request.
            if is_blank(header) {
                return Err(Error::new(ErrorKind::InvalidKey).with_text(
                    "the key in the header of the request is blank",
                    "give it a key, or leave the header out",
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
        // With a key of ours beside it, its service would not refuse it as misplaced, and a retry of the
        // caller, which repeats only that one, would be a second request.
        if request.headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(Error::new(ErrorKind::InvalidKey).with_text(
                "the request has its key in `Idempotency-Key`, and the client sends keys in another header",
                "put the key into the header that is set for the client, or leave it out",
            ));
        }
        let Some(attempt) = Attempt::current() else {
            return self.chosen(&self.fresh()?.to_string(), None).map(Some);
        };
        match request.extensions.get::<RequestLabel>() {
            Some(label) => self.chosen(&label.key_in(&attempt)?, None).map(Some),
            None => self.of_address(request, &attempt).map(Some),
        }
    }

    /// Returns the key of a request that only its method and address identify.
    fn of_address(&self, request: &request::Parts, attempt: &Attempt) -> Result<Chosen, Error> {
        // It would get the response to the same lookup of an earlier attempt, or to the body's
        // request.
        if attempt.is_verification() {
            return Err(misused(attempt).with_text(
                "a request of the verification after a crash does not say whether it repeats an \
                 earlier one",
                "give it the `RequestLabel` of the one that it repeats, which needs one in the body \
                 too, with `of_step` if a step sends it; or a new `RequestKey`",
            ));
        }
        if request.uri.query().is_some() {
            return Err(misused(attempt).with_text(
                "a request of the body has a query, which may differ in the next attempt and would \
                 then give it another key",
                "give it a `RequestLabel`",
            ));
        }
        let key = attempt.context().derive_key(&format!("{} {}", request.method, request.uri));
        // A mistake in the body, and no key of anybody's that cannot be used: the request before it
        // may have taken effect.
        let place = Place::take(attempt, &key).ok_or_else(|| {
            misused(attempt).with_text(
                "two requests of the body have the same method and address, and would have the \
                 same key",
                "give each a `RequestLabel`",
            )
        })?;
        self.chosen(&key, Some(place))
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

/// Returns true if no service finds a key in this header, because it is empty or white space, with
/// quotes around it or without them. Parameters behind the quotes are not part of a key.
fn is_blank(header: &HeaderValue) -> bool {
    let value = header.as_bytes().trim_ascii();
    let Some(quoted) = value.strip_prefix(b"\"") else { return value.is_empty() };
    quoted.trim_ascii_start().strip_prefix(b"\"").is_some()
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
