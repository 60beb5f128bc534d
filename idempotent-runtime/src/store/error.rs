//! Errors of stores.

use crate::store::Operation;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The kind of a store's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No valid answer arrived: the request may or may not have been applied.
    Unavailable,
    /// The store rejected the request before it applied anything; the same request can succeed
    /// later.
    Refused,
    /// There is no room for another record; nothing was applied.
    Full,
    /// The stored bytes are not a record that this version can read; nothing was applied.
    Corrupt,
    /// The store cannot do this; nothing was applied.
    Unsupported,
    /// The store's configuration does not let it keep its promise; nothing was applied.
    Config,
}

/// A failure of a store: its kind, the operation, and the client's own error as `source()`.
///
/// ```
/// use idempotency::store::{Operation, StoreError, StoreErrorKind};
///
/// let error = StoreError::new(StoreErrorKind::Unavailable, Operation::Claim).with_source(std::io::Error::other("reset"));
/// assert!(error.is_outcome_unknown());
/// assert_eq!(error.to_string(), "claim: the store did not answer");
/// ```
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    operation: Operation,
    detail: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// A failure of `operation`.
    pub const fn new(kind: StoreErrorKind, operation: Operation) -> Self {
        Self { kind, operation, detail: None, source: None }
    }

    /// Adds a detail for people. It must not contain a key, a body or a result.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Keeps the client's own error.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The store operation that failed.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// Returns true if the request may have been applied although it failed.
    pub fn is_outcome_unknown(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }

    /// Returns true if the same request can succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable | StoreErrorKind::Refused)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.kind {
            StoreErrorKind::Unavailable => "the store did not answer",
            StoreErrorKind::Refused => "the store refused",
            StoreErrorKind::Full => "the store is full",
            StoreErrorKind::Corrupt => "the stored bytes are not a valid record",
            StoreErrorKind::Unsupported => "the store does not support this",
            StoreErrorKind::Config => "the store is misconfigured",
        };
        write!(f, "{}: {text}", self.operation)?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
