//! The file: it survives, it is shared, and what cannot be one is refused.

use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{Commit, SqliteStore, Store as _, StoreErrorKind, Token};
use idempotency::{Error, ErrorKind, Idempotency, with_report};
use sqlx::{Connection as _, Row as _};

use crate::world::{DAY, OPERATION, World, patient};

#[tokio::test]
async fn records_survive_the_store_that_wrote_them() -> anyhow::Result<()> {
    let world = World::new().await?;
    let url = format!("sqlite:{}", world.path.display());
    for (round, replayed) in [(1_u32, false), (2, true)] {
        let engine = Idempotency::connect(&url).await?;
        let call = engine.call(OPERATION, 7).ttl(DAY).run(|| async { Ok::<_, Error>(round) });
        let (result, report) = with_report(call).await;
        assert_eq!((result?, report.expect("the call reports").replayed), (1, replayed));
    }
    Ok(())
}

#[tokio::test]
async fn connections_are_in_wal_mode_and_sync_every_commit() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mode: String =
        sqlx::query("PRAGMA journal_mode").fetch_one(&world.pool).await?.try_get(0)?;
    assert_eq!(mode, "wal");
    Ok(())
}

#[tokio::test]
async fn replays_write_nothing() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    let call = || engine.call(OPERATION, 7).ttl(DAY).run(|| async { Ok::<_, Error>(1) });
    call().await?;
    let mut observer = world.pool.acquire().await?;
    let version = |row: sqlx::sqlite::SqliteRow| row.try_get::<i64, _>(0);
    let before = version(sqlx::query("PRAGMA data_version").fetch_one(&mut *observer).await?)?;
    for _ in 0..100 {
        call().await?;
    }
    let after = version(sqlx::query("PRAGMA data_version").fetch_one(&mut *observer).await?)?;
    assert_eq!(before, after, "another connection has written");
    engine.call(OPERATION, 8).ttl(DAY).run(|| async { Ok::<_, Error>(1) }).await?;
    let written = version(sqlx::query("PRAGMA data_version").fetch_one(&mut *observer).await?)?;
    assert_ne!(before, written, "the version tells of writes");
    Ok(())
}

#[tokio::test]
async fn while_the_file_is_locked_claims_are_refused_and_replays_go_on() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    engine.call(OPERATION, 7).ttl(DAY).run(|| async { Ok::<_, Error>(1) }).await?;
    let mut other = world.pool.acquire().await?;
    let transaction = other.begin_with("BEGIN IMMEDIATE").await?;
    let replay = engine.call(OPERATION, 7).ttl(DAY).run(|| async { Ok::<_, Error>(2) }).await?;
    assert_eq!(replay, 1);
    let commit = Commit::new(KeyHash::from_bytes([1; 32]), Token::from_bits(1), "x".into(), DAY);
    let refused = world.store.complete(commit).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Refused, "{refused}");
    transaction.rollback().await?;
    engine.call(OPERATION, 8).ttl(DAY).run(|| async { Ok::<_, Error>(1) }).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_a_clear_error() -> anyhow::Result<()> {
    let world = World::new().await?;
    let error = SqliteStore::open(world.path.with_file_name("missing").join("records.db"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("does its directory exist"), "{error}");
    let text = world.path.with_file_name("text.db");
    std::fs::write(
        &text,
        "this is no database, and long enough that SQLite looks at it: ".repeat(20),
    )?;
    let error = SqliteStore::open(&text).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
    let error = Idempotency::connect("sqlite::memory:").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("use `memory:`"), "{error}");
    Ok(())
}

#[tokio::test]
async fn two_engines_on_one_file_share_their_records() -> anyhow::Result<()> {
    let world = World::new().await?;
    let other = Idempotency::builder(patient(&world.path).clock(world.clock.clone()).open().await?)
        .clock(world.clock.clone())
        .build()?;
    let engine = world.engine(|builder| builder);
    let (first, second) = tokio::join!(
        engine.call(OPERATION, 7).ttl(DAY).run(|| async { Ok::<_, Error>("first".to_owned()) }),
        async {
            // Its clock stands, so it waits for the wake and not for the lease.
            other
                .call(OPERATION, 7)
                .ttl(DAY)
                .run(|| async { Ok::<_, Error>("second".to_owned()) })
                .await
        },
    );
    assert_eq!(first?, second?);
    assert_eq!(
        engine.record(OPERATION, 7).inspect().await?.map(|view| view.state),
        Some(State::Completed)
    );
    Ok(())
}
