//! Transient errors: the transaction can succeed when it is run again.

use std::error::Error as StdError;

use sqlx::error::DatabaseError;

use crate::error::{Error, ErrorKind};
use crate::store::transaction::KeepsLock;

/// Returns true if the transaction can succeed when it is run again: a deadlock, a serialization
/// failure, a lock that was held for too long, a connection that was lost before the commit, or a
/// lock that the transaction keeps from a call that it waits for.
///
/// The client's error is one of the sources of the body's error. Error types that delegate to their
/// source (`#[error(transparent)]`) hide the client's own error and leave the server's error in the
/// chain.
///
/// The cause of an effect that [may have happened](may_have_happened) has ended some other
/// transaction or call, and says nothing about this one.
pub(super) fn is_passing(error: &(dyn StdError + 'static)) -> bool {
    if may_have_happened(error) {
        return false;
    }
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        let of_client = error.downcast_ref::<sqlx::Error>();
        let of_server = of_client.and_then(sqlx::Error::as_database_error);
        let of_server =
            of_server.or_else(|| error.downcast_ref::<Box<dyn DatabaseError>>().map(Box::as_ref));
        error.is::<KeepsLock>()
            || of_client.is_some_and(is_connection_lost)
            || of_server.is_some_and(|error| is_rolled_back(error) || is_session_ended(error))
    })
}

/// Returns true if one of the sources of `error` says that an effect may have happened: in a
/// transaction inside this one whose commit got no answer, or in a call. Running it again might
/// repeat that effect, or end with another error, which hides that it may have happened.
pub(super) fn may_have_happened(error: &(dyn StdError + 'static)) -> bool {
    // `find`, and not a search through the sources, which pass over the error inside a transparent
    // wrapper.
    std::iter::successors(Error::find(error), |&error| error.source().and_then(Error::find))
        .any(|error| error.kind() == ErrorKind::NotStored || error.has_repeated_effects())
}

/// Returns true if the transaction is run again because it keeps a lock from a call that it would
/// wait for.
pub(super) fn keeps_lock(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(<dyn StdError>::is::<KeepsLock>)
}

/// The source of an error of a request in a transaction that was given up: its answer is still to
/// come on the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unanswered;

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is still to come")
    }
}

impl StdError for Unanswered {}

/// Returns true if one of the sources of `error` says that the connection waits for an answer.
pub(super) fn is_unanswered(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .any(<dyn StdError>::is::<Unanswered>)
}

/// Like [`is_passing`], for an error of a statement on the transaction's own connection before the
/// commit was sent.
pub(super) fn is_passing_before_commit(error: &sqlx::Error) -> bool {
    is_passing(error) || has_lost_session(error)
}

/// Returns true if the transaction's own connection was lost, which rolled the transaction back if
/// its commit had not been sent. A server that ends a session says so with a severity, whatever the
/// reason.
pub(super) fn has_lost_session(error: &sqlx::Error) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.as_database_error() {
        use sqlx::postgres::{PgDatabaseError, PgSeverity};
        let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
        if matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic)) {
            return true;
        }
    }
    is_connection_lost(error)
}

/// Returns true if the database says that it has undone the transaction, or the statement that made
/// the transaction fail.
pub(super) fn is_rolled_back(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        use crate::mysql::error::{LOCK_WAIT_TIMEOUT, is_conflict};
        return is_conflict(error) || error.number() == LOCK_WAIT_TIMEOUT;
    }
    #[cfg(feature = "sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        // The file or a table is locked; the extended codes have more bits.
        let code = DatabaseError::code(error)
            .and_then(|code| code.parse::<u32>().ok())
            .unwrap_or_default();
        return matches!(code & 0xff, 5 | 6);
    }
    // Serialization failure and deadlock (PostgreSQL manual, appendix A).
    error.code().is_some_and(|code| matches!(&*code, "40001" | "40P01"))
}

/// Returns true if the answer to a commit says for certain that nothing was committed: because of a
/// constraint that is checked at the end, or for lack of something.
pub(super) fn is_refused(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        // An error after the commit ends the session (FATAL), and may arrive when the commit is
        // already on its way to a standby. A pooler in between may report one for a server that it
        // has lost.
        return matches!(error.severity(), sqlx::postgres::PgSeverity::Error)
            && !is_of_a_connection(error.code());
    }
    #[cfg(feature = "sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        // A constraint; the extended codes have more bits.
        let code = DatabaseError::code(error)
            .and_then(|code| code.parse::<u32>().ok())
            .unwrap_or_default();
        return code & 0xff == 19;
    }
    let _ = error;
    false
}

/// Returns true if a commit [was refused](is_refused) for what the transaction wrote: it is refused
/// again as long as the data are as they are. False if it lacked a lock, or a resource.
pub(super) fn is_refused_for_data(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        return is_about_data(error.code());
    }
    // A constraint of SQLite.
    is_refused(error)
}

/// Returns true if the code is about a constraint, or is the one of an exception that a trigger
/// raises by itself (PostgreSQL manual, appendix A).
#[cfg(feature = "postgres")]
fn is_about_data(code: &str) -> bool {
    ["23", "P0"].iter().any(|class| code.starts_with(class))
}

/// Returns true if the code is about connections, interventions or faults of the system (PostgreSQL
/// manual, appendix A): it is then unknown how far the statement got.
#[cfg(feature = "postgres")]
fn is_of_a_connection(code: &str) -> bool {
    code == "40003" || ["08", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
}

fn is_connection_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => is_session_ended(&**error),
        _ => false,
    }
}

/// Returns true if the server ends the connection, or does not accept one now.
fn is_session_ended(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return is_number_of_end(error.number());
    }
    // PostgreSQL manual, appendix A: shutdowns, too many connections, and the timeouts of
    // transactions and sessions.
    error.code().is_some_and(|code| {
        matches!(&*code, "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "25P03" | "25P04")
    })
}

/// Returns true for too many connections, a shutdown, a connection that was killed, and one that
/// was idle for too long (MySQL).
#[cfg(feature = "mysql")]
const fn is_number_of_end(number: u16) -> bool {
    matches!(number, 1040 | 1053 | 1927 | 4031)
}

#[cfg(all(test, feature = "mysql"))]
mod tests {
    use super::is_number_of_end;

    /// The tests run on MariaDB, which closes such a connection without an error. MySQL gives the
    /// reason.
    #[test]
    fn a_session_that_mysql_ended_because_it_was_idle_is_a_lost_connection() {
        assert!(is_number_of_end(4031));
    }
}

#[cfg(all(test, feature = "postgres"))]
mod postgres_tests {
    use super::{is_about_data, is_of_a_connection};

    #[test]
    fn a_commit_that_lacked_a_lock_or_room_is_not_refused_for_its_data() {
        for code in ["23503", "23505", "23514", "P0001", "P0004"] {
            assert!(is_about_data(code), "{code}");
        }
        for code in ["55P03", "53100", "53200", "54000", "0A000", "42501"] {
            assert!(!is_about_data(code), "{code}");
        }
    }

    #[test]
    fn an_answer_to_a_commit_about_the_connection_promises_nothing() {
        // A pooler that lost its server, an unknown completion, a shutdown, a disk.
        for code in ["08P01", "08006", "40003", "57P01", "58030", "XX000"] {
            assert!(is_of_a_connection(code), "{code}");
        }
        // Constraints that are checked at the commit.
        for code in ["23503", "23505", "40001", "P0001"] {
            assert!(!is_of_a_connection(code), "{code}");
        }
    }
}
