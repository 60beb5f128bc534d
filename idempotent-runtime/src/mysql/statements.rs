//! The statements, with the table's name filled in.
//!
//! They use only what the manuals of MariaDB 10.5 and MySQL 8.0 describe alike. `UPDATE` assigns
//! from left to right, and later assignments see what earlier ones wrote. So an assignment that is
//! computed from a column precedes the assignment to that column.

use std::sync::Arc;

use super::waits::ReadBound;
use crate::key::KeyHash;
use crate::sql::census::{self, Dialect, Stride};
use crate::sql::{COLUMNS, FORGOTTEN, FORMAT, IN_PROGRESS, TableName, UNFINISHED, filter, stretch};
use crate::store::Token;

/// The server's time in milliseconds, the same in every time zone and `sql_mode` of a session.
/// `NOW()` is not, and repeats an hour at the end of summer time.
const NOW: &str = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000)";
/// The same in microseconds.
const MICROS: &str = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))";
/// The isolation of the session, as [`Isolation::of`] reads it. MariaDB runs the content of the
/// first comment, MySQL that of the second one, and each ignores the other: neither knows the
/// other's name for it. The `=` before it is for a `sql_mode` in which an empty string is NULL.
pub(super) const ISOLATION: &str =
    "CASE CONCAT('=' /*M!100100 , @@tx_isolation */ /*!80000 , @@transaction_isolation */)
    WHEN '=READ-UNCOMMITTED' THEN 1 WHEN '=SERIALIZABLE' THEN 2 ELSE 0 END";
/// The maximum number of records that one statement names.
pub(super) const MOST: usize = 512;
/// The maximum number of values in one list. MariaDB converts a list of a thousand values to a
/// table (`in_predicate_conversion_threshold`), and then scans all rows to look each of them up
/// there.
const LISTED: usize = 256;

pub(super) type Statement = Arc<str>;

/// The effect of a session's isolation on reads in it. The server does not report the isolation of
/// a single transaction (`SET TRANSACTION` without `SESSION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// Reads show what others have written and may never commit.
    Uncommitted,
    /// In a transaction, reads lock the rows that they show.
    Serializable,
    Other,
}

impl Isolation {
    /// Converts the answer of [`ISOLATION`].
    pub(super) const fn of(answer: i64) -> Self {
        match answer {
            1 => Self::Uncommitted,
            2 => Self::Serializable,
            _ => Self::Other,
        }
    }
}

/// Returns the value that a first claim writes into `column`. The claim is built for time zero, and the
/// server adds its own.
fn first_value(column: &str) -> &'static str {
    match column {
        "created_at" | "lease_until" | "expires_at" | "purge_at" => "server.micros DIV 1000 + ?",
        // Its own value does not count, and has its place.
        "fence" | "revision" => "server.micros + 0 * ?",
        _ => "?",
    }
}

/// The way in which due rows are found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    /// By the index that `migrate` creates.
    Index,
    /// By the server's choice: there is no index of that name.
    Any,
}

#[derive(Debug)]
pub(super) struct Statements {
    table: String,
    bound: Option<ReadBound>,
    without_body: String,
    purge_index: String,
    pub(super) read: Statement,
    pub(super) read_latest: Statement,
    pub(super) insert: Statement,
    /// Writes the record of a first claim that has its result already, if the connection is one of
    /// the store's database. The last two values are those of the database's identity.
    pub(super) insert_first: Statement,
    pub(super) replace: Statement,
    pub(super) delete: Statement,
    pub(super) commit: Statement,
    pub(super) release: Statement,
    pub(super) page: Statement,
    pub(super) census: [Statement; Stride::ALL.len()],
    pub(super) identity: Statement,
    /// Changes nothing, and fails if another session keeps the table from being written: at once on
    /// MariaDB, and after a second on MySQL, which has no shorter bound.
    pub(super) touch: String,
}

