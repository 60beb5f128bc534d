//! The answer to a COMMIT is lost: the transaction is made again, and the record tells whether it
//! happened.

use std::cell::Cell;

use idempotency::ErrorKind;
use idempotency::store::SqlTransaction;
use idempotency_test_support::deadline::within;
use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy};
use sqlx::Transaction;

use crate::databases;
use crate::scene::{Connection, Ending, Remote, charge};

/// Cuts the connection at the next COMMIT of one call, at each moment of it.
async fn commits_that_are_cut<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let database = D::start().await?;
    let proxy = Proxy::start_for(D::PROTOCOL, database.address()).await?;
    // The store's own connections are not cut.
    let (direct, engine) = D::open(&database.url(), 1, None).await?;
    let (pool, _) = D::open(&proxy.url(&database.url()), 1, None).await?;
    let mut keys = 0;
    for moment in Moment::ALL {
        for action in [Action::Close, Action::Reset] {
            keys += 1;
            let key = format!("{moment:?} {action:?}");
            let runs = Cell::new(0);
            let in_body = || runs.set(runs.get() + 1);
            let cut = proxy.next("COMMIT", Fault::new(moment, action));
            let answer =
                within(&key, charge::<D>(&pool, &engine, &key, Ending::Commit, &in_body)).await??;
            cut.happened().await?;
            let effects = D::effects(&direct).await?;
            let of_key: Vec<_> =
                effects.iter().filter(|(name, _)| *name == key).map(|(_, value)| value).collect();
            assert_eq!(of_key, [answer.as_ref().expect("the call has a result")], "{key}");
            // Where the server has the whole COMMIT, the record answers.
            let is_applied = matches!(moment, Moment::AfterRequest | Moment::InsideAnswer);
            assert_eq!(runs.get(), if is_applied { 1 } else { 2 }, "{key}");
            assert_eq!(effects.len(), keys, "{key}");
        }
    }
    Ok(())
}

/// The call in the transaction failed and left no record, and the rest of the transaction was
/// committed.
async fn a_commit_without_record_that_is_cut<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let database = D::start().await?;
    let proxy = Proxy::start_for(D::PROTOCOL, database.address()).await?;
    let (_direct, engine) = D::open(&database.url(), 1, None).await?;
    let (pool, _) = D::open(&proxy.url(&database.url()), 1, None).await?;
    let runs = Cell::new(0);
    let in_body = || runs.set(runs.get() + 1);
    let cut = proxy.next("COMMIT", Fault::new(Moment::AfterRequest, Action::Close));
    let answer =
        within("the call", charge::<D>(&pool, &engine, "a", Ending::CommitError, &in_body)).await?;
    cut.happened().await?;
    let Err(crate::world::Fault::Idempotency(error)) = answer else {
        panic!("nobody knows: {answer:?}")
    };
    assert_eq!((error.kind(), runs.get()), (ErrorKind::NotStored, 1), "{error}");
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_lost_commit_without_a_record_is_not_made_again() -> anyhow::Result<()> {
    a_commit_without_record_that_is_cut::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_lost_commit_without_a_record_is_not_made_again() -> anyhow::Result<()> {
    a_commit_without_record_that_is_cut::<databases::MariaDb>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_lost_commit_is_settled_by_making_the_transaction_again()
-> anyhow::Result<()> {
    commits_that_are_cut::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_lost_commit_is_settled_by_making_the_transaction_again() -> anyhow::Result<()>
{
    commits_that_are_cut::<databases::MariaDb>().await
}
