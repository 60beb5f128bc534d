//! The meaning of the client's errors for a request.

use sqlx::Error;
use sqlx::mysql::MySqlDatabaseError;

use crate::sql::unconnected;
use crate::store::{Operation, StoreError, StoreErrorKind};

/// Two transactions waited for each other, or in Galera changed one row on two nodes; this one was
/// rolled back completely.
const DEADLOCK: u16 = 1213;
/// Another transaction held a lock for as long as `innodb_lock_wait_timeout` allows.
pub(crate) const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// There is no savepoint of that name.
pub(super) const NO_SAVEPOINT: u16 = 1305;
/// Under `innodb_snapshot_isolation`, a row has changed since the transaction's snapshot; the
/// transaction was rolled back completely.
const SNAPSHOT_TOO_OLD: u16 = 1020;
/// Another member of a Group Replication was faster, and the transaction was rolled back at its
/// commit.
const NOT_CERTIFIED: u16 = 3101;
/// A commit failed, for the reason whose number is in the message: see [`is_conflict`].
const ERROR_DURING_COMMIT: u16 = 1180;
/// A row with this primary key exists.
pub(super) const DUPLICATE_KEY: u16 = 1062;
/// The server's parser does not know the statement.
pub(super) const SYNTAX: u16 = 1064;
/// An index that the statement names is missing.
pub(super) const NO_SUCH_INDEX: u16 = 1176;
/// A table is missing.
pub(super) const NO_TABLE: u16 = 1146;

/// The server accepts no writes: `read_only` and `super_read_only`, or a read-only transaction or
/// engine.
const READ_ONLY: [u16; 3] = [1290, 1792, 1836];
/// The node is not part of a working cluster.
const NO_CLUSTER: u16 = 1047;

/// Converts the error of a request that was sent.
pub(super) fn store_error(operation: Operation, error: Error) -> StoreError {
    let (kind, detail) = meaning(&error);
    let store_error = StoreError::new(kind, operation);
    match detail {
        Some(detail) => store_error.with_detail(detail),
        None => store_error,
    }
    .with_source(error)
}

/// Converts the error of getting a connection: no request was sent, so nothing was applied.
/// `is_local` means that it would be a connection to a socket in the file system.
pub(super) fn connection_error(operation: Operation, error: Error, is_local: bool) -> StoreError {
    let unfit = match &error {
        Error::Io(error) => unconnected::reason(error, is_local),
        // The URL itself was parsed before. Without TLS, this step would encrypt a password.
        Error::Configuration(reason) if reason.to_string().contains("RSA") => Some(
            "the user's password is not sent without encryption (`caching_sha2_password`): the \
             server has to accept TLS, and `ssl-mode` in the URL must not be DISABLED",
        ),
        Error::Configuration(_) => Some("the certificate or the key of the client is invalid"),
        _ => None,
    };
    if let Some(unfit) = unfit {
        return StoreError::new(StoreErrorKind::Config, operation)
            .with_detail(unfit)
            .with_source(error);
    }
    match meaning(&error) {
        (StoreErrorKind::Unavailable, _) => no_connection(operation).with_source(error),
        _ => store_error(operation, error),
    }
}

pub(super) fn no_connection(operation: Operation) -> StoreError {
    StoreError::new(StoreErrorKind::Refused, operation)
        .with_detail("there is no connection to the server")
}

