//! The meaning of the client's errors for a request.

use sqlx::Error;
use sqlx::error::DatabaseError;

use crate::store::{Operation, StoreError, StoreErrorKind};

/// Primary result codes of SQLite (<https://www.sqlite.org/rescode.html>).
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READ_ONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANNOT_OPEN: i32 = 14;
const NO_DATABASE: i32 = 26;

pub(super) fn store_error(operation: Operation, error: Error) -> StoreError {
    let (kind, detail) = meaning(&error);
    let store_error = StoreError::new(kind, operation);
    match detail {
        Some(detail) => store_error.with_detail(detail),
        None => store_error,
    }
    .with_source(error)
}

/// The message for a `BEGIN` in a transaction, which has no code of its own.
const NESTED: &str = "cannot start a transaction within a transaction";

fn meaning(error: &Error) -> (StoreErrorKind, Option<&'static str>) {
    use StoreErrorKind::{Config, Corrupt, Refused, Unavailable};
    match error {
        error if is_missing_table(error) => (
            Config,
            Some("the table is missing: call `migrate` on the store once, or run the shipped SQL"),
        ),
        Error::Database(database) if database.message().starts_with(NESTED) => (
            Refused,
            Some("the connection is in a transaction that other code has begun and not ended"),
        ),
        Error::Database(database) => {
            match database.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0) & 0xff {
                BUSY | LOCKED => (Refused, Some("another connection holds the file's lock")),
                READ_ONLY => (Config, Some("the file or its directory cannot be written")),
                CANNOT_OPEN => {
                    (Config, Some("the file cannot be opened: does its directory exist?"))
                }
                CORRUPT | NO_DATABASE => {
                    (Corrupt, Some("the file is not an intact SQLite database"))
                }
                FULL => (Refused, Some("the disk is full")),
                _ => (Unavailable, None),
            }
        }
        Error::Configuration(_) => (Config, None),
        Error::PoolTimedOut => (Refused, Some("all connections are busy")),
        Error::PoolClosed => (Refused, Some("the pool was closed")),
        _ => (Unavailable, None),
    }
}

/// Returns true if the file has no such table.
pub(super) fn is_missing_table(error: &Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().starts_with("no such table"))
}

/// The same for an error that is already a [`StoreError`].
pub(super) fn is_table_missing(error: &StoreError) -> bool {
    source(error).is_some_and(is_missing_table)
}

/// Returns true if there is no savepoint of that name.
pub(super) fn is_savepoint_missing(error: &StoreError) -> bool {
    let error = source(error).and_then(Error::as_database_error);
    error.is_some_and(|error| error.message().starts_with("no such savepoint"))
}

fn source(error: &StoreError) -> Option<&Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// Returns true if another connection held the file's lock for too long. Nothing was applied.
pub(super) fn is_busy(error: &StoreError) -> bool {
    let code = source(error).and_then(Error::as_database_error).and_then(DatabaseError::code);
    code.and_then(|code| code.parse::<i32>().ok())
        .is_some_and(|code| matches!(code & 0xff, BUSY | LOCKED))
}
