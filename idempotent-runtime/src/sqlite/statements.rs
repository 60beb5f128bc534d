//! The statements, with the table's name filled in.

use std::sync::Arc;

use crate::sql::census::{self, Dialect, Stride};
use crate::sql::{COLUMNS, FORGOTTEN, FORMAT, IN_PROGRESS, TableName, UNFINISHED, filter, stretch};

type Statement = Arc<str>;

#[derive(Debug)]
pub(super) struct Statements {
    pub(super) read: Statement,
    /// The same on a connection of the user, and whether that shows uncommitted data.
    pub(super) read_given: Statement,
    pub(super) insert: Statement,
    pub(super) replace: Statement,
    pub(super) delete: Statement,
    pub(super) commit: Statement,
    pub(super) release: Statement,
    pub(super) renew: Statement,
    pub(super) page: Statement,
    pub(super) census: [Statement; Stride::ALL.len()],
    pub(super) seen: Statement,
    pub(super) purge: Statement,
    pub(super) put_off: Statement,
    pub(super) lag: Statement,
    pub(super) identity: Statement,
}

impl Statements {
    pub(super) fn new(name: &TableName) -> Self {
        let table = name.quoted('"');
        let columns = COLUMNS.join(", ");
        let without_body = columns.replace(", body", ", x''");
        let places: Vec<_> = (1..=COLUMNS.len()).map(|number| format!("?{number}")).collect();
        let assignments: Vec<_> = COLUMNS
            .iter()
            .zip(&places)
            .skip(1)
            .map(|(column, place)| format!("{column} = {place}"))
            .collect();
        let due = format!(
            "SELECT key_hash FROM {table} WHERE purge_at <= ?1 AND format = {FORMAT} ORDER BY purge_at LIMIT ?2"
        );
        let meta = name.with_suffix("meta");
        // One row, whatever is in the table.
        let gone = format!("(SELECT coalesce(max(fence), 0) AS gone FROM {})", meta.quoted('"'));
        let read = |shows_all: &str| {
            Statement::from(format!(
                "SELECT ?1, {columns}, gone, {shows_all} FROM {gone} LEFT JOIN {table} ON key_hash = ?2"
            ))
        };
        // The values of a guard follow those of a row.
        let (owner, revision) = (COLUMNS.len() + 1, COLUMNS.len() + 2);
        let statement = |text: String| Statement::from(text);
        Self {
            read: read("0"),
            read_given: read("(SELECT read_uncommitted FROM pragma_read_uncommitted)"),
            // A claim must not get a fence below that of a record that was created and removed
            // since the claim was decided. A result that is adopted keeps the fence of its claim.
            insert: statement(format!(
                "INSERT INTO {table} ({columns}) SELECT {} FROM {gone} WHERE ?3 <> {IN_PROGRESS} OR ?5 > gone
                 ON CONFLICT (key_hash) DO NOTHING",
                places.join(", ")
            )),
            replace: statement(format!(
                "UPDATE {table} SET {} WHERE key_hash = ?1 AND owner = ?{owner} AND revision = ?{revision}",
                assignments.join(", ")
            )),
            delete: statement(format!("DELETE FROM {table} WHERE key_hash = ?1 AND owner = ?2 AND revision = ?3")),
            commit: statement(format!(
                "UPDATE {table} SET state = ?4, body = ?5, schema_version = ?6, reason = ?7, expires_at = ?8,
                     revision = revision + 1, purge_at = min(purge_at, ?8 + after_expiry)
                 WHERE key_hash = ?1 AND owner = ?2 AND {UNFINISHED} AND expires_at > ?3 AND format = {FORMAT}"
            )),
            release: statement(format!(
                "DELETE FROM {table}
                 WHERE key_hash = ?1 AND owner = ?2 AND {UNFINISHED} AND taken_over = 0 AND expires_at > ?3 AND format = {FORMAT}"
            )),
            renew: statement(format!(
                "WITH renewal (key, token, until) AS MATERIALIZED (
                     SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2 FROM json_each(?1)
                 )
                 UPDATE {table} SET lease_until = until, expires_at = max(expires_at, until + linger), revision = revision + 1
                 FROM renewal
                 WHERE key_hash = key AND owner = token AND state = {IN_PROGRESS} AND lease_until > 0 AND expires_at > ?2
                     AND format = {FORMAT}
                 RETURNING key_hash, owner"
            )),
            page: statement(format!(
                "SELECT ?1, {columns}, nth FROM {} WHERE (key_hash <= ?3 AND {}) OR nth = {}
                 ORDER BY key_hash LIMIT ?4",
                stretch::numbered(&format!(
                    "SELECT {without_body} AS body FROM {table}
                     WHERE key_hash > ?2 ORDER BY key_hash"
                )),
                filter::condition("?1", ["?5", "?6", "?7", "?8", "?9"]),
                stretch::ROWS
            )),
            census: Stride::ALL.map(|stride| statement(census(&table, stride))),
            seen: statement(format!(
                "SELECT key_hash, owner, state, lease_until FROM {table}
                 WHERE key_hash IN (SELECT unhex(value) FROM json_each(?1)) AND expires_at > ?2"
            )),
            purge: statement(format!("DELETE FROM {table} WHERE key_hash IN ({due}) AND {FORGOTTEN} <= ?1")),
            put_off: statement(format!("UPDATE {table} SET purge_at = {FORGOTTEN} WHERE key_hash IN ({due}) AND {FORGOTTEN} > ?1")),
            lag: statement(format!("SELECT min(purge_at) FROM {table} WHERE purge_at <= ?1 AND format = {FORMAT}")),
            identity: statement(format!(
                "SELECT identity, coalesce(place.file, ''), coalesce(place.name, '')
                 FROM {} LEFT JOIN (
                     SELECT CASE open.name WHEN 'temp' THEN (
                         SELECT main.file FROM pragma_database_list AS main WHERE main.name = 'main'
                     ) ELSE open.file END AS file,
                     CASE open.name WHEN 'temp' THEN 'temp' ELSE '' END AS name
                     FROM pragma_table_list('{}') AS found JOIN pragma_database_list AS open
                         ON open.name = found.schema
                     ORDER BY open.name <> 'temp', open.seq LIMIT 1
                 ) AS place ON true WHERE id = 1",
                meta.quoted('"'),
                name.name()
            )),
        }
    }
}

/// Counts the rows of one step after the key `?2`, at the time `?1`.
fn census(table: &str, stride: Stride) -> String {
    let dialect = Dialect {
        select: "SELECT",
        now: "?1",
        from: "",
        table,
        after: "?2",
        size: "length(body)",
        integer: "INTEGER",
        last: "max(hex(key_hash))",
        names: "",
    };
    census::statement(&dialect, stride)
}
