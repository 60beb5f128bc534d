//! The rights that the documentation names are enough, and each of them is needed.

use idempotency::store::{Store as _, StoreErrorKind};
use idempotency_test_support::server::MariaDbOptions;

use crate::world::{World, claim, everything, fresh, held, key, mine, patient};

/// The statements in `docs/mysql.md` that give rights, for `user` in the database of `world`.
fn documented(world: &World, user: &str) -> Vec<String> {
    let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
    let grants =
        include_str!("../../docs/mysql.md").lines().filter(|line| line.starts_with("GRANT "));
    grants
        .map(|grant| grant.replace("shop.", &format!("{database}.")).replace("'shop'@'%'", user))
        .collect()
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_all_needed() -> anyhow::Result<()> {
    let world = World::new().await?;
    let name = format!("user_{}", uuid::Uuid::new_v4().simple());
    let user = format!("'{name}'@'%'");
    let grants = documented(&world, &user);
    assert_eq!(grants.len(), 2, "{grants:?}");
    world.sql(&format!("CREATE USER {user} IDENTIFIED BY 'secret'; {}", grants.join(" "))).await?;
    let url = world.url.replace("root@", &format!("{name}:secret@"));
    let store = patient(&url).connect().await?;
    store.migrate().await?;
    everything(&store, 1).await?;

    for right in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
        let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
        world.sql(&format!("REVOKE {right} ON {database}.idempotency_records FROM {user}")).await?;
        let error = everything(&store, 1_000).await.expect_err(right);
        assert_eq!(error.kind(), StoreErrorKind::Config, "{right}: {error}");
        assert!(error.to_string().contains("lacks a privilege"), "{error}");
        world.sql("TRUNCATE idempotency_records").await?;
        world.sql(&format!("GRANT {right} ON {database}.idempotency_records TO {user}")).await?;
    }
    world.sql(&format!("DROP USER {user}")).await?;
    Ok(())
}

#[tokio::test]
async fn a_user_who_may_not_make_the_table_is_told_so() -> anyhow::Result<()> {
    let world = World::without_table().await?;
    let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
    let name = format!("user_{}", uuid::Uuid::new_v4().simple());
    world
        .sql(&format!("CREATE USER '{name}'@'%'; GRANT SELECT ON {database}.* TO '{name}'@'%'"))
        .await?;
    let store = patient(&world.url.replace("root@", &format!("{name}@"))).connect().await?;
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("lacks a privilege"), "{error}");

    // What the documentation says is needed for it.
    let (table, meta) = ("idempotency_records", "idempotency_records_meta");
    for (rights, table) in [("CREATE", table), ("CREATE, INSERT", meta)] {
        world.sql(&format!("GRANT {rights} ON {database}.{table} TO '{name}'@'%'")).await?;
    }
    store.migrate().await?;
    world.sql(&format!("DROP USER '{name}'@'%'")).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_takes_no_writes_replays_and_refuses_claims() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    let grants = documented(&world, "'shop'@'%'");
    world.sql(&format!("CREATE USER 'shop'@'%'; {}", grants.join(" "))).await?;
    let store = patient(&world.url.replace("root@", "shop@")).connect().await?;
    world.completed(key(1)).await?;
    world.sql("SET GLOBAL read_only = 1").await?;
    assert_eq!(held(store.claim(claim(key(1), fresh())).await?).body, "receipt 1");
    let error = store.claim(claim(key(2), fresh())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
    world.sql("SET GLOBAL read_only = 0").await?;
    mine(store.claim(claim(key(2), fresh())).await?);
    Ok(())
}
