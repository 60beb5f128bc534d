//! Making the table, where it is, and what is said when it is missing or another release's.

use futures::future::try_join_all;
use idempotency::store::{MySqlStore, Store as _, StoreErrorKind};
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::server::MariaDbOptions;

use crate::warnings::Warnings;
use crate::world::{DAY, World, claim, everything, fresh, key, mine, patient};

#[tokio::test]
async fn many_processes_make_the_table_at_once() -> anyhow::Result<()> {
    let world = World::without_table().await?;
    let processes = (0..16).map(|number| {
        let url = world.url.clone();
        async move {
            let store = patient(&url).connect().await?;
            store.migrate().await?;
            mine(store.claim(claim(key(number), fresh())).await?);
            anyhow::Ok(())
        }
    });
    try_join_all(processes.map(tokio::spawn)).await?.into_iter().collect::<anyhow::Result<()>>()?;
    assert_eq!(world.figure("SELECT COUNT(*) FROM idempotency_records").await?, 16);
    let identity = "SELECT HEX(identity) FROM idempotency_records_meta";
    let first = world.sql(identity).await?;
    world.store.migrate().await?;
    assert_eq!(world.sql(identity).await?, first, "the database stays the same one");
    assert_eq!(first[0][0].as_ref().map(String::len), Some(32));
    Ok(())
}

#[tokio::test]
async fn the_table_can_be_in_another_database() -> anyhow::Result<()> {
    let (world, elsewhere) = (World::without_table().await?, World::without_table().await?);
    let (_, database) = elsewhere.url.rsplit_once('/').expect("the URL names a database");
    let store = patient(&world.url).table(format!("{database}.claims")).connect().await?;
    store.migrate().await?;
    everything(&store, 1).await?;
    assert_eq!(elsewhere.figure("SELECT COUNT(*) FROM claims").await?, 2);
    assert_eq!(elsewhere.figure("SELECT version FROM claims_meta").await?, 1);
    assert!(world.sql("SHOW TABLES").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_missing_table_is_told_with_the_way_to_make_it() -> anyhow::Result<()> {
    let world = World::without_table().await?;
    let error = world.store.claim(claim(key(1), fresh())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("run `store.migrate()`"), "{error}");
    let call = Idempotency::new(world.store.clone()).call("payments.charge", 1_u64).ttl(DAY);
    let error = call.run(|| async { Ok::<_, Error>(()) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_table_of_a_newer_release_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql("UPDATE idempotency_records_meta SET version = 2").await?;
    let error = world.store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("version 2, created by a newer release"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_table_of_an_older_release_is_not_taken_for_one_of_a_newer() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql("UPDATE idempotency_records_meta SET version = 0").await?;
    world.store.migrate().await?;
    Ok(())
}

#[tokio::test]
async fn a_migration_is_given_longer_than_a_request() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
    let mut other = world.pool("SET autocommit = 1").await?.acquire().await?;
    let lock = "LOCK TABLES idempotency_records WRITE, idempotency_records_meta WRITE";
    sqlx::raw_sql(lock).execute(&mut *other).await?;
    let store = world.store.clone();
    let migration = tokio::spawn(async move { store.migrate().await });
    let waiting = format!(
        "SELECT count(*) FROM information_schema.PROCESSLIST WHERE DB = '{database}' AND STATE LIKE 'Waiting for table%'"
    );
    let is_waiting = async || world.figure(&waiting).await.is_ok_and(|count| count == 1);
    eventually_async("the migration to wait", is_waiting).await?;
    // Begun after it, and given up.
    let error = world.store.read(key(1)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await?;
    within("the migration", migration).await???;
    Ok(())
}

#[tokio::test]
async fn an_engine_is_connected_by_url() -> anyhow::Result<()> {
    for scheme in ["mysql://", "mariadb://"] {
        let world = World::without_table().await?;
        let engine = Idempotency::connect(&world.url.replace("mysql://", scheme)).await?;
        let charge = || {
            engine
                .call("payments.charge", 1_u64)
                .ttl(DAY)
                .run(|| async { Ok::<_, Error>(fresh().bits()) })
        };
        assert_eq!(charge().await?, charge().await?);
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_connected_says_why() -> anyhow::Result<()> {
    let world = World::without_table().await?;
    let (address, _) = world.url.rsplit_once('/').expect("the URL names a database");
    let stranger = address.replace("root@", "nobody:wrong@");
    let cases = [
        ("redis://127.0.0.1/", "begins with `mysql://`"),
        (&*stranger, "refuses the user or the password"),
        (&*format!("{address}/nowhere"), "no database of that name"),
        (&*format!("{address}/?ssl-mode=VERIFY_CA"), "encrypted"),
    ];
    for (url, reason) in cases {
        let error = patient(url).connect().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
        assert!(error.to_string().contains(reason), "{url}: {error}");
    }
    let error = MySqlStore::connect("mysql://127.0.0.1:1/shop").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    let error =
        MySqlStore::builder(&world.url).table("a; DROP TABLE b").connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    let nowhere = patient(address).connect().await?;
    let error = nowhere.claim(claim(key(1), fresh())).await.unwrap_err();
    assert!(error.to_string().contains("no database is selected"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_can_lose_records_is_warned_of() -> anyhow::Result<()> {
    let setting = "innodb_flush_log_at_trx_commit";
    for (flush, warns) in [("0", true), ("2", true), ("1", false)] {
        let world = World::private(MariaDbOptions::new().setting(setting, flush)).await?;
        let warnings = Warnings::listen();
        patient(&world.url).connect().await?;
        assert_eq!(warnings.mention(&format!("`{setting}` is {flush}: records")), warns, "{flush}");
        assert_eq!(warnings.mention("innodb"), warns, "{flush}");
    }
    Ok(())
}