/// Returns the server's number of an error that it answered with.
pub(super) fn number(error: &Error) -> Option<u16> {
    let database = error.as_database_error()?;
    database.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// Returns true if the server has rolled back the whole transaction because of concurrent ones.
pub(crate) fn is_conflict(error: &MySqlDatabaseError) -> bool {
    match error.number() {
        DEADLOCK | SNAPSHOT_TOO_OLD | NOT_CERTIFIED => true,
        // "Got error 149 - 'Lock deadlock; Retry transaction' during COMMIT" is the report of a
        // Group Replication member that was rolled back for another one. After any other error the
        // commit may have happened.
        ERROR_DURING_COMMIT => error.message().contains("error 149"),
        _ => false,
    }
}

/// Applies [`is_conflict`] to any error.
pub(super) fn has_conflict(error: &Error) -> bool {
    let database = error.as_database_error().and_then(|error| error.try_downcast_ref());
    database.is_some_and(is_conflict)
}

/// Returns true if the server may have a successor that new connections find: it accepts no writes,
/// or has left its cluster.
pub(super) fn is_demoted(error: &StoreError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    source
        .and_then(number)
        .is_some_and(|number| READ_ONLY.contains(&number) || number == NO_CLUSTER)
}

/// Classifies an error. `Refused` and the other kinds that promise that nothing was applied are
/// returned only where that is certain: the statement was never begun, or was rolled back before
/// its error was sent. A statement that was interrupted may have been committed.
fn meaning(error: &Error) -> (StoreErrorKind, Option<&'static str>) {
    use StoreErrorKind::{Config, Refused, Unavailable};
    match error {
        Error::Database(_) if has_conflict(error) => {
            (Refused, Some("the server rolled the transaction back in favour of others"))
        }
        Error::Database(_) => number(error).map_or((Unavailable, None), meaning_of_number),
        Error::Configuration(_) => (Config, Some("the URL is invalid")),
        Error::Tls(_) => {
            (Config, Some("no encrypted connection: see `ssl-mode` and `ssl-ca` in the URL"))
        }
        Error::PoolTimedOut => (Refused, Some("no connection was free or could be made in time")),
        Error::PoolClosed => (Refused, Some("the pool was closed")),
        _ => (Unavailable, None),
    }
}

fn meaning_of_number(number: u16) -> (StoreErrorKind, Option<&'static str>) {
    use StoreErrorKind::{Config, Full, Refused, Unavailable, Unsupported};
    match number {
        NO_TABLE => {
            (Config, Some("the table is missing: run `store.migrate()` once, or the shipped SQL"))
        }
        1046 => {
            (Config, Some("no database is selected: name it in the URL, or in the table's name"))
        }
        1049 => (Config, Some("the server has no database of that name")),
        1045 | 1251 | 1698 => (Config, Some("the server refuses the user or the password")),
        1044 | 1142 | 1143 | 1227 => (
            Config,
            Some("the user lacks a privilege that the store needs; see the store's documentation"),
        ),
        1048 | 1054 | 1136 | 1264 | 1364 | 1366 | 1406 => {
            (Config, Some("the table does not match what `store.migrate()` creates"))
        }
        SYNTAX => {
            (Unsupported, Some("the server's dialect is not that of MariaDB 10.5 or MySQL 8.0"))
        }
        1153 => (
            Config,
            Some("the record is larger than the server accepts: raise `max_allowed_packet`"),
        ),
        1665 => (Config, Some("the server's `binlog_format` is STATEMENT: use MIXED or ROW")),
        1114 => (Full, Some("the table or the disk is full")),
        LOCK_WAIT_TIMEOUT => {
            (Refused, Some("another session holds the lock of the row or the table"))
        }
        number if READ_ONLY.contains(&number) => {
            (Refused, Some("the server is read-only: is it a replica?"))
        }
        1040 | 1203 | 1226 => (Refused, Some("the server has no more connections for this user")),
        NO_CLUSTER => (Refused, Some("the node is not part of a working cluster")),
        _ => (Unavailable, None),
    }
}

#[cfg(test)]
mod tests {
    use super::{StoreErrorKind, meaning_of_number};

    #[test]
    fn what_the_server_may_have_applied_is_unknown() {
        // A killed connection, a shutdown, an interrupted statement, a failed COMMIT.
        for number in [1053, 1152, 1158, 1159, 1160, 1161, 1180, 1317, 1927, 1969, 3024] {
            assert_eq!(meaning_of_number(number).0, StoreErrorKind::Unavailable, "{number}");
        }
    }
}
