//! Calls in a transaction whose operation is disabled: nothing is recorded, and an error of the
//! body undoes what it wrote.

use idempotency::ErrorKind;
use idempotency::store::SqlTransaction;
use idempotency::tx::TransactionDatabase;
use sqlx::Transaction;

use crate::databases;
use crate::scene::{Connection, Database, Scene, call};
use crate::world::{DAY, Fault, OPERATION, World, add};

async fn an_error_undoes_the_effect<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
    Connection<D>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let engine = &scene.engine;
    engine.disable(OPERATION);
    let mut transaction = scene.pool.begin_with(<D::Sqlx as TransactionDatabase>::BEGIN).await?;
    for round in ["first", "second"] {
        let failing = call(engine, "a").run_in(&mut transaction, async |connection| {
            // One inside of the other: each undoes its own.
            call(engine, "b")
                .run_in(connection, async |connection| {
                    Ok::<_, Fault>(D::add(connection, "undone", "b").await?)
                })
                .await?;
            D::add(connection, "undone", "a").await?;
            Err::<(), _>(Fault::No)
        });
        assert!(matches!(failing.await, Err(Fault::No)));
        let outer = call(engine, "a").run_in(&mut transaction, async |connection| {
            let failing = call(engine, "b").run_in(connection, async |connection| {
                D::add(connection, "undone", "b").await?;
                Err::<(), _>(Fault::No)
            });
            assert!(matches!(failing.await, Err(Fault::No)));
            D::add(connection, "kept", round).await?;
            Ok::<_, Fault>(())
        });
        outer.await?;
    }
    transaction.commit().await?;
    let effects = scene.effects().await?;
    assert_eq!(
        effects.into_iter().collect::<Vec<_>>(),
        [("kept".into(), vec!["first".into(), "second".into()])]
    );
    assert!(engine.record(OPERATION, "a").inspect().await?.is_none());
    Ok(())
}

#[tokio::test]
async fn on_sqlite_an_error_undoes_the_effect_also_while_the_operation_is_disabled()
-> anyhow::Result<()> {
    an_error_undoes_the_effect::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_an_error_undoes_the_effect_also_while_the_operation_is_disabled()
-> anyhow::Result<()> {
    an_error_undoes_the_effect::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_an_error_undoes_the_effect_also_while_the_operation_is_disabled()
-> anyhow::Result<()> {
    an_error_undoes_the_effect::<databases::MariaDb>().await
}

/// It would wait for its own transaction.
#[tokio::test]
async fn on_sqlite_a_call_without_the_transaction_is_refused_also_in_the_body_of_a_disabled_operation()
-> anyhow::Result<()> {
    let world = World::new().await?;
    world.engine.disable("outer");
    let mut transaction = world.begin().await?;
    let outer = world.engine.call("outer", "a").ttl(DAY).run_in(&mut transaction, async |_| {
        world.call("a").run(async || Ok::<_, Fault>(String::new())).await
    });
    let refused = outer.await;
    let Err(Fault::Idempotency(error)) = refused else {
        panic!("it waits for itself: {refused:?}")
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    transaction.rollback().await?;
    Ok(())
}

/// A statement that fails takes all of PostgreSQL's transaction with it, unless somebody rolls back
/// to before it.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_statement_that_fails_leaves_the_rest_to_the_callers_commit()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(2, None).await?;
    scene.engine.disable(OPERATION);
    let mut transaction = scene.pool.begin().await?;
    Postgres::add(&mut transaction, "kept", "before").await?;
    let failing = call(&scene.engine, "a").run_in(&mut transaction, async |connection| {
        sqlx::query("SELECT 1 / 0").execute(connection).await?;
        Ok::<_, Fault>(())
    });
    assert!(matches!(failing.await, Err(Fault::Client(_))));
    transaction.commit().await?;
    assert_eq!(scene.effects().await?.into_keys().collect::<Vec<_>>(), ["kept"]);
    Ok(())
}

/// The database answers the commit as if all were well.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_success_in_a_broken_transaction_is_none_also_while_the_operation_is_disabled()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(2, None).await?;
    scene.engine.disable(OPERATION);
    let mut transaction = scene.pool.begin().await?;
    let broken = call(&scene.engine, "a").run_in(&mut transaction, async |connection| {
        Postgres::add(connection, "a", "undone").await?;
        // Nobody takes notice of it.
        let _ = sqlx::query("SELECT 1 / 0").execute(connection).await;
        Ok::<_, Fault>(())
    });
    let broken = broken.await;
    let Err(Fault::Idempotency(error)) = broken else {
        panic!("nothing of it is kept: {broken:?}")
    };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    assert!(error.to_string().contains("the body ran, and the transaction is broken"), "{error}");
    transaction.commit().await?;
    assert!(scene.effects().await?.is_empty());
    Ok(())
}

/// The savepoint would begin a transaction there, and keep all other writers waiting if the call is
/// dropped.
#[tokio::test]
async fn a_connection_in_no_transaction_is_refused_also_while_the_operation_is_disabled()
-> anyhow::Result<()> {
    let world = World::new().await?;
    world.engine.disable(OPERATION);
    let mut connection = world.pool.acquire().await?;
    let refused = world
        .call("a")
        .run_in(&mut *connection, async |connection| add(connection, "a").await)
        .await;
    let Err(Fault::Idempotency(error)) = refused else {
        panic!("it is in no transaction: {refused:?}")
    };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(world.entries("a").await?, 0);
    Ok(())
}