impl Statements {
    /// Builds the statements. `bound` is the time that each read may take on the server, whatever
    /// its session's setting. Without it, in a transaction of the user, the session decides, and
    /// an expired record is written all the same: only its owner has it.
    pub(super) fn new(name: &TableName, bound: Option<ReadBound>) -> Self {
        let table = name.quoted('`');
        // Some are reserved words in one `sql_mode` or another.
        let columns = COLUMNS.map(|column| format!("`{column}`"));
        let assignments: Vec<_> =
            columns.iter().skip(1).map(|column| format!("{column} = ?")).collect();
        let places = ["?"; COLUMNS.len()].join(", ");
        let columns = columns.join(", ");
        let without_body = columns.replace(", `body`", ", X''");
        let is_not_over = bound.map_or(String::from("TRUE"), |_| format!("expires_at > {NOW}"));
        let is_own = format!(
            "key_hash = ? AND owner = ? AND {UNFINISHED} AND {is_not_over} AND format = {FORMAT}"
        );
        let select = select(bound);
        let read = format!(
            "{select} server.micros DIV 1000, {columns}, server.micros, {ISOLATION} FROM (SELECT {MICROS} AS micros) AS server
             LEFT JOIN {table} AS kept ON kept.key_hash = ?"
        );
        // If the name of the table contains the database, the place is the same on each connection.
        // Otherwise the connection's database counts; its name may be written in different case
        // where the server ignores case.
        let place = match name.schema() {
            Some(_) => "''",
            None => "IF(@@lower_case_table_names = 0, DATABASE(), LOWER(DATABASE()))",
        };
        let meta = name.with_suffix("meta").quoted('`');
        let identity = format!("{select} identity, CAST({place} AS CHAR) FROM {meta} WHERE id = 1");
        let statement = |text: String| Statement::from(text);
        Self {
            identity: statement(identity),
            touch: format!(
                "/*M!100100 SET STATEMENT lock_wait_timeout = 0 FOR */
                 DELETE /*+ SET_VAR(lock_wait_timeout = 1) */ FROM {table} WHERE FALSE"
            ),
            // The row that is committed now, even if the transaction's snapshot is older.
            read_latest: statement(format!("{read} LOCK IN SHARE MODE")),
            read: statement(read),
            insert: statement(format!("INSERT INTO {table} ({columns}) VALUES ({places})")),
            insert_first: statement(format!(
                "INSERT INTO {table} ({columns}) SELECT {} FROM (SELECT {MICROS} AS micros) AS server
                 CROSS JOIN {meta} AS own WHERE own.id = 1 AND own.identity = ? AND CAST({place} AS CHAR) = ?",
                COLUMNS.map(first_value).join(", ")
            )),
            replace: statement(format!(
                "UPDATE {table} SET {} WHERE key_hash = ? AND owner = ? AND revision = ?",
                assignments.join(", ")
            )),
            delete: statement(format!("DELETE FROM {table} WHERE key_hash = ? AND owner = ? AND revision = ?")),
            commit: statement(format!(
                "UPDATE {table} SET purge_at = LEAST(purge_at, {NOW} + ? + after_expiry), expires_at = {NOW} + ?,
                     state = ?, `body` = ?, schema_version = ?, reason = ?, revision = revision + 1
                 WHERE {is_own}"
            )),
            release: statement(format!("DELETE FROM {table} WHERE {is_own} AND taken_over = 0")),
            page: statement(format!(
                "{select} {NOW}, {columns}, CAST(nth AS SIGNED) FROM {}
                 WHERE (key_hash <= ? AND {}) OR nth = {} ORDER BY key_hash LIMIT ?",
                stretch::numbered(&format!(
                    "SELECT {without_body} AS `body` FROM {table} FORCE INDEX (PRIMARY)
                     WHERE key_hash > ? ORDER BY key_hash"
                )),
                filter::condition(NOW, ["?"; 5]),
                stretch::ROWS
            )),
            census: Stride::ALL.map(|stride| statement(census(&table, &select, stride))),
            purge_index: name.purge_index('`'),
            table,
            bound,
            without_body,
        }
    }

