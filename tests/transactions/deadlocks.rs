//! Two transactions take the same two keys in opposite orders.

use std::cell::Cell;

use idempotency::Idempotency;
use idempotency::store::SqlTransaction;
use idempotency::tx::in_transaction;
use idempotency_test_support::deadline::within;
use sqlx::{Pool, Transaction};
use tokio::sync::Barrier;

use crate::databases;
use crate::scene::{Connection, Database, Scene, call};
use crate::world::Fault;

/// One call inside of the other. In its first run the body of the outer one waits until the other
/// transaction holds its key too.
async fn nested<D: Database>(
    pool: &Pool<D::Sqlx>,
    engine: &Idempotency,
    [outer, inner]: [&str; 2],
    both_hold_one: &Barrier,
    runs: &Cell<usize>,
) -> Result<(String, String), Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
    Connection<D>: SqlTransaction<Connection = Connection<D>>,
{
    let value = in_transaction(pool, |mut transaction| async move {
        let outer = call(engine, outer).run_in(&mut transaction, async |connection| {
            let value = uuid::Uuid::new_v4().to_string();
            D::add(connection, outer, &value).await?;
            if runs.replace(runs.get() + 1) == 0 {
                both_hold_one.wait().await;
            }
            let inner = call(engine, inner).run_in(connection, async |connection| {
                let value = uuid::Uuid::new_v4().to_string();
                D::add(connection, inner, &value).await?;
                Ok::<_, Fault>(value)
            });
            inner.await?;
            Ok::<_, Fault>(value)
        });
        outer.await
    });
    Ok((outer.to_owned(), value.await?))
}

async fn opposite_orders<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
    Connection<D>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let (both_hold_one, runs) = (Barrier::new(2), [Cell::new(0), Cell::new(0)]);
    let one = nested::<D>(&scene.pool, &scene.engine, ["a", "b"], &both_hold_one, &runs[0]);
    let other = nested::<D>(&scene.pool, &scene.engine, ["b", "a"], &both_hold_one, &runs[1]);
    let (one, other) = within("both transactions", async { tokio::join!(one, other) }).await?;
    scene.is_exact(&["a".into(), "b".into()], &[one?, other?]).await?;
    assert_eq!(scene.effects().await?.len(), 2);
    // The loser of the deadlock finds both results: it runs nothing again.
    assert_eq!(runs.map(Cell::into_inner), [1, 1]);
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_both_transactions_of_a_deadlock_finish() -> anyhow::Result<()> {
    Box::pin(opposite_orders::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_both_transactions_of_a_deadlock_finish() -> anyhow::Result<()> {
    Box::pin(opposite_orders::<databases::MariaDb>()).await
}
