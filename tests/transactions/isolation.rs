//! Transactions of any isolation are exact.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use idempotency::store::SqlTransaction;
use idempotency::{ErrorKind, Idempotency};
use sqlx::{Pool, Transaction};

use crate::databases;
use crate::scene::{Connection, Database, Ending, Scene, call, keys};
use crate::world::Fault;

const CONNECTIONS: u32 = 16;
/// How often a transaction is made again.
const TRIES: usize = 100;

/// One guarded call in a transaction as the pool begins it, without the help of `in_transaction`.
async fn charge_by_hand<D: Database>(
    pool: &Pool<D::Sqlx>,
    engine: &Idempotency,
    key: &str,
    ending: Ending,
) -> Result<Option<String>, Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match try_by_hand::<D>(pool, engine, key, ending).await {
            Err(Fault::Client(_)) if tries < TRIES => {}
            Err(Fault::Idempotency(error))
                if error.kind() == ErrorKind::StoreUnavailable && tries < TRIES => {}
            result => return result,
        }
        // Those who met should not meet again.
        tokio::time::sleep(Duration::from_millis(tries as u64)).await;
    }
}

async fn try_by_hand<D: Database>(
    pool: &Pool<D::Sqlx>,
    engine: &Idempotency,
    key: &str,
    ending: Ending,
) -> Result<Option<String>, Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let mut transaction = pool.begin().await?;
    let call = call(engine, key).run_in(&mut transaction, async |connection| {
        let value = uuid::Uuid::new_v4().to_string();
        D::add(connection, key, &value).await?;
        if ending == Ending::CommitError { Err(Fault::No) } else { Ok(value) }
    });
    let answer = match (call.await, ending) {
        (Err(Fault::No), Ending::CommitError) => None,
        (result, _) => Some(result?),
    };
    if ending == Ending::RollBack {
        transaction.rollback().await?;
        return Err(Fault::No);
    }
    transaction.commit().await?;
    Ok(answer)
}

/// Transactions as the pool begins them, with the isolation that its sessions have.
async fn under_isolation<D: Database>(levels: &[&str]) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    for level in levels {
        let scene = Scene::<D>::new(CONNECTIONS, Some(level)).await?;
        let keys = keys(12);
        let endings = [Ending::Commit, Ending::CommitError, Ending::RollBack, Ending::Commit];
        let calls: Vec<_> = (0..keys.len() * 16)
            .map(|number| (&keys[number % 12], endings[number / 12 % 4]))
            .collect();
        let charges = calls
            .iter()
            .map(|(key, ending)| charge_by_hand::<D>(&scene.pool, &scene.engine, key, *ending));
        let mut answers = Vec::new();
        for ((key, ending), result) in calls.iter().zip(join_all(charges).await) {
            match result {
                Ok(answer) => answers.extend(answer.map(|answer| ((*key).clone(), answer))),
                Err(Fault::No) if *ending != Ending::Commit => {}
                Err(error) => anyhow::bail!("{ending:?} at {key} under {level}: {error}"),
            }
        }
        scene.is_exact(&keys, &answers).await.with_context(|| format!("under {level}"))?;
        let effects = scene.effects().await?;
        anyhow::ensure!(
            effects.len() == keys.len(),
            "{} keys have effects under {level}",
            effects.len()
        );
    }
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_any_isolation_is_exact() -> anyhow::Result<()> {
    under_isolation::<databases::Postgres>(&["read committed", "repeatable read", "serializable"])
        .await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_any_isolation_is_exact() -> anyhow::Result<()> {
    under_isolation::<databases::MariaDb>(&["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
        .await
}
