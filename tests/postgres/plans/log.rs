//! The plans in the server's log.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::PostgresServer;
use serde_json::Value;
use sqlx::PgPool;

const TABLE: &str = "idempotency_records";

/// What the server has written since somebody looked last.
pub struct Log {
    pool: PgPool,
    mode: &'static str,
    position: Mutex<i64>,
    marks: AtomicUsize,
}

impl Log {
    pub async fn new(server: &PostgresServer, mode: &'static str) -> anyhow::Result<Self> {
        let pool = PgPool::connect(&server.url()).await?;
        let log = Self { pool, mode, position: Mutex::default(), marks: AtomicUsize::default() };
        log.plans().await?;
        Ok(log)
    }

    /// The plans of the statements on the table that were answered since the last call.
    pub async fn plans(&self) -> anyhow::Result<Vec<Plan>> {
        // What comes before it in the log was written before it.
        let mark = format!("mark {} of {}", self.marks.fetch_add(1, Ordering::Relaxed), self.mode);
        let writing = format!("DO $$ BEGIN RAISE LOG 'here is %', '{mark}'; END $$");
        sqlx::raw_sql(sqlx::AssertSqlSafe(writing)).execute(&self.pool).await?;
        let end = format!("here is {mark}");
        let mut text = String::new();
        eventually_async("the mark in the log", async || {
            text = self.rest().await.unwrap_or_default();
            text.contains(&end)
        })
        .await?;
        *self.position.lock().expect("no test has failed") += i64::try_from(text.len())?;
        self.parsed(&text)
    }

    /// Waits until the plans since the last call of [`plans`](Self::plans) are as `condition` wants
    /// them.
    pub async fn eventually(
        &self,
        what: &str,
        mut condition: impl FnMut(&[Plan]) -> bool,
    ) -> anyhow::Result<()> {
        eventually_async(what, async || {
            let text = self.rest().await.unwrap_or_default();
            // The last one may be half written.
            let complete = text.rfind("\nLOG:").map_or("", |end| &text[..end]);
            self.parsed(complete).is_ok_and(|plans| condition(&plans))
        })
        .await
    }

    async fn rest(&self) -> anyhow::Result<String> {
        let position = *self.position.lock().expect("no test has failed");
        let file = "SELECT pg_read_file(pg_current_logfile(), $1, 100000000)";
        Ok(sqlx::query_scalar(file).bind(position).fetch_one(&self.pool).await?)
    }

    fn parsed(&self, text: &str) -> anyhow::Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for entry in text.split("  plan:\n").skip(1) {
            let lines = entry.lines().map_while(|line| line.strip_prefix('\t'));
            let plan: Value = serde_json::from_str(&lines.collect::<Vec<_>>().join("\n"))?;
            let query = plan["Query Text"].as_str().unwrap_or_default();
            if query.contains(TABLE) && !query.contains("_meta") {
                plans.push(Plan { mode: self.mode, plan });
            }
        }
        Ok(plans)
    }
}

/// How one statement was executed.
pub struct Plan {
    mode: &'static str,
    plan: Value,
}

impl Plan {
    /// That every row was found by a condition on one of `indexes`, nothing was sorted, and no more
    /// than `most` pages were looked at.
    pub fn assert_uses(&self, indexes: &[&str], most: i64) {
        assert!(!self.shown().contains("Sort\""), "{}", self.shown());
        self.assert_finds(indexes, most);
    }

    /// The same, but what was found may be sorted: close to the end of the table, the server reads
    /// what is left page by page.
    pub fn assert_finds(&self, indexes: &[&str], most: i64) {
        let root = &self.plan["Plan"];
        let count = |name: &str| root[name].as_i64().unwrap_or_default();
        let pages = count("Shared Hit Blocks") + count("Shared Read Blocks");
        assert!(pages <= most, "{pages} pages, {}", self.shown());
        self.assert_node(root, indexes);
    }

    fn assert_node(&self, node: &Value, indexes: &[&str]) {
        let text = |name: &str| node[name].as_str().unwrap_or_default();
        let kind = text("Node Type");
        assert!(!kind.contains("Seq Scan"), "{}", self.shown());
        if kind.contains("Index") {
            let is_expected =
                indexes.contains(&text("Index Name")) && !text("Index Cond").is_empty();
            assert!(is_expected, "{}", self.shown());
        }
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.assert_node(child, indexes);
        }
    }

    fn shown(&self) -> String {
        format!("{}: {:#}", self.mode, self.plan)
    }
}
