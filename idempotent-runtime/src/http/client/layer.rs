//! The layer and its options.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, response};
use tower_layer::Layer;

use super::pauses::Backoff;
use super::service::ClientService;
use super::transport::{AnyError, ClonedBody};
use crate::clock::{Clock, Randomness, SystemClock, SystemRandomness};
use crate::http::HeaderNames;

type Answers = dyn Fn(&response::Parts) -> bool + Send + Sync;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) methods: Vec<Method>,
    pub(super) names: HeaderNames,
    pub(super) bare_keys: bool,
    pub(super) deadline: Duration,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) retried: Option<Arc<Answers>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) randomness: Arc<dyn Randomness>,
}

/// A layer that assigns one `Idempotency-Key` to each request of a client, and retries the request
/// with that key while this can help. The [module](super) describes the key and the retries.
///
/// Everything has a default. The client behind it is any `tower` service of [`http::Request`]; it
/// is cloned for each request. The layer requires a Tokio runtime, unless
/// [`with_clock`](Self::with_clock) sets another timer.
///
/// ```
/// use std::time::Duration;
/// use http::Method;
/// use idempotency::http::client::ClientLayer;
///
/// let layer = ClientLayer::new()
///     .with_methods([Method::POST, Method::PATCH, Method::DELETE])
///     .with_deadline(Duration::from_secs(60))
///     .with_attempt_timeout(Duration::from_secs(10));
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until it is around a client"]
pub struct ClientLayer<C = ClonedBody, P = AnyError> {
    options: Arc<Options>,
    copy: C,
    passing: P,
}

impl ClientLayer {
    /// Creates the layer for a client whose bodies are `Clone`. Other bodies require
    /// [`with_body_copy`](Self::with_body_copy).
    pub fn new() -> Self {
        let options = Options {
            methods: vec![Method::POST, Method::PATCH],
            names: HeaderNames::new(),
            bare_keys: false,
            deadline: Duration::from_secs(30),
            attempt_timeout: None,
            max_attempts: u32::MAX,
            backoff: Backoff {
                first: Duration::from_millis(100),
                longest: Duration::from_secs(10),
            },
            retried: None,
            clock: Arc::new(SystemClock::new()),
            randomness: Arc::new(SystemRandomness),
        };
        Self { options: Arc::new(options), copy: ClonedBody, passing: AnyError }
    }
}

impl Default for ClientLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<C, P> ClientLayer<C, P> {
    fn set(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self
    }

    /// Sets the function that copies a body for a further attempt, for bodies that are not `Clone`.
    /// If it returns `None`, the request is sent once.
    ///
    /// ```
    /// use idempotency::http::client::ClientLayer;
    ///
    /// enum Upload {
    ///     Bytes(Vec<u8>),
    ///     File(std::fs::File),
    /// }
    ///
    /// let layer = ClientLayer::new().with_body_copy(|body: &Upload| match body {
    ///     Upload::Bytes(bytes) => Some(Upload::Bytes(bytes.clone())),
    ///     Upload::File(_) => None,
    /// });
    /// ```
    pub fn with_body_copy<B, F: Fn(&B) -> Option<B>>(self, copy: F) -> ClientLayer<F, P> {
        ClientLayer { options: self.options, copy, passing: self.passing }
    }

    /// Sets the function that returns true for temporary errors of the client, after which the
    /// request is retried: a broken connection is temporary, an invalid address is not. By default
    /// every error is treated as temporary; with a key, that is safe.
    ///
    /// ```
    /// use idempotency::http::client::ClientLayer;
    ///
    /// let layer = ClientLayer::new()
    ///     .with_errors(|error: &std::io::Error| error.kind() != std::io::ErrorKind::InvalidInput);
    /// ```
    pub fn with_errors<E, F: Fn(&E) -> bool>(self, can_pass: F) -> ClientLayer<C, F> {
        ClientLayer { options: self.options, copy: self.copy, passing: can_pass }
    }

    /// Additional responses after which a request is retried, for example if a service uses a
    /// header of its own for this. They are added to those of the [module](super).
    ///
    /// The function is not called for responses that the service marks as final: a response that
    /// was replayed or ran unprotected, one that asks not to be retried, and an outcome that is not
    /// known.
    ///
    /// ```
    /// use idempotency::http::client::ClientLayer;
    ///
    /// let layer = ClientLayer::new().with_retried_answers(|answer| answer.headers.contains_key("x-should-retry"));
    /// ```
    pub fn with_retried_answers(
        self,
        retried: impl Fn(&response::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.retried = Some(Arc::new(retried)))
    }

    /// The names of the key header and of the headers that the service writes. The default is
    /// [`HeaderNames::new`]. The usual names of the headers that mark a response as final always
    /// count.
    pub fn with_header_names(self, names: HeaderNames) -> Self {
        self.set(|options| options.names = names)
    }

    /// The methods whose requests get a key. The default is POST and PATCH. A request that already
    /// has a key is sent with it, whatever its method.
    pub fn with_methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.set(|options| options.methods = methods.into_iter().collect())
    }

    /// Sends keys without the quotes that the draft standard requires, for services that expect
    /// this. A key that would arrive as another one is not sent: one that begins or ends with a
    /// space, or begins with a quote.
    pub fn with_bare_keys(self) -> Self {
        self.set(|options| options.bare_keys = true)
    }

    /// The time for all attempts together, including the pauses between them. The default is 30
    /// seconds.
    ///
    /// If a pause would not end before it, the last response or error is returned at once. An
    /// attempt that is in flight when it expires is dropped:
    /// [`TimedOut`](super::ClientError::TimedOut).
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.set(|options| options.deadline = deadline)
    }

    /// The time until one attempt must have a response. By default only the client behind the layer
    /// and the deadline limit it.
    pub fn with_attempt_timeout(self, timeout: Duration) -> Self {
        self.set(|options| options.attempt_timeout = Some(timeout))
    }

    /// The largest number of attempts, 1 or more. By default only the deadline limits it.
    pub fn with_max_attempts(self, attempts: u32) -> Self {
        self.set(|options| options.max_attempts = attempts.max(1))
    }

    /// The bounds of the pauses: `first`, doubled each time up to `longest`. The defaults are 100
    /// milliseconds and 10 seconds. A pause has a random length from nothing to its bound.
    pub fn with_backoff(self, first: Duration, longest: Duration) -> Self {
        self.set(|options| options.backoff = Backoff { first, longest })
    }

    /// The clock of the layer. The default is the machine's clock.
    pub fn with_clock(self, clock: impl Clock) -> Self {
        self.set(|options| options.clock = Arc::new(clock))
    }

    /// The source of randomness for new keys and pauses. The default is the operating system's
    /// generator.
    pub fn with_randomness(self, randomness: impl Randomness) -> Self {
        self.set(|options| options.randomness = Arc::new(randomness))
    }
}

impl<S, C: Clone, P: Clone> Layer<S> for ClientLayer<C, P> {
    type Service = ClientService<S, C, P>;

    fn layer(&self, service: S) -> Self::Service {
        ClientService::new(service, self.options.clone(), self.copy.clone(), self.passing.clone())
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("methods", &self.methods)
            .field("bare_keys", &self.bare_keys)
            .field("deadline", &self.deadline)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("max_attempts", &self.max_attempts)
            .field("backoff", &self.backoff)
            .finish_non_exhaustive()
    }
}

impl<C, P> fmt::Debug for ClientLayer<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayer").field("options", &self.options).finish_non_exhaustive()
    }
}
