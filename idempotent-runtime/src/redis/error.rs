//! The meaning of the client's errors for a request.

use std::error::Error;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::certificates;
use crate::store::{Operation, StoreError, StoreErrorKind};

/// The script's own error for a value that is not a record.
const UNREADABLE: &str = "UNREADABLE";

pub(super) fn store_error(operation: Operation, error: RedisError) -> StoreError {
    let (kind, detail) = meaning(&error);
    let store_error = StoreError::new(kind, operation);
    let store_error = match detail {
        Some(detail) => store_error.with_detail(detail),
        None => store_error,
    };
    store_error.with_source(error)
}

/// Returns true if the value of the key is not a record of this release.
pub(super) fn is_foreign(error: &RedisError) -> bool {
    meaning(error).0 == StoreErrorKind::Corrupt
}

fn meaning(error: &RedisError) -> (StoreErrorKind, Option<&'static str>) {
    use StoreErrorKind::{Config, Corrupt, Refused, Unavailable, Unsupported};
    match (error.kind(), error.code()) {
        (_, Some(UNREADABLE | "WRONGTYPE")) => {
            (Corrupt, Some("another program or a newer release wrote this key"))
        }
        (_, Some("OOM")) => {
            (Refused, Some("the server is out of memory: raise `maxmemory`, or shorten `ttl`"))
        }
        (_, Some("NOREPLICAS")) => {
            (Refused, Some("too few replicas are connected (`min-replicas-to-write`)"))
        }
        (_, Some("MISCONF")) => (Refused, Some("the server cannot persist and refuses writes")),
        (_, Some("BUSY")) => (Refused, Some("the server is busy with a script")),
        (_, Some("NOAUTH" | "WRONGPASS")) | (ErrorKind::AuthenticationFailed, _) => {
            (Config, Some("the server refuses the user or the password in the URL"))
        }
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => (
            Config,
            Some(
                "the server's ACL refuses a command that the store needs; see the store's documentation",
            ),
        ),
        (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => {
            (Refused, Some("the server is a read-only replica"))
        }
        (
            ErrorKind::Server(
                ServerErrorKind::ExecAbort
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask,
            ),
            _,
        ) => (Refused, None),
        (ErrorKind::RESP3NotSupported, _) => {
            (Unsupported, Some("the server is older than Redis 7.0"))
        }
        (ErrorKind::InvalidClientConfig, _) => {
            (Config, Some("the connection URL or its certificates are invalid"))
        }
        (ErrorKind::Io, _) if is_certificate_refused(error) => (
            Config,
            Some(
                "a certificate was rejected: the server's by this client, or this client's by the \
                 server",
            ),
        ),
        (ErrorKind::Parse, _) => (
            Unavailable,
            Some("the answer does not follow the Redis protocol: is it a Redis server?"),
        ),
        _ if error.to_string().contains("has no permissions to run") => (
            Config,
            Some(
                "the server's ACL refuses a command that the store needs; see the store's documentation",
            ),
        ),
        // It is unknown what the script did before.
        _ if error.to_string().contains("can't run this command") => (
            Unavailable,
            Some("the server's ACL refuses a command of a script; see the store's documentation"),
        ),
        _ => (Unavailable, None),
    }
}

/// Returns the refusal for which the server has aborted a transaction, as if its command had been
/// sent alone.
pub(super) fn first_refusal(error: RedisError) -> RedisError {
    let first = error
        .clone()
        .into_server_errors()
        .and_then(|errors| errors.first().map(|(_, first)| first.clone()));
    first.map_or(error, RedisError::from)
}

/// Returns true if the server's ACL refuses a command: the user is known, but may not run it.
pub(super) fn is_refused_command(error: &StoreError) -> bool {
    let source = Error::source(error).and_then(|source| source.downcast_ref::<RedisError>());
    source.is_some_and(|source| source.kind() == ErrorKind::Server(ServerErrorKind::NoPerm))
}

fn is_certificate_refused(error: &RedisError) -> bool {
    let shared =
        error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    shared.and_then(|cause| cause.downcast_ref()).is_some_and(certificates::are_refused)
}
