//! The statements, with the table's name filled in.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::sql::census::{self, Dialect, Stride};
use crate::sql::{COLUMNS, FORGOTTEN, FORMAT, IN_PROGRESS, TableName, UNFINISHED, filter, stretch};

/// The server's time in milliseconds. It advances within a statement: one that waited for a lock
/// sees the time after the wait.
const NOW: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
/// The same in microseconds.
const MICROS: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
/// The time at which the server received the request, in microseconds.
const RECEIVED: &str = "floor(extract(epoch FROM statement_timestamp()) * 1000000)::bigint";
/// A row with the server's time in milliseconds and microseconds, the same for the whole statement.
const CLOCK: &str = "SELECT micros / 1000 AS now, micros
    FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros) AS tick";
/// The columns of a first claim that are times, or derived from the time. The claim is built for
/// time zero, and the server adds its own.
const TIMES: [&str; 4] = ["created_at", "lease_until", "expires_at", "purge_at"];
const TICKS: [&str; 2] = ["fence", "revision"];

/// The place in a statement's text where its mark belongs.
const MARK: &str = "$mark";

/// A statement whose answer shows that it is this statement's.
///
/// A prepared statement has a name that is its own only within its session. A pooler that gives each
/// transaction another session, and does not know prepared statements, runs what another client has
/// prepared under the name: the claim of one service is then written into the table of another,
/// and looks like a success. So each row begins with a mark, a number that is computed from the
/// text with the table's name in it. It comes first because a row of another statement may have
/// fewer columns.
#[derive(Debug)]
pub(super) struct Statement {
    text: Arc<str>,
    mark: i64,
}

impl Statement {
    /// `text` has [`MARK`] as the first column of each row.
    pub(super) fn new(text: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(text).into();
        let mark = digest[..8].iter().fold(0, |mark, byte| mark << 8 | i64::from(*byte));
        Self { text: text.replace(MARK, &format!("({mark})::bigint")).into(), mark }
    }

    pub(super) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Returns true if the statement has returned `row`.
    pub(super) fn has_returned(&self, row: &PgRow) -> bool {
        row.try_get(0).is_ok_and(|mark: i64| mark == self.mark)
    }
}

#[derive(Debug)]
pub(super) struct Statements {
    pub(super) claim: Statement,
    pub(super) read: Statement,
    pub(super) insert: Statement,
    /// The same with a fence that is not below the time at which the server received it, for claims
    /// that may wait for another transaction. Returns the fence, and how long the statement took.
    pub(super) insert_late: Statement,
    /// Writes the record of a first claim that has its result already, if the transaction finds the
    /// store's own table. It may wait for another transaction, for as many milliseconds as its last
    /// value says, and restores the session's own bound when it has written the row. Returns the
    /// time, a fence that is not below the time after the wait, and how long it took.
    pub(super) insert_first: Statement,
    /// Restores the session's own bound where `insert_first` has written nothing.
    pub(super) restore_bound: Statement,
    /// Raises the fence of the record `$4` of the owner `$5` to the current time, and returns it.
    pub(super) raise: String,
    pub(super) replace: Statement,
    pub(super) delete: Statement,
    pub(super) commit: Statement,
    pub(super) release: Statement,
    pub(super) renew: Statement,
    pub(super) renewed: Statement,
    pub(super) page: Statement,
    pub(super) census: [Statement; Stride::ALL.len()],
    pub(super) seen: Arc<Statement>,
    pub(super) purge: Statement,
    pub(super) identity: Statement,
    /// Fails at once if another session keeps the table from being written.
    pub(super) lock: String,
}

