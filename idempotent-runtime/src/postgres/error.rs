//! The meaning of the client's errors for a request.

use sqlx::Error;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::sql::unconnected;
use crate::store::{Operation, StoreError, StoreErrorKind};

type Meaning = (StoreErrorKind, Option<&'static str>);

const MISSING: &str =
    "the table is missing: call `migrate` on the store once, or run the shipped SQL";
const OTHER_TABLE: &str =
    "the table is not as this release creates it: was it changed, or created by another release?";
const SHARED_SESSION: &str =
    "a pooler shares its sessions between clients: see `without_prepared_statements`";
const ANSWER_OF_ANOTHER: &str = "a row is not the statement's own: another client has prepared a \
     statement of the same name in this session";

/// Converts the failure of a statement that is a transaction of its own.
pub(super) fn store_error(operation: Operation, error: Error) -> StoreError {
    described(operation, statement_meaning(&error), error)
}

/// Converts the failure to get a connection: nothing was sent, so nothing was applied. `is_local`
/// means that it would be a connection to a socket in the file system.
pub(super) fn connection_error(operation: Operation, error: Error, is_local: bool) -> StoreError {
    described(operation, connection_meaning(&error, is_local), error)
}

fn described(operation: Operation, (kind, detail): Meaning, error: Error) -> StoreError {
    let store_error = StoreError::new(kind, operation);
    match detail {
        Some(detail) => store_error.with_detail(detail),
        None => store_error,
    }
    .with_source(error)
}

/// Returns true if the server rolled the statement back because of concurrent transactions.
pub(super) fn is_conflict(error: &Error) -> bool {
    matches!(refusal(error), Some("40001" | "40P01"))
}

/// Returns true if the statement waited for a lock for as long as `lock_timeout` allows.
pub(super) fn is_lock_timeout(error: &Error) -> bool {
    refusal(error) == Some("55P03")
}

/// Returns true if the statement was given up because it, or a lock that it waited for, took too
/// long.
pub(super) fn is_out_of_time(error: &Error) -> bool {
    matches!(refusal(error), Some("55P03" | "57014"))
}

/// Returns true if the statement came after one that failed in the same transaction.
pub(super) fn is_aborted(error: &Error) -> bool {
    refusal(error) == Some("25P02")
}

/// Returns true if there is no savepoint of that name, or no transaction: a body can end its own by
/// hand.
pub(super) fn is_savepoint_missing(error: &Error) -> bool {
    matches!(refusal(error), Some("3B001" | "25P01"))
}

/// Returns true if the server accepts no writes. It still answers reads.
pub(super) fn is_read_only(error: &StoreError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    source.is_some_and(|source| refusal(source) == Some("25006"))
}

/// Returns true if the server says that there is no such table.
pub(super) fn is_missing_table(error: &Error) -> bool {
    matches!(refusal(error), Some("42P01" | "3F000"))
}

/// Returns the code of an error that ended the transaction and nothing else. An error that ends the
/// session may arrive after the commit: the server may have been shut down while it waited for its
/// standbys.
fn refusal(error: &Error) -> Option<&str> {
    let error = server_error(error)?;
    matches!(error.severity(), PgSeverity::Error).then(|| error.code())
}

fn server_error(error: &Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// Classifies the failure of a statement. The codes are those of
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>. A code that is not listed here
/// may come from something between the client and the server, and promises nothing.
fn statement_meaning(error: &Error) -> Meaning {
    use StoreErrorKind::{Config, Corrupt, Refused, Unavailable, Unsupported};
    match refusal(error) {
        Some("42P01" | "3F000") => (Config, Some(MISSING)),
        Some("42501") => (
            Config,
            Some("the role may not do this; see the store's documentation for the rights it needs"),
        ),
        Some("25P01") => (Config, Some("the connection is not in a transaction: begin one first")),
        Some("25006") => (Refused, Some("the server is read-only: is it a standby?")),
        Some("55P03") => {
            (Refused, Some("another session holds the lock of the record or of its table"))
        }
        Some("57014") => {
            (Refused, Some("the server cancelled the statement (`statement_timeout`)"))
        }
        Some("53100") => (Refused, Some("the server's disk is full")),
        Some("22021" | "22P05") => {
            (Unsupported, Some("the database cannot store a character of the operation's name"))
        }
        Some("XX001" | "XX002") => {
            (Corrupt, Some("the server found its table or index to be damaged"))
        }
        // The statement's name is unknown, or another client's, whose parameters are others.
        Some("26000" | "42P05" | "22P03") => (Config, Some(SHARED_SESSION)),
        Some("08P01") if is_reported_by_server(error) => (Config, Some(SHARED_SESSION)),
        None if is_answer_of_another(error) => (Unavailable, Some(SHARED_SESSION)),
        Some("40003") | None => (Unavailable, None),
        Some(code) => match code.get(..2) {
            // Conflicts, a lack of space, a trigger or a constraint of the user.
            Some("40" | "53" | "55" | "22" | "23" | "P0") => (Refused, None),
            Some("42") => (Config, Some(OTHER_TABLE)),
            _ => (Unavailable, None),
        },
    }
}

/// Returns true if the server itself has found the error, and not a pooler before it, which does
/// not name the place in the server's source.
fn is_reported_by_server(error: &Error) -> bool {
    server_error(error).is_some_and(|error| error.routine().is_some())
}

/// The error of a request that was answered by another statement than its own.
pub(super) fn answer_of_another() -> Error {
    Error::Protocol(String::from(ANSWER_OF_ANOTHER))
}

fn is_answer_of_another(error: &Error) -> bool {
    matches!(error, Error::Protocol(message) if message == ANSWER_OF_ANOTHER)
}

fn connection_meaning(error: &Error, is_local: bool) -> Meaning {
    use StoreErrorKind::{Config, Refused};
    if let Some(error) = server_error(error) {
        return match error.code() {
            "28000" | "28P01" => (Config, Some("the server refuses the role or the password")),
            "3D000" => (Config, Some("there is no such database")),
            "42501" => (Config, Some("the role may not connect to the database")),
            _ if error.message().contains("startup parameter") => (
                Config,
                Some(
                    "the pooler refuses the session's startup parameters: see \
                     `without_prepared_statements`",
                ),
            ),
            _ => (Refused, Some("the server accepts no connections at the moment")),
        };
    }
    if let Error::Io(error) = error
        && let Some(reason) = unconnected::reason(error, is_local)
    {
        return (Config, Some(reason));
    }
    match error {
        Error::Configuration(_) => (Config, Some("the connection URL is invalid")),
        Error::Tls(_) => (
            Config,
            Some("TLS failed: a certificate was rejected, or the server does not accept TLS"),
        ),
        Error::PoolTimedOut => {
            (Refused, Some("no connection in time: all are busy, or the server accepts none"))
        }
        Error::PoolClosed => (Refused, Some("the pool was closed")),
        _ => (Refused, Some("no connection to the server")),
    }
}
