//! `#[idempotent(…, tx = …)]`: what a call leaves in the database.

use idempotency::record::State;
use idempotency::tx::in_transaction;
use idempotency::{Context, ErrorAction, ErrorKind, Idempotency, idempotent, with_report};
use sqlx::{Sqlite, SqliteConnection, Transaction};

use crate::world::{Fault, World, add};

#[idempotent(key = entry, ttl = "24h", name = "ledger.add", engine = engine, tx = tx)]
async fn record(
    engine: &Idempotency,
    tx: &mut Transaction<'_, Sqlite>,
    entry: &str,
) -> Result<String, Fault> {
    add(tx, entry).await
}

#[tokio::test]
async fn what_is_committed_is_replayed_and_has_one_effect() -> anyhow::Result<()> {
    let world = World::new().await?;
    for round in 0..3 {
        let mut transaction = world.begin().await?;
        let (result, report) = with_report(record(&world.engine, &mut transaction, "a")).await;
        assert_eq!(result?, "added a");
        assert_eq!(report.expect("the call reports").replayed, round > 0);
        transaction.commit().await?;
        assert_eq!(
            (world.entries("a").await?, world.state("a").await?),
            (1, Some(State::Completed))
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_the_caller_rolls_back_has_not_happened() -> anyhow::Result<()> {
    let world = World::new().await?;
    for _ in 0..2 {
        let mut transaction = world.begin().await?;
        let (result, report) = with_report(record(&world.engine, &mut transaction, "a")).await;
        assert_eq!(result?, "added a");
        assert!(!report.expect("the call reports").replayed);
        transaction.rollback().await?;
        assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    }
    Ok(())
}

#[idempotent(key = entry, ttl = "24h", name = "ledger.add", engine = engine, tx = tx)]
async fn record_and_fail(
    engine: &Idempotency,
    tx: &mut Transaction<'_, Sqlite>,
    entry: &str,
) -> Result<String, Fault> {
    add(tx, entry).await?;
    Err(Fault::No)
}

#[tokio::test]
async fn an_error_leaves_neither_effect_nor_record_under_the_callers_commit() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let result = record_and_fail(&world.engine, &mut transaction, "a").await;
    assert!(matches!(result, Err(Fault::No)), "{result:?}");
    add(&mut transaction, "after").await?;
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    assert_eq!(world.entries("after").await?, 1);
    Ok(())
}

#[idempotent(key = entry, ttl = "24h", name = "ledger.add", engine = engine, on_error = hold, tx = tx)]
async fn record_and_doubt(
    engine: &Idempotency,
    tx: &mut Transaction<'_, Sqlite>,
    entry: &str,
) -> Result<String, Fault> {
    add(tx, entry).await?;
    Err(Fault::No)
}

#[tokio::test]
async fn a_held_error_undoes_the_effect_and_leaves_the_record_in_doubt() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let result = record_and_doubt(&world.engine, &mut transaction, "a").await;
    assert!(matches!(result, Err(Fault::No)), "{result:?}");
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, Some(State::InDoubt)));
    Ok(())
}

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
enum Decline {
    #[error("declined")]
    Declined,
    #[error("{0}")]
    Other(String),
}

impl From<sqlx::Error> for Decline {
    fn from(error: sqlx::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<idempotency::Error> for Decline {
    fn from(error: idempotency::Error) -> Self {
        Self::Other(error.to_string())
    }
}

#[idempotent(key = entry, ttl = "24h", name = "ledger.add", engine = engine, on_error = store, tx = tx)]
async fn record_and_decline(
    engine: &Idempotency,
    tx: &mut Transaction<'_, Sqlite>,
    entry: &str,
) -> Result<String, Decline> {
    sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(&mut **tx).await?;
    Err(Decline::Declined)
}

#[tokio::test]
async fn a_stored_error_is_replayed_and_its_effect_is_undone() -> anyhow::Result<()> {
    let world = World::new().await?;
    for round in 0..2 {
        let mut transaction = world.begin().await?;
        let (result, report) =
            with_report(record_and_decline(&world.engine, &mut transaction, "a")).await;
        assert!(matches!(result, Err(Decline::Declined)), "{result:?}");
        assert_eq!(report.expect("the call reports").replayed, round > 0);
        transaction.commit().await?;
        assert_eq!((world.entries("a").await?, world.state("a").await?), (0, Some(State::Failed)));
    }
    Ok(())
}

#[idempotent(
    key = entry,
    ttl = "24h",
    name = "ledger.add",
    engine = engine,
    on_error = |error: &Fault| if strict && matches!(error, Fault::No) { ErrorAction::Hold } else { ErrorAction::Release },
    tx = tx
)]
async fn record_and_judge(
    engine: &Idempotency,
    tx: &mut Transaction<'_, Sqlite>,
    entry: &str,
    strict: bool,
) -> Result<String, Fault> {
    add(tx, entry).await?;
    Err(Fault::No)
}

