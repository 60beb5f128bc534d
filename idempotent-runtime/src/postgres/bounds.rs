//! Time limits for the server's waiting and work on a statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, PgConnection, Row as _, raw_sql};

/// The time limits of a statement on the server.
///
/// A statement that the server gives up before the client does has certainly not taken effect. A
/// claim that keeps waiting after the client has stopped listening would leave a record without an
/// owner, and such a read a session that does nothing but wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The limit for each lock.
    pub(super) locks: Duration,
    /// The limit for the whole statement.
    pub(super) whole: Duration,
}

impl Bounds {
    pub(super) fn of(response_timeout: Duration) -> Self {
        Self { locks: response_timeout * 3 / 4, whole: response_timeout * 9 / 10 }
    }

    /// Returns the settings with which a session begins.
    pub(super) fn settings(self) -> [(&'static str, String); 2] {
        [
            ("lock_timeout", millis(self.locks).to_string()),
            ("statement_timeout", millis(self.whole).to_string()),
        ]
    }

    /// Returns the statements that bound those after them in the same text. The server runs all of
    /// them in one transaction, with which the settings end, and takes the locks of a statement
    /// only after the one before it.
    pub(super) fn before(self) -> String {
        let settings = self.settings().map(|(name, value)| format!("SET LOCAL {name} = {value}; "));
        settings.concat()
    }
}

/// Zero would mean no limit.
fn millis(duration: Duration) -> u128 {
    duration.as_millis().max(1)
}

/// The bounds that a store requested for its sessions when they began, and whether the sessions
/// have them, as far as is known. A pooler may have dropped them.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    bounds: Bounds,
    are_kept: Arc<AtomicBool>,
}

impl Asked {
    /// Creates the request for `bounds`. `by_sessions` is true if each session is checked when it
    /// begins.
    pub(super) fn new(bounds: Bounds, by_sessions: bool) -> Self {
        Self { bounds, are_kept: Arc::new(AtomicBool::new(by_sessions)) }
    }

    pub(super) fn are_kept(&self) -> bool {
        self.are_kept.load(Relaxed)
    }

    /// Checks a session that has just begun. It is not an error if it has no bounds or longer ones:
    /// from then on each statement of the store brings its own.
    pub(super) async fn read_back(self, connection: &mut PgConnection) -> Result<(), Error> {
        let millis_of = |name| {
            format!("(extract(epoch FROM current_setting('{name}')::interval) * 1000)::int8")
        };
        let asked = self.bounds.settings();
        let question =
            format!("SELECT {}", asked.each_ref().map(|(name, _)| millis_of(*name)).join(", "));
        let row = raw_sql(AssertSqlSafe(question)).fetch_one(connection).await?;
        let asked = [self.bounds.locks, self.bounds.whole].map(millis);
        let mut are_kept = true;
        for (column, asked) in asked.into_iter().enumerate() {
            let found = row.try_get::<i64, _>(column)?;
            are_kept &= u128::try_from(found).is_ok_and(|found| (1..=asked).contains(&found));
        }
        if !are_kept && self.are_kept.swap(false, Relaxed) {
            tracing::info!(
                "something between the store and the server drops `lock_timeout` and \
                 `statement_timeout`: each statement sets them itself, and reads are not prepared"
            );
        }
        Ok(())
    }
}
