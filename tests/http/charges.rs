//! A handler that charges, and the database in which it does: outside of the code under test, and
//! still there when the process is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use idempotency::Context;
use idempotency::http::IdempotencyKey;
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPoints};
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

/// How long the handler takes, in milliseconds: half of it before the charge.
pub const TAKES: &str = "x-takes";

/// Begins the line of a process whose result came too late: its call had been taken over.
const OVERTAKEN: &str = "overtaken";

/// One run of the handler, which is also its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub key: String,
    pub receipt: String,
    pub process: u32,
    pub attempt: u32,
    /// When it began, by the machine's clock.
    pub began: SystemTime,
}

/// What a handler enters, in the order in which it does.
#[derive(Clone, Copy, Debug)]
enum Event {
    Began,
    Charged,
}

impl Event {
    const fn name(self) -> &'static str {
        match self {
            Self::Began => "began",
            Self::Charged => "charged",
        }
    }
}

/// What the book says of one key.
#[derive(Debug, Default)]
pub struct Entry {
    /// In the order in which they began.
    pub began: Vec<Run>,
    pub charged: Vec<Run>,
}

/// The database of the charges, which all servers write to.
#[derive(Clone, Debug)]
pub struct Book(SqlitePool);

impl Book {
    /// In this file.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        // What a killed process has committed is with the operating system, which lives.
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Off);
        let pool = SqlitePool::connect_with(options.busy_timeout(Duration::from_secs(60))).await?;
        let table = "CREATE TABLE IF NOT EXISTS charges \
                     (number INTEGER PRIMARY KEY, key TEXT NOT NULL, event TEXT NOT NULL, run TEXT NOT NULL)";
        sqlx::query(table).execute(&pool).await?;
        Ok(Self(pool))
    }

    async fn enter(&self, event: Event, run: &Run) -> anyhow::Result<()> {
        let row = sqlx::query("INSERT INTO charges (key, event, run) VALUES (?, ?, ?)");
        let row = row.bind(&run.key).bind(event.name()).bind(serde_json::to_string(run)?);
        row.execute(&self.0).await?;
        Ok(())
    }

    /// What it says of each key.
    pub async fn entries(&self) -> anyhow::Result<BTreeMap<String, Entry>> {
        let rows = sqlx::query_as("SELECT key, event, run FROM charges ORDER BY number");
        let rows: Vec<(String, String, String)> = rows.fetch_all(&self.0).await?;
        let mut entries: BTreeMap<_, Entry> = BTreeMap::new();
        for (key, event, run) in rows {
            let entry = entries.entry(key).or_default();
            let runs = [(Event::Began, &mut entry.began), (Event::Charged, &mut entry.charged)];
            let Some((_, runs)) = runs.into_iter().find(|(known, _)| known.name() == event) else {
                bail!("the book says {event}");
            };
            runs.push(serde_json::from_str(&run)?);
        }
        Ok(entries)
    }
}

/// Notes that a result of this process was refused.
pub fn overtaken(log: &EffectLog) {
    log.append(&format!("{OVERTAKEN} {}", std::process::id())).expect("the log takes a line");
}

/// The processes whose results were refused, each as often.
pub fn all_overtaken(log: &EffectLog) -> anyhow::Result<Vec<u32>> {
    let lines = log.lines()?;
    let processes = lines.iter().filter_map(|line| line.strip_prefix(OVERTAKEN));
    processes
        .map(|process| process.trim().parse().with_context(|| format!("no process: {process}")))
        .collect()
}

pub fn routes(book: Book, points: KillPoints) -> Router {
    Router::new().route("/charge", post(charge)).with_state((book, points))
}

async fn charge(
    State((book, points)): State<(Book, KillPoints)>,
    key: IdempotencyKey,
    headers: HeaderMap,
) -> (StatusCode, Json<Run>) {
    let takes = headers
        .get(TAKES)
        .and_then(|value| value.to_str().ok())
        .and_then(|millis| millis.parse().ok());
    let half = Duration::from_millis(takes.unwrap_or_default()) / 2;
    let run = Run {
        key: key.as_str().to_owned(),
        receipt: uuid::Uuid::new_v4().to_string(),
        process: std::process::id(),
        attempt: Context::current().attempt(),
        began: SystemTime::now(),
    };

    book.enter(Event::Began, &run).await.expect("the book takes an entry");
    tokio::time::sleep(half).await;
    points.reach(BEFORE_EFFECT).await;
    book.enter(Event::Charged, &run).await.expect("the book takes an entry");
    points.reach(AFTER_EFFECT).await;
    tokio::time::sleep(half).await;
    (StatusCode::CREATED, Json(run))
}