#[tokio::test]
async fn a_function_over_the_error_decides() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (entry, strict, state) in [("a", false, None), ("b", true, Some(State::InDoubt))] {
        let mut transaction = world.begin().await?;
        let result = record_and_judge(&world.engine, &mut transaction, entry, strict).await;
        assert!(matches!(result, Err(Fault::No)), "{result:?}");
        transaction.commit().await?;
        assert_eq!((world.entries(entry).await?, world.state(entry).await?), (0, state));
    }
    Ok(())
}

#[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx, fingerprint = amount, scope = tenant)]
async fn record_for(
    engine: &Idempotency,
    tx: &mut SqliteConnection,
    tenant: &str,
    entry: &str,
    amount: u64,
) -> Result<String, Fault> {
    add(tx, entry).await
}

#[tokio::test]
async fn a_scope_separates_and_a_fingerprint_is_compared() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    record_for(&world.engine, &mut transaction, "one", "a", 5).await?;
    record_for(&world.engine, &mut transaction, "two", "a", 6).await?;
    let mismatch = record_for(&world.engine, &mut transaction, "one", "a", 6).await;
    let Err(Fault::Idempotency(error)) = mismatch else { panic!("another amount: {mismatch:?}") };
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    transaction.commit().await?;
    assert_eq!(world.entries("a").await?, 2);
    Ok(())
}

#[idempotent(key = entry, ttl = "24h", name = "ledger.versions", engine = engine, tx = tx)]
async fn first_version(
    engine: &Idempotency,
    tx: &mut SqliteConnection,
    entry: &str,
) -> Result<u64, Fault> {
    add(tx, entry).await.map(|text| text.len() as u64)
}

fn read_first(version: u32, stored: &[u8]) -> Option<String> {
    (version == 0).then(|| format!("{} bytes", String::from_utf8_lossy(stored)))
}

#[tokio::test]
async fn a_result_of_another_version_is_upgraded() -> anyhow::Result<()> {
    mod second {
        use super::{Fault, Idempotency, SqliteConnection, add, idempotent, read_first};

        #[idempotent(
            key = entry,
            ttl = "24h",
            name = "ledger.versions",
            engine = engine,
            version = 1,
            upgrade = read_first,
            tx = tx
        )]
        pub(super) async fn version(
            engine: &Idempotency,
            tx: &mut SqliteConnection,
            entry: &str,
        ) -> Result<String, Fault> {
            add(tx, entry).await
        }
    }
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    assert_eq!(first_version(&world.engine, &mut transaction, "a").await?, 7);
    transaction.commit().await?;
    // Two functions of one name need an engine each.
    let other = world.another_engine().await?;
    let mut transaction = world.begin().await?;
    assert_eq!(second::version(&other, &mut transaction, "a").await?, "7 bytes");
    assert_eq!(second::version(&other, &mut transaction, "b").await?, "added b");
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.entries("b").await?), (1, 1));
    Ok(())
}

#[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
async fn with_context(
    engine: &Idempotency,
    tx: &mut SqliteConnection,
    entry: &str,
) -> Result<String, Fault> {
    let context = Context::current();
    add(tx, &context.derive_key("psp")).await?;
    Ok(context.derive_key("psp"))
}

#[tokio::test]
async fn the_body_has_its_context() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let derived = with_context(&world.engine, &mut transaction, "a").await?;
    transaction.commit().await?;
    assert_eq!(world.entries(&derived).await?, 1);
    assert!(Context::try_current().is_none());
    Ok(())
}

#[tokio::test]
async fn nothing_happens_before_the_first_poll() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    drop(record(&world.engine, &mut transaction, "a"));
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    Ok(())
}

#[idempotent(key = entry, ttl = "24h", name = "ledger.add", engine = engine, tx = tx)]
async fn record_and_wait(
    engine: &Idempotency,
    tx: &mut Transaction<'_, Sqlite>,
    entry: &str,
) -> Result<String, Fault> {
    add(tx, entry).await?;
    WRITTEN.notify_one();
    std::future::pending().await
}

static WRITTEN: tokio::sync::Notify = tokio::sync::Notify::const_new();

#[tokio::test]
async fn a_future_that_is_dropped_in_the_body_and_committed_reads_as_in_doubt() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    tokio::select! {
        result = record_and_wait(&world.engine, &mut transaction, "a") => panic!("the body never ends: {result:?}"),
        () = WRITTEN.notified() => {}
    }
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (1, Some(State::InDoubt)));
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_makes_itself_again_takes_a_function_in_it() -> anyhow::Result<()> {
    let world = World::new().await?;
    for _ in 0..2 {
        let (engine, pool) = (world.engine.clone(), world.pool.clone());
        let task = tokio::spawn(async move {
            let engine = &engine;
            in_transaction(&pool, |mut transaction| async move {
                record(engine, &mut transaction, "a").await
            })
            .await
        });
        assert_eq!(task.await??, "added a");
        assert_eq!(
            (world.entries("a").await?, world.state("a").await?),
            (1, Some(State::Completed))
        );
    }
    Ok(())
}
