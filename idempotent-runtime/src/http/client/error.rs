//! Errors of the client, and the description of a sent request.

use std::fmt;

use http::HeaderValue;

use crate::error::Error;

/// The description of a sent request, in the extensions of a response or in the error if there is
/// none.
///
/// ```
/// use idempotency::http::client::{ClientError, Sent};
///
/// /// For the list of requests that an operator has to check.
/// fn key_of<E>(error: &ClientError<E>) -> Option<&http::HeaderValue> {
///     error.sent().map(Sent::header)
/// }
/// ```
///
/// `Debug` does not show the key: keys must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Sent {
    pub(super) header: HeaderValue,
    pub(super) attempts: u32,
}

impl Sent {
    /// The value of the `Idempotency-Key` header, the same in every attempt.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The number of times that the request was sent, 1 or more.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

/// An error of a request that has no response.
///
/// ```
/// use idempotency::http::client::ClientError;
///
/// fn has_no_effect<E>(error: &ClientError<E>) -> bool {
///     // In all other cases the outcome is unknown: the same request with the same key finds out.
///     matches!(error, ClientError::NotSent(_))
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientError<E> {
    /// The request was not sent, because it could not get a key.
    NotSent(Error),
    /// The client behind the layer failed. It is not known whether the request took effect.
    #[non_exhaustive]
    Failed {
        /// The client's error in the last attempt.
        error: E,
        /// The request that was sent with a key. `None` if the layer does not guard the request.
        sent: Option<Sent>,
    },
    /// There was no response in time. It is not known whether the request took effect.
    #[non_exhaustive]
    TimedOut {
        /// The request that was sent.
        sent: Sent,
    },
}

impl<E> ClientError<E> {
    /// Returns the description of the request if it was sent with a key.
    pub fn sent(&self) -> Option<&Sent> {
        match self {
            Self::NotSent(_) => None,
            Self::Failed { sent, .. } => sent.as_ref(),
            Self::TimedOut { sent } => Some(sent),
        }
    }
}

impl<E: fmt::Display> fmt::Display for ClientError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => write!(f, "the request was not sent: {error}"),
            Self::Failed { error, sent: None } => write!(f, "the request failed: {error}"),
            Self::Failed { error, sent: Some(sent) } => {
                write!(f, "the request failed, attempts: {}: {error}", sent.attempts)
            }
            Self::TimedOut { sent } => {
                write!(f, "the request was not answered in time, attempts: {}", sent.attempts)
            }
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for ClientError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotSent(error) => Some(error),
            Self::Failed { error, .. } => Some(error),
            Self::TimedOut { .. } => None,
        }
    }
}
