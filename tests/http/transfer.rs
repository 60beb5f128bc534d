//! Rule 57: an effect and its record in one transaction.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotency::http::IdempotencyKey;
use idempotency::record::State as RecordState;
use idempotency::store::SqliteStore;
use idempotency::{Error, Idempotency};
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_COMMIT, AFTER_EFFECT, BEFORE_COMMIT, BEFORE_EFFECT, BEFORE_SEND, KillPoints,
};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

use crate::process::{LEASE, Orders, Policy, Process};
use crate::world::{DAY, memory_directory};

const OPERATION: &str = "ledger.add";
/// In the handler, after the transaction was committed.
const AFTER_TRANSACTION: &str = "after_transaction";

/// A table beside the records.
#[derive(Clone)]
pub struct Ledger {
    pool: SqlitePool,
    engine: Idempotency,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Client(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

impl Ledger {
    /// In the file that `url` names.
    pub async fn open(url: &str) -> anyhow::Result<Self> {
        let path = url.trim_start_matches("sqlite:");
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(20));
        let pool = SqlitePool::connect_with(options).await?;
        sqlx::query("CREATE TABLE IF NOT EXISTS ledger (entry TEXT NOT NULL)")
            .execute(&pool)
            .await?;
        Ok(Self { pool, engine: Idempotency::new(SqliteStore::open(path).await?) })
    }

    async fn entries(&self, entry: &str) -> anyhow::Result<i64> {
        let count = sqlx::query_as("SELECT count(*) FROM ledger WHERE entry = ?").bind(entry);
        let (count,): (i64,) = count.fetch_one(&self.pool).await?;
        Ok(count)
    }

    async fn is_completed(&self, key: &str) -> anyhow::Result<bool> {
        let view = self.engine.record(OPERATION, key).inspect().await?;
        Ok(view.is_some_and(|view| view.state == RecordState::Completed))
    }
}

pub fn routes(ledger: Ledger, points: KillPoints) -> Router {
    Router::new().route("/transfer", post(transfer)).with_state((ledger, points))
}

async fn transfer(
    State((ledger, points)): State<(Ledger, KillPoints)>,
    key: IdempotencyKey,
) -> Result<StatusCode, (StatusCode, String)> {
    let added = async {
        let mut transaction = ledger.pool.begin_with("BEGIN IMMEDIATE").await?;
        points.reach(BEFORE_EFFECT).await;
        let call = ledger.engine.call(OPERATION, key.as_str()).ttl(DAY);
        call.run_in(&mut transaction, async |connection| {
            sqlx::query("INSERT INTO ledger VALUES (?)")
                .bind(key.as_str())
                .execute(connection)
                .await?;
            points.reach(AFTER_EFFECT).await;
            Ok::<_, Fault>(())
        })
        .await?;
        transaction.commit().await?;
        points.reach(AFTER_TRANSACTION).await;
        Ok::<_, Fault>(())
    };
    added
        .await
        .map(|()| StatusCode::CREATED)
        .map_err(|fault| (StatusCode::SERVICE_UNAVAILABLE, fault.to_string()))
}

#[tokio::test]
async fn rule_57_in_one_transaction_effect_and_record_live_and_die_together() -> anyhow::Result<()>
{
    let directory = memory_directory()?;
    let url = format!("sqlite:{}", directory.path().join("records.db").display());
    let orders = Orders::new(url.clone())?.with(Policy::Retry, LEASE);
    let ledger = Ledger::open(&url).await?;
    for (point, happened) in [
        (BEFORE_SEND, false),
        (AFTER_CLAIM, false),
        (BEFORE_EFFECT, false),
        (AFTER_EFFECT, false),
        (AFTER_TRANSACTION, true),
        (BEFORE_COMMIT, true),
        (AFTER_COMMIT, true),
    ] {
        let mut server = Process::start(&orders, &[point]).await?;
        let (first, key) = server.reach(point, point, |client| client.post("/transfer")).await?;
        let key = key.as_str();
        server.kill().await?;
        assert!(first.reply().await.is_err(), "{point}: nobody answered");
        let (entries, is_completed) = (ledger.entries(key).await?, ledger.is_completed(key).await?);
        assert_eq!((entries, is_completed), (i64::from(happened), happened), "{point}");

        let server = Process::start(&orders, &[]).await?;
        let retry = server.settled("/transfer", key).await?;
        assert_eq!((retry.status, ledger.entries(key).await?), (201, 1), "{point}: {retry:?}");
        assert!(ledger.is_completed(key).await?, "{point}");
    }
    Ok(())
}