    /// Returns the statement that reads the rows of `keys` keys, without their bodies. Here and
    /// below the limit only overrides the session's `sql_select_limit`.
    pub(super) fn rows(&self, keys: usize) -> Statement {
        Statement::from(format!(
            "{select} {NOW}, {columns} FROM {table} FORCE INDEX (PRIMARY) WHERE {keys_in} LIMIT {keys}",
            select = select(self.bound),
            columns = self.without_body,
            table = self.table,
            keys_in = is_in("key_hash", "?", keys)
        ))
    }

    /// Returns the statements that raise the fence of the owner's record to the current time, and
    /// read it. They are one text with its values in it, as hexadecimal digits only.
    pub(super) fn raise(&self, key: &KeyHash, owner: Token) -> String {
        let (table, key, owner) = (&self.table, key.to_hex(), owner.bits());
        let is_own = format!("key_hash = X'{key}' AND owner = X'{owner:032x}'");
        format!(
            "UPDATE {table} SET fence = GREATEST(fence, {MICROS}) WHERE {is_own}; SELECT fence FROM {table} WHERE {is_own}"
        )
    }

    /// Returns the statement that finds which of `keys` keys have a row that no other transaction
    /// has locked. Its own locks end with it.
    pub(super) fn unlocked(&self, keys: usize) -> Statement {
        Statement::from(format!(
            "SELECT key_hash FROM {table} FORCE INDEX (PRIMARY) WHERE {keys_in} LIMIT {keys} FOR UPDATE SKIP LOCKED",
            table = self.table,
            keys_in = is_in("key_hash", "?", keys)
        ))
    }

    /// Returns the statement that prolongs the leases of `owners` owners. Its values are the lease
    /// twice, the keys, then each key with its owner.
    ///
    /// The primary key is forced here and below because for a small table the server may prefer to
    /// scan all of it, and would wait for the locks of unrelated rows.
    pub(super) fn renew(&self, owners: usize) -> Statement {
        let (keys, pairs) =
            (is_in("key_hash", "?", owners), is_in("(key_hash, owner)", "(?, ?)", owners));
        Statement::from(format!(
            "UPDATE {table} FORCE INDEX (PRIMARY)
             SET expires_at = GREATEST(expires_at, {NOW} + ? + linger), lease_until = {NOW} + ?, revision = revision + 1
             WHERE {keys} AND {pairs}
                 AND state = {IN_PROGRESS} AND lease_until > 0 AND expires_at > {NOW} AND format = {FORMAT}",
            table = self.table
        ))
    }

    /// Returns the statement for what a watcher needs to know about the records of `keys` keys.
    pub(super) fn seen(&self, keys: usize) -> Statement {
        Statement::from(format!(
            "{select} key_hash, owner, state, lease_until FROM {table} FORCE INDEX (PRIMARY)
             WHERE {keys_in} AND expires_at > {NOW} LIMIT {keys}",
            select = select(self.bound),
            table = self.table,
            keys_in = is_in("key_hash", "?", keys)
        ))
    }

    /// Returns the statement that finds the due rows after a place. Its values are the place's time
    /// twice, its key, and the maximum number of rows. `by` is the way in which they are found.
    pub(super) fn due(&self, by: Access, skips_locked: bool) -> Statement {
        let lock = if skips_locked { " FOR UPDATE SKIP LOCKED" } else { "" };
        Statement::from(format!("{} LIMIT ?{lock}", self.is_due(by)))
    }

    /// Returns the statement for the server's time and the first due row after a place.
    pub(super) fn oldest(&self, by: Access) -> Statement {
        Statement::from(format!(
            "{select} server.read_at, oldest.key_hash, oldest.purge_at FROM (SELECT {NOW} AS read_at) AS server
             LEFT JOIN ({is_due} LIMIT 1) AS oldest ON TRUE",
            select = select(self.bound),
            is_due = self.is_due(by)
        ))
    }