impl Statements {
    /// Builds the statements. `lock_timeout` is the time that each write waits for a lock, whatever
    /// the session's setting. Without it, in a transaction of the user, the session decides, and
    /// an expired record is written all the same: only its owner has it.
    ///
    /// The statement sets it itself, before it reaches its first row, and it ends with the
    /// statement's transaction. That needs no round trip, leaves nothing in a session that belongs
    /// to other code, and does not depend on what a pooler has made of a session's settings. The
    /// lock of the table comes before that, when the statement is planned. A statement that has
    /// waited too long for it (behind an `ALTER TABLE`, for example), so that its caller has given
    /// up, finds no row: `now()` is the time at which the transaction began, that is, at which the
    /// server received the statement.
    #[expect(clippy::too_many_lines, reason = "one statement after the other")]
    pub(super) fn new(name: &TableName, lock_timeout: Option<Duration>) -> Self {
        let bound = lock_timeout.map_or(String::from("true"), |timeout| {
            let timeout = timeout.as_millis().max(1);
            format!(
                "(SELECT set_config('lock_timeout', '{timeout}', true)) IS NOT NULL
                 AND clock_timestamp() < now() + interval '{timeout} ms'"
            )
        });
        let is_not_over =
            lock_timeout.map_or(String::from("true"), |_| format!("expires_at > {NOW}"));
        let table = name.quoted('"');
        let columns = COLUMNS.join(", ");
        let without_body = columns.replace(", body", ", ''::bytea");
        let places: Vec<_> = (1..=COLUMNS.len()).map(|number| format!("${number}")).collect();
        let assignments: Vec<_> = COLUMNS
            .iter()
            .zip(&places)
            .skip(1)
            .map(|(column, place)| format!("{column} = {place}"))
            .collect();
        let first: Vec<_> =
            COLUMNS.iter().zip(&places).map(|(column, place)| first_value(column, place)).collect();
        let late: Vec<_> =
            COLUMNS.iter().zip(&places).map(|(column, place)| late_value(column, place)).collect();
        // The values of a guard follow those of a row.
        let (owner, revision) = (COLUMNS.len() + 1, COLUMNS.len() + 2);
        let statement = |text: String| Statement::new(&text);
        Self {
            // Two branches of one snapshot: a row that `found` does not see and `claimed` cannot
            // insert was written in between, and then no row is returned.
            claim: statement(format!(
                "WITH clock AS MATERIALIZED ({CLOCK}),
                 found AS MATERIALIZED (SELECT {columns} FROM {table} WHERE key_hash = $1),
                 claimed AS (
                     INSERT INTO {table} ({columns})
                     SELECT {} FROM clock WHERE NOT EXISTS (SELECT 1 FROM found) AND {bound}
                     ON CONFLICT (key_hash) DO NOTHING
                     RETURNING {columns}
                 )
                 SELECT {MARK}, now, {columns}, true FROM claimed CROSS JOIN clock
                 UNION ALL SELECT {MARK}, now, {columns}, false FROM found CROSS JOIN clock",
                first.join(", ")
            )),
            read: statement(format!(
                "SELECT {MARK}, now, {columns}, micros FROM ({CLOCK}) AS clock LEFT JOIN {table} ON key_hash = $1"
            )),
            insert: statement(format!(
                "INSERT INTO {table} ({columns}) SELECT {} WHERE {bound} ON CONFLICT (key_hash) DO NOTHING RETURNING {MARK}",
                places.join(", ")
            )),
            insert_late: statement(format!(
                "INSERT INTO {table} ({columns}) SELECT {} ON CONFLICT (key_hash) DO NOTHING
                 RETURNING {MARK}, fence, {MICROS} - {RECEIVED}",
                late.join(", ")
            )),
            insert_first: statement(insert_first(name, &table, &columns, &first)),
            restore_bound: statement(format!(
                "SELECT {MARK}, set_config('lock_timeout',
                     coalesce(nullif(current_setting('{BOUND_BEFORE}', true), ''), current_setting('lock_timeout')), true)"
            )),
            raise: format!(
                "UPDATE {table} SET fence = greatest(fence, {MICROS}) WHERE key_hash = $4 AND owner = $5 RETURNING fence"
            ),
            replace: statement(format!(
                "UPDATE {table} SET {} WHERE key_hash = $1 AND owner = ${owner} AND revision = ${revision} AND {bound} RETURNING {MARK}",
                assignments.join(", ")
            )),
            delete: statement(format!(
                "DELETE FROM {table} WHERE key_hash = $1 AND owner = $2 AND revision = $3 AND {bound} RETURNING {MARK}"
            )),
            commit: statement(format!(
                "UPDATE {table} SET state = $3, body = $4, schema_version = $5, reason = $6, expires_at = {NOW} + $7,
                     revision = revision + 1, purge_at = least(purge_at, {NOW} + $7 + after_expiry)
                 WHERE key_hash = $1 AND owner = $2 AND {UNFINISHED} AND {is_not_over} AND format = {FORMAT}
                     AND {bound}
                 RETURNING {MARK}"
            )),
            release: statement(format!(
                "DELETE FROM {table}
                 WHERE key_hash = $1 AND owner = $2 AND {UNFINISHED} AND taken_over = 0 AND expires_at > {NOW}
                     AND format = {FORMAT} AND {bound}
                 RETURNING {MARK}"
            )),
            // A row that another transaction has locked must not keep the others waiting until
            // their leases have expired.
            renew: statement(format!(
                "UPDATE {table} AS record SET lease_until = {NOW} + lease, revision = revision + 1,
                     expires_at = greatest(expires_at, {NOW} + lease + linger)
                 FROM (
                     SELECT key, token, lease FROM unnest($1, $2, $3) AS renewal (key, token, lease)
                     JOIN {table} AS held ON held.key_hash = key FOR UPDATE OF held SKIP LOCKED
                 ) AS free
                 WHERE key_hash = key AND owner = token AND state = {IN_PROGRESS} AND lease_until > 0 AND expires_at > {NOW}
                     AND format = {FORMAT} AND {bound}
                 RETURNING {MARK}, key_hash, owner"
            )),
            renewed: statement(format!(
                "SELECT {MARK}, now, {without_body} FROM ({CLOCK}) AS clock LEFT JOIN {table} ON key_hash = ANY ($1)"
            )),
            page: statement(format!(
                "SELECT {MARK}, now, {columns}, nth FROM ({CLOCK}) AS clock CROSS JOIN {}
                 WHERE (key_hash <= $2 AND {}) OR nth = {} ORDER BY key_hash LIMIT $3",
                stretch::numbered(&format!(
                    "SELECT {without_body} AS body FROM {table}
                     WHERE key_hash > $1 ORDER BY key_hash"
                )),
                filter::condition(
                    "now",
                    ["$4::smallint", "$5::smallint", "$6::text", "$7::text", "$8::bigint"]
                ),
                stretch::ROWS
            )),
            census: Stride::ALL.map(|stride| statement(census(&table, stride))),
            seen: Arc::new(statement(format!(
                "SELECT {MARK}, key_hash, owner, state, lease_until FROM {table}
                 WHERE key_hash = ANY ($1) AND expires_at > (SELECT {NOW})"
            ))),
            purge: statement(purge(&table)),
            identity: statement(identity(name)),
            lock: format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE NOWAIT"),
        }
    }
}

