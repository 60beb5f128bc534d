//! The plans in the server's log of slow queries.

use sqlx::{AssertSqlSafe, MySqlPool, Row as _};

/// How the rows of one table of a statement are found.
#[derive(Debug)]
struct Access {
    table: String,
    kind: String,
    key: String,
    /// How many rows were read, each time that the table was looked at. Unknown where it was not
    /// executed.
    read: Option<f64>,
    extra: String,
}

/// A statement, and how it was executed, or would be.
#[derive(Debug)]
pub struct Executed {
    pub text: String,
    accesses: Vec<Access>,
}

impl Executed {
    /// That every row was found by a condition on an index, no more were read than was asked for,
    /// and nothing was sorted.
    pub fn assert_by_index(&self) {
        // What is inserted is not looked for.
        if self.text.starts_with("INSERT") {
            return;
        }
        // A purge looks for what is due by its index, everything else for keys.
        let index = if self.text.contains("(purge_at >") {
            "idempotency_records_purge_at"
        } else {
            "PRIMARY"
        };
        for access in self
            .accesses
            .iter()
            .filter(|access| ["idempotency_records", "kept"].contains(&&*access.table))
        {
            let is_found =
                ["const", "eq_ref", "ref", "range"].contains(&&*access.kind) && access.key == index;
            assert!(is_found, "{self:#?}");
            assert!(
                !access.extra.contains("filesort") && !access.extra.contains("temporary"),
                "{self:#?}"
            );
            // A census counts more rows than others read.
            let most = if self.text.contains("max(now_is)") { 4_000.0 } else { 1_024.0 };
            assert!(access.read.is_none_or(|rows| rows <= most), "{self:#?}");
        }
    }
}

pub struct Log {
    pool: MySqlPool,
    start: usize,
}

impl Log {
    pub async fn new(url: &str) -> anyhow::Result<Self> {
        let mut log = Self { pool: MySqlPool::connect(url).await?, start: 0 };
        log.start = log.text().await?.len();
        Ok(log)
    }

    /// The store's statements on its table.
    pub async fn executed(&self) -> anyhow::Result<Vec<Executed>> {
        let text = self.text().await?;
        let text = String::from_utf8_lossy(&text[self.start..]).into_owned();
        let entries = text.split("# User@Host:").filter_map(executed);
        Ok(entries.filter(|executed| executed.text.contains("`idempotency_records`")).collect())
    }

    /// How the server would execute `text`.
    pub async fn explained(&self, text: &str) -> anyhow::Result<Executed> {
        let rows =
            sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN {text}"))).fetch_all(&self.pool).await?;
        let mut accesses = Vec::new();
        for row in rows {
            let value =
                |name| row.try_get::<Option<String>, _>(name).map(Option::unwrap_or_default);
            let (table, kind, key) = (value("table")?, value("type")?, value("key")?);
            accesses.push(Access { table, kind, key, read: None, extra: value("Extra")? });
        }
        Ok(Executed { text: text.into(), accesses })
    }

    /// The server is on this machine, and a process of this test's.
    async fn text(&self) -> anyhow::Result<Vec<u8>> {
        let name = "SELECT CONCAT(@@datadir, @@slow_query_log_file)";
        let name: String = sqlx::query_scalar(name).fetch_one(&self.pool).await?;
        Ok(std::fs::read(name)?)
    }
}

fn executed(entry: &str) -> Option<Executed> {
    let (head, text) = entry.split_once("SET timestamp=")?;
    let (_, text) = text.split_once(";\n")?;
    let rows = head.lines().filter_map(|line| line.strip_prefix("# explain: "));
    let accesses = rows.filter_map(|row| match row.split('\t').collect::<Vec<_>>()[..] {
        [_, _, table, kind, _, key, _, _, _, read, _, _, extra] => Some(Access {
            table: table.into(),
            kind: kind.into(),
            key: key.into(),
            read: read.parse().ok(),
            extra: extra.into(),
        }),
        _ => None,
    });
    Some(Executed {
        accesses: accesses.collect(),
        text: without_comments(text.trim_end().trim_end_matches(';')),
    })
}

/// `text` without what bounds a statement in time, which is in comments and which `EXPLAIN` does
/// not take.
fn without_comments(text: &str) -> String {
    let mut pieces = text.split("/*");
    let mut bare = String::from(pieces.next().unwrap_or_default());
    for piece in pieces {
        let rest = piece.split_once("*/").map_or(piece, |(_, rest)| rest);
        bare.push_str(if bare.is_empty() || bare.ends_with(' ') {
            rest.trim_start()
        } else {
            rest
        });
    }
    bare
}
