//! Making the table.

use idempotency::store::{Store as _, StoreErrorKind};
use idempotency::{Error, Idempotency, with_report};
use sqlx::postgres::PgPoolOptions;

use crate::world::{DAY, OPERATION, World, claim, key, number, patient, run, shared_server};

const SCRIPT: &str = include_str!("../../idempotent-runtime/migrations/postgres/0001_records.sql");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_make_the_table_at_once() -> anyhow::Result<()> {
    let server = shared_server().await?;
    for table in ["idempotency_records", "payments.records"] {
        let url = server.database("migrate").await?;
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move {
                    let store = patient(&url).table(table).connect().await?;
                    store.migrate().await
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let rows = server
            .sql_at(&url, &format!("SELECT version, length(identity) FROM {table}_meta"))
            .await?;
        assert_eq!(rows, [[Some("1".to_owned()), Some("16".to_owned())]]);
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_table_is_named_and_the_table_may_be_in_any_schema() -> anyhow::Result<()> {
    let server = shared_server().await?;
    let url = server.database("schemas").await?;
    let store = patient(&url).table("Shop.Payments").connect().await?;
    let missing = [
        store.read(key(1)).await.unwrap_err(),
        store.claim(claim(1)).await.unwrap_err(),
        store.purge(1).await.unwrap_err(),
    ];
    for error in missing {
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
        assert!(error.to_string().contains("call `migrate`"), "{error}");
    }
    store.migrate().await?;
    run(&store, 1, "one", DAY).await?;
    let tables = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                  WHERE nspname = 'Shop' AND relname IN ('Payments', 'Payments_meta', 'Payments_purge_at')";
    assert_eq!(number(&server.sql_at(&url, tables).await?)?, 3);
    assert_eq!(
        number(&server.sql_at(&url, "SELECT count(*) FROM \"Shop\".\"Payments\"").await?)?,
        1
    );
    let elsewhere = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(number(&server.sql_at(&url, elsewhere).await?)?, 0);
    Ok(())
}

#[tokio::test]
async fn a_table_that_was_dropped_is_made_again_beside_what_is_known_of_it() -> anyhow::Result<()> {
    let server = shared_server().await?;
    for table in ["idempotency_records", "Shop.Payments"] {
        let url = server.database("dropped").await?;
        let store = patient(&url).table(table).connect().await?;
        store.migrate().await?;
        let quoted = table.replace('.', "\".\"");
        let meta = format!("SELECT identity FROM \"{quoted}_meta\"");
        let identity = server.sql_at(&url, &meta).await?;
        for (number, suffix) in [(1, ""), (2, "_meta")] {
            server.sql_at(&url, &format!("DROP TABLE \"{quoted}{suffix}\"")).await?;
            store.migrate().await?;
            run(&store, number, "one", DAY).await?;
            let is_same = server.sql_at(&url, &meta).await? == identity;
            assert_eq!(is_same, suffix.is_empty(), "{table}{suffix}");
        }
    }
    Ok(())
}

/// A change to the table that takes long holds back the service's calls, but not its start.
#[tokio::test]
async fn a_table_that_is_being_altered_is_not_waited_for() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut altering = PgPoolOptions::new().connect(&world.url).await?.begin().await?;
    let lock = "LOCK TABLE idempotency_records IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut *altering).await?;
    world.store.migrate().await?;
    altering.rollback().await?;
    Ok(())
}

#[tokio::test]
async fn a_table_of_a_newer_release_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql("UPDATE idempotency_records_meta SET version = 2").await?;
    let error = world.store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("created by a newer release"), "{error}");
    // The connection is as good as before.
    assert_eq!(world.store.read(key(1)).await?, None);
    Ok(())
}

#[tokio::test]
async fn the_shipped_script_makes_the_table_that_the_store_needs() -> anyhow::Result<()> {
    let server = shared_server().await?;
    let url = server.database("script").await?;
    server.sql_at(&url, SCRIPT).await?;
    server.sql_at(&url, SCRIPT).await?;
    let store = patient(&url).connect().await?;
    run(&store, 1, "one", DAY).await?;
    store.migrate().await?;
    Ok(())
}

#[tokio::test]
async fn a_url_is_enough_for_an_engine() -> anyhow::Result<()> {
    let server = shared_server().await?;
    let url = server.database("engine").await?;
    for (scheme, round, replayed) in [("postgres:", 1_u32, false), ("postgresql:", 2, true)] {
        let engine = Idempotency::connect(&url.replace("postgres:", scheme)).await?;
        let call = engine.call(OPERATION, 7).ttl(DAY).run(|| async { Ok::<_, Error>(round) });
        let (result, report) = with_report(call).await;
        assert_eq!((result?, report.expect("the call reports").replayed), (1, replayed));
    }
    Ok(())
}