/// Counts the rows of one step after the key `$1`.
fn census(table: &str, stride: Stride) -> String {
    let dialect = Dialect {
        select: "SELECT",
        now: "clock.now",
        from: &format!("({CLOCK}) AS clock CROSS JOIN "),
        table,
        after: "$1",
        size: "octet_length(body)",
        integer: "bigint",
        last: "max(encode(key_hash, 'hex') COLLATE \"C\")",
        names: "",
    };
    format!("SELECT {MARK}, counted.* FROM ({}) AS counted", census::statement(&dialect, stride))
}

/// Removes due rows, or puts them off, from the time `$2` on. Rows that another transaction has
/// locked are being written, or purged.
///
/// Removed rows are still scanned while a transaction is open that began before: starting at a time
/// skips them.
fn purge(table: &str) -> String {
    format!(
        "WITH clock AS MATERIALIZED ({CLOCK}),
         due AS MATERIALIZED (
             SELECT key_hash AS key, purge_at AS due_at FROM {table}
             WHERE purge_at >= $2 AND purge_at <= (SELECT now FROM clock) AND format = {FORMAT}
             ORDER BY purge_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ),
         removed AS (
             DELETE FROM {table} USING due, clock WHERE key_hash = key AND {FORGOTTEN} <= now RETURNING 1
         ),
         put_off AS (
             UPDATE {table} SET purge_at = {FORGOTTEN} FROM due, clock
             WHERE key_hash = key AND {FORGOTTEN} > now RETURNING 1
         )
         SELECT {MARK}, (SELECT count(*) FROM removed), (SELECT count(*) FROM put_off), (SELECT count(*) FROM due),
             (SELECT max(due_at) FROM due), now, (
                 SELECT purge_at FROM {table}
                 WHERE purge_at >= $2 AND purge_at <= now AND format = {FORMAT}
                     AND key_hash NOT IN (SELECT key FROM due)
                 ORDER BY purge_at LIMIT 1
             )
         FROM clock"
    )
}