    /// Returns the query for the due rows after a place. Removed rows are scanned again and again
    /// while a transaction is open that began before: starting at a place skips them. The server
    /// knows how many rows there are, but not how many there were. With few rows it would rather
    /// scan the whole table, so the index is forced.
    fn is_due(&self, by: Access) -> String {
        let index = match by {
            Access::Index => format!(" FORCE INDEX ({})", self.purge_index),
            Access::Any => String::new(),
        };
        format!(
            "SELECT key_hash, purge_at FROM {table}{index}
             WHERE (purge_at > ? OR (purge_at = ? AND key_hash > ?)) AND purge_at <= {NOW} AND format = {FORMAT}
             ORDER BY purge_at, key_hash",
            table = self.table
        )
    }

    /// Returns the statement that removes those of `keys` records of which nothing is left. It does
    /// not mention `purge_at`, through whose index the server would scan rows that were removed
    /// before. Only the multi-table form of `DELETE` can force an index.
    pub(super) fn purge(&self, keys: usize) -> Statement {
        Statement::from(format!(
            "DELETE kept FROM {table} AS kept FORCE INDEX (PRIMARY)
             WHERE {keys} AND format = {FORMAT} AND {FORGOTTEN} <= {NOW}",
            table = self.table,
            keys = is_in("key_hash", "?", keys)
        ))
    }

    /// Returns the statement that puts off those of `keys` records that are still needed.
    pub(super) fn put_off(&self, keys: usize) -> Statement {
        Statement::from(format!(
            "UPDATE {table} FORCE INDEX (PRIMARY) SET purge_at = {FORGOTTEN}
             WHERE {keys} AND purge_at <= {NOW} AND format = {FORMAT} AND {FORGOTTEN} > {NOW}",
            table = self.table,
            keys = is_in("key_hash", "?", keys)
        ))
    }
}

/// Counts the rows of one step after a key.
fn census(table: &str, select: &str, stride: Stride) -> String {
    let dialect = Dialect {
        select,
        now: NOW,
        from: "",
        table: &format!("{table} FORCE INDEX (PRIMARY)"),
        after: "?",
        size: "length(`body`)",
        integer: "SIGNED",
        last: "max(hex(key_hash))",
        // A comparison ignores spaces at the end.
        names: ", length(namespace), length(operation)",
    };
    census::statement(&dialect, stride)
}

/// Returns the beginning of a reading statement.
fn select(bound: Option<ReadBound>) -> String {
    bound.map_or(String::from("SELECT"), ReadBound::select)
}

/// Returns the condition that `columns` are one of `count` values, each written as `place`.
fn is_in(columns: &str, place: &str, count: usize) -> String {
    let places = vec![place; count];
    let lists = places.chunks(LISTED).map(|places| format!("{columns} IN ({})", places.join(", ")));
    format!("({})", lists.collect::<Vec<_>>().join(" OR "))
}

/// Pads `items` with the last one to a power of two: each number of places is a statement that the
/// server prepares and the connection keeps, so there should be only a few of them.
pub(super) fn filled_up<T: Copy>(items: &[T]) -> Vec<T> {
    let mut filled = items.to_vec();
    filled.extend(
        items.last().into_iter().flat_map(|last| std::iter::repeat_n(*last, padding(items.len()))),
    );
    filled
}

fn padding(count: usize) -> usize {
    count.next_power_of_two() - count
}

#[cfg(test)]
mod tests {
    use super::{filled_up, is_in};

    #[test]
    fn no_list_is_so_long_that_a_server_makes_a_table_of_it() {
        assert_eq!(is_in("a", "?", 2), "(a IN (?, ?))");
        let pairs = is_in("(a, b)", "(?, ?)", 1_024);
        let lists: Vec<_> = pairs.split(" OR ").map(|list| list.matches('?').count()).collect();
        assert_eq!(lists, [512; 4]);
    }

    #[test]
    fn few_numbers_of_places_are_used() {
        assert_eq!(filled_up(&[7, 8, 9]), [7, 8, 9, 9]);
        assert_eq!(filled_up(&[7]), [7]);
        assert_eq!(filled_up(&[0; 200]).len(), 256);
        assert!(filled_up::<u8>(&[]).is_empty());
    }
}