/// The setting that keeps the session's own `lock_timeout` while a first record is written. It
/// ends with the transaction, and so shows whether a later statement is still in the same one.
pub(super) const BOUND_BEFORE: &str = "idempotency.lock_timeout";

/// See [`Statements::insert_first`]. The bound is in force before the statement reaches its first
/// row, and the one before it is kept first: the inner call is an argument of the outer one. The
/// conditions on the identity are those of [`identity`], in the form of
/// [`Identity`](crate::sql::transaction::Identity).
fn insert_first(name: &TableName, table: &str, columns: &str, first: &[String]) -> String {
    let meta = name.with_suffix("meta").quoted('"');
    let [written, place, found, bound] = [1, 2, 3, 4].map(|after| COLUMNS.len() + after);
    format!(
        "INSERT INTO {table} ({columns})
         SELECT {} FROM ({CLOCK}) AS clock CROSS JOIN {meta} AS own
         WHERE (SELECT set_config('lock_timeout', ${bound} || left(
                 set_config('{BOUND_BEFORE}', current_setting('lock_timeout'), true), 0), true)) IS NOT NULL
             AND own.id = 1 AND own.identity = ${written}
             AND current_database() || ' ' || substring(
                 pg_relation_filepath(own.tableoid) FROM '([0-9]+)/[^/]+$') = ${place}
             AND to_regclass('{table}')::oid::text = ${found}
         ON CONFLICT (key_hash) DO NOTHING
         RETURNING {MARK}, created_at, greatest(fence, {MICROS}), {MICROS} - fence,
             set_config('lock_timeout', current_setting('{BOUND_BEFORE}'), true)",
        first.join(", ")
    )
}

/// Returns the query for the identity of the table's database. The database's number is a part of
/// the table's path: not every role may read `pg_database`, and the session's own entry in the
/// statistics costs a copy of all others.
///
/// The number of the table that this session's `search_path` finds is queried too: another schema
/// may have a copy of both tables, and a temporary table hides the store's.
fn identity(name: &TableName) -> String {
    let (meta, table) = (name.with_suffix("meta").quoted('"'), name.quoted('"'));
    format!(
        "SELECT {MARK}, identity, current_database()::text,
             substring(pg_relation_filepath(tableoid) FROM '([0-9]+)/[^/]+$')::int8,
             to_regclass('{table}')::oid::int8
         FROM {meta} WHERE id = 1"
    )
}

/// Returns the value that a first claim writes into `column`.
fn first_value(column: &str, place: &str) -> String {
    if TIMES.contains(&column) {
        format!("now + {place}")
    } else if TICKS.contains(&column) {
        String::from("micros")
    } else {
        String::from(place)
    }
}

/// Returns the value that a claim writes into `column` if some time may have passed since it was
/// decided.
fn late_value(column: &str, place: &str) -> String {
    if column == "fence" { format!("greatest({place}, {MICROS})") } else { String::from(place) }
}
