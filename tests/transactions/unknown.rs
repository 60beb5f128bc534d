//! The answer to a COMMIT is lost, and what comes after it does not tell whether it happened:
//! nobody is told that it did not.

use std::cell::Cell;
use std::error::Error as _;

use idempotency::record::State;
use idempotency::store::SqlTransaction;
use idempotency::tx::in_transaction;
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::within;
use idempotency_test_support::proxy::{Action, Fault as NetworkFault, Moment, Planned, Proxy};
use sqlx::{Pool, Transaction};

use crate::databases;
use crate::scene::{Connection, Remote, call};
use crate::world::{DAY, Fault, OPERATION};

/// A database that is reached over a connection that can fail, and directly.
struct Place<D: Remote> {
    pool: Pool<D::Sqlx>,
    direct: Pool<D::Sqlx>,
    engine: Idempotency,
    proxy: Proxy,
    database: D,
}

impl<D: Remote> Place<D> {
    async fn new() -> anyhow::Result<Self> {
        let database = D::start().await?;
        let proxy = Proxy::start_for(D::PROTOCOL, database.address()).await?;
        let (direct, engine) = D::open(&database.url(), 2, None).await?;
        let (pool, _) = D::open(&proxy.url(&database.url()), 1, None).await?;
        Ok(Self { pool, direct, engine, proxy, database })
    }

    /// The next commit is made, or not, and its answer is lost.
    fn cut_commit(&self, moment: Moment) -> Planned {
        self.proxy.next("COMMIT", NetworkFault::new(moment, Action::Close))
    }

    async fn effects(&self, key: &str) -> anyhow::Result<usize> {
        Ok(D::effects(&self.direct).await?.iter().filter(|(name, _)| name == key).count())
    }

    async fn state(&self, key: &str) -> anyhow::Result<Option<State>> {
        Ok(self.engine.record(OPERATION, key).inspect().await?.map(|view| view.state))
    }
}

/// That nobody knows whether it was committed, and that the error tells what the client said of the
/// commit.
#[track_caller]
fn is_unknown<T: std::fmt::Debug>(result: Result<T, Fault>) -> Error {
    let Err(Fault::Idempotency(error)) = result else { panic!("nobody knows: {result:?}") };
    assert_eq!(error.kind(), ErrorKind::NotStored, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("answer to the commit was lost") && !text.contains("did not run"),
        "{text}"
    );
    let mut sources = std::iter::successors(error.source(), |&error| error.source());
    assert!(sources.any(<dyn std::error::Error>::is::<sqlx::Error>), "{error:?}");
    error
}

async fn no_server_after_a_lost_commit<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    let runs = &Cell::new(0);
    let (pool, engine) = (&place.pool, &place.engine);
    let cut = place.cut_commit(Moment::AfterRequest);
    let result = in_transaction(pool, |mut transaction| async move {
        call(engine, "a")
            .run_in(&mut transaction, async |connection| {
                runs.set(runs.get() + 1);
                // From now on there are no new connections, as without a server.
                drop(pool.close());
                D::add(connection, "a", "first").await?;
                Ok::<_, Fault>(String::from("first"))
            })
            .await
    });
    let error = is_unknown(within("the call", result).await?);
    cut.happened().await?;
    assert!(error.to_string().contains("could not be begun"), "{error}");
    assert_eq!(
        (runs.get(), place.effects("a").await?, place.state("a").await?),
        (1, 1, Some(State::Completed))
    );
    Ok(())
}

/// What a body finds when it is made again after a commit without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    /// At the effect, before it makes its call.
    BeforeTheCall,
    /// At the result of its call.
    AfterTheCall,
}

/// A body that fails when it is made again: `looks` says where.
async fn fails_the_second_time<D: Remote>(
    place: &Place<D>,
    key: &str,
    looks: Looks,
) -> Result<String, Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let (attempts, engine) = (&Cell::new(0), &place.engine);
    in_transaction(&place.pool, |mut transaction| async move {
        attempts.set(attempts.get() + 1);
        let is_second = attempts.get() == 2;
        if is_second && looks == Looks::BeforeTheCall {
            return Err(Fault::No);
        }
        let value = call(engine, key)
            .run_in(&mut transaction, async |connection| {
                D::add(connection, key, "value").await?;
                Ok::<_, Fault>(String::from("value"))
            })
            .await?;
        if is_second { Err(Fault::No) } else { Ok(value) }
    })
    .await
}

async fn errors_of_a_body_after_a_lost_commit<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    for (moment, effects) in [(Moment::AfterRequest, 1), (Moment::BeforeRequest, 0)] {
        for looks in [Looks::BeforeTheCall, Looks::AfterTheCall] {
            let key = &*format!("{moment:?} {looks:?}");
            let cut = place.cut_commit(moment);
            let result = within(key, fails_the_second_time(&place, key, looks)).await?;
            cut.happened().await?;
            match looks {
                Looks::BeforeTheCall => {
                    let error = is_unknown(result);
                    assert!(
                        error.to_string().contains(&Fault::No.to_string()),
                        "{key}: the body's error in {error}"
                    );
                }
                // The record was there, or was not there before this attempt, which was rolled
                // back.
                Looks::AfterTheCall => {
                    assert!(matches!(result, Err(Fault::No)), "{key}: {result:?}");
                }
            }
            assert_eq!(place.effects(key).await?, effects, "{key}");
            assert_eq!(place.state(key).await?.is_some(), effects == 1, "{key}");
        }
    }
    Ok(())
}

/// The record that tells is the one that the lost commit has written, and not another one.
async fn another_record_after_a_lost_commit<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    let (attempts, engine) = (&Cell::new(0), &place.engine);
    for key in ["before", "after"] {
        let mut transaction = place.direct.begin().await?;
        call(engine, key).run_in(&mut transaction, async |_| Ok::<_, Fault>(0)).await?;
        transaction.commit().await?;
    }
    let cut = place.cut_commit(Moment::AfterRequest);
    let result = in_transaction(&place.pool, |mut transaction| async move {
        attempts.set(attempts.get() + 1);
        call(engine, "before").run_in(&mut transaction, async |_| Ok::<_, Fault>(1)).await?;
        if attempts.get() == 2 {
            call(engine, "after").run_in(&mut transaction, async |_| Ok::<_, Fault>(1)).await?;
            return Err(Fault::No);
        }
        let added = call(engine, "a").run_in(&mut transaction, async |connection| {
            D::add(connection, "a", "value").await?;
            Ok::<_, Fault>(1)
        });
        added.await
    });
    is_unknown(within("the call", result).await?);
    cut.happened().await?;
    assert_eq!((place.effects("a").await?, place.state("a").await?), (1, Some(State::Completed)));
    Ok(())
}

/// Two records were in the lost commit. The call of one of them tells nothing of the other, which
/// may be an answer of before.
async fn one_of_two_records_after_a_lost_commit<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    let (attempts, engine) = (&Cell::new(0), &place.engine);
    let cut = place.cut_commit(Moment::AfterRequest);
    let result = in_transaction(&place.pool, |mut transaction| async move {
        attempts.set(attempts.get() + 1);
        for key in ["a", "b"] {
            if attempts.get() == 2 && key == "b" {
                return Err(Fault::No);
            }
            let added = call(engine, key).run_in(&mut transaction, async |connection| {
                D::add(connection, key, "value").await?;
                Ok::<_, Fault>(1)
            });
            added.await?;
        }
        Ok(1)
    });
    is_unknown(within("the call", result).await?);
    cut.happened().await?;
    assert_eq!((place.effects("a").await?, place.effects("b").await?), (1, 1));
    Ok(())
}

/// The attempts take another job each, as from a queue, and the first two commits are lost. The
/// call of the third settles the first commit, and tells nothing of the second.
async fn two_lost_commits_of_different_records<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    const JOBS: [&str; 3] = ["a", "b", "a"];
    let place = &Place::<D>::new().await?;
    for (moment, effects) in [(Moment::AfterRequest, 1), (Moment::BeforeRequest, 0)] {
        let (attempts, engine) = (&Cell::new(0), &place.engine);
        let first = &*format!("{moment:?}");
        let first_cut = place.cut_commit(moment);
        let second_cut = &Cell::new(None);
        let result = in_transaction(&place.pool, |mut transaction| async move {
            let attempt = attempts.replace(attempts.get() + 1);
            if attempt == 1 {
                second_cut.set(Some(place.cut_commit(Moment::AfterRequest)));
            }
            let job = &*format!("{first} {}", JOBS[attempt]);
            let added = call(engine, job).run_in(&mut transaction, async |connection| {
                D::add(connection, job, "value").await?;
                Ok::<_, Fault>(1)
            });
            let value = added.await?;
            if attempt == 2 { Err(Fault::No) } else { Ok(value) }
        });
        let error = is_unknown(within(first, result).await?);
        assert!(error.to_string().contains(&Fault::No.to_string()), "{first}: {error}");
        first_cut.happened().await?;
        second_cut.take().expect("the second attempt has begun").happened().await?;
        assert_eq!(place.effects(&format!("{first} a")).await?, effects, "{first}");
        assert_eq!(place.effects(&format!("{first} b")).await?, 1, "{first}");
    }
    Ok(())
}

/// The last attempt leaves another commit of which nobody knows, and no record tells of that one.
async fn an_unguarded_lost_commit_after_a_guarded_one<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = &Place::<D>::new().await?;
    let (attempts, engine) = (&Cell::new(0), &place.engine);
    let first_cut = place.cut_commit(Moment::AfterRequest);
    let second_cut = &Cell::new(None);
    let result = in_transaction(&place.pool, |mut transaction| async move {
        if attempts.replace(attempts.get() + 1) == 1 {
            second_cut.set(Some(place.cut_commit(Moment::AfterRequest)));
            D::add(&mut transaction, "b", "unguarded").await?;
            return Ok(1);
        }
        let added = call(engine, "a").run_in(&mut transaction, async |connection| {
            D::add(connection, "a", "value").await?;
            Ok::<_, Fault>(1)
        });
        added.await
    });
    let error = is_unknown(within("the call", result).await?);
    first_cut.happened().await?;
    second_cut.take().expect("there was a second attempt").happened().await?;
    assert!(!error.is_retryable(), "it would write `b` again: {error}");
    assert_eq!((place.effects("a").await?, place.effects("b").await?), (1, 1));
    Ok(())
}

/// The transaction in the body of another one is not made again with that one.
async fn a_lost_commit_inside_another_transaction<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = &Place::<D>::new().await?;
    let url = place.proxy.url(&place.database.url());
    for loses_both in [false, true] {
        let (around, _) = D::open(&url, 1, None).await?;
        let key = &*format!("{loses_both}");
        let cut = place.cut_commit(Moment::AfterRequest);
        let result = in_transaction(&around, |_| async move {
            let inner = in_transaction(&place.pool, |mut transaction| async move {
                D::add(&mut transaction, key, "unguarded").await?;
                Ok::<_, Fault>(1)
            });
            let result = inner.await;
            if loses_both {
                place.proxy.close_all();
            }
            result
        });
        let error = is_unknown(within(key, result).await?);
        cut.happened().await?;
        assert!(!error.is_retryable(), "{key}: {error}");
        assert_eq!(place.effects(key).await?, 1, "{key}");
    }
    Ok(())
}

/// A disabled operation has no record: the transaction would make its effect again.
async fn a_call_without_a_record_in_a_lost_commit<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    let engine = &place.engine;
    engine.disable("disabled");
    let cut = place.cut_commit(Moment::AfterRequest);
    let result = in_transaction(&place.pool, |mut transaction| async move {
        for operation in [OPERATION, "disabled"] {
            let added =
                engine.call(operation, "a").ttl(DAY).run_in(&mut transaction, async |connection| {
                    D::add(connection, operation, "value").await?;
                    Ok::<_, Fault>(1)
                });
            added.await?;
        }
        Ok(1)
    });
    is_unknown(within("the call", result).await?);
    cut.happened().await?;
    assert_eq!((place.effects(OPERATION).await?, place.effects("disabled").await?), (1, 1));
    Ok(())
}

/// A guarded call tells of the transaction that it was made in. Another one is none of this one's
/// business.
async fn a_call_in_another_transaction<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    let (direct, engine) = (&place.direct, &place.engine);
    let cut = place.cut_commit(Moment::AfterRequest);
    let result = in_transaction(&place.pool, |mut transaction| async move {
        D::add(&mut transaction, "a", "unguarded").await?;
        let mut other = direct.begin().await?;
        call(engine, "other").run_in(&mut other, async |_| Ok::<_, Fault>(1)).await?;
        other.commit().await?;
        Ok::<_, Fault>(1)
    });
    is_unknown(within("the call", result).await?);
    cut.happened().await?;
    assert_eq!(place.effects("a").await?, 1);
    Ok(())
}

/// The call in the transaction was part of one that failed: its record is gone, and tells nothing.
async fn a_call_that_was_undone_with_the_one_around_it<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
    Connection<D>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    let engine = &place.engine;
    let cut = place.cut_commit(Moment::AfterRequest);
    let result = in_transaction(&place.pool, |mut transaction| async move {
        let outer = call(engine, "outer").run_in(&mut transaction, async |connection| {
            call(engine, "inner").run_in(connection, async |_| Ok::<_, Fault>(1)).await?;
            Err::<u32, _>(Fault::No)
        });
        assert!(matches!(outer.await, Err(Fault::No)));
        D::add(&mut transaction, "a", "unguarded").await?;
        Ok::<_, Fault>(1)
    });
    is_unknown(within("the call", result).await?);
    cut.happened().await?;
    assert_eq!((place.effects("a").await?, place.state("inner").await?), (1, None));
    Ok(())
}

/// A task of its own knows the transaction that it was given.
async fn a_call_in_a_task_of_its_own<D: Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let place = Place::<D>::new().await?;
    for moment in Moment::ALL {
        let key = format!("{moment:?}");
        let cut = place.cut_commit(moment);
        let result = in_transaction(&place.pool, |mut transaction| {
            let (engine, key) = (place.engine.clone(), key.clone());
            async move {
                let task = tokio::task::spawn_local(async move {
                    let added = call(&engine, &key).run_in(&mut transaction, async |connection| {
                        D::add(connection, &key, "value").await?;
                        Ok::<_, Fault>(1)
                    });
                    added.await
                });
                task.await.expect("it does not panic")
            }
        });
        let tasks = tokio::task::LocalSet::new();
        assert_eq!(within(&key, tasks.run_until(result)).await??, 1, "{key}");
        cut.happened().await?;
        assert_eq!(place.effects(&key).await?, 1, "{key}");
    }
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_lost_commit_stays_unknown_when_the_server_is_gone() -> anyhow::Result<()> {
    no_server_after_a_lost_commit::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_lost_commit_stays_unknown_when_the_server_is_gone() -> anyhow::Result<()> {
    no_server_after_a_lost_commit::<databases::MariaDb>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_an_error_of_the_body_counts_after_a_lost_commit_only_with_its_record()
-> anyhow::Result<()> {
    errors_of_a_body_after_a_lost_commit::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_an_error_of_the_body_counts_after_a_lost_commit_only_with_its_record()
-> anyhow::Result<()> {
    errors_of_a_body_after_a_lost_commit::<databases::MariaDb>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_another_record_tells_nothing_of_a_lost_commit() -> anyhow::Result<()> {
    another_record_after_a_lost_commit::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_another_record_tells_nothing_of_a_lost_commit() -> anyhow::Result<()> {
    another_record_after_a_lost_commit::<databases::MariaDb>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_in_another_transaction_tells_nothing_of_this_one()
-> anyhow::Result<()> {
    Box::pin(a_call_in_another_transaction::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_in_another_transaction_tells_nothing_of_this_one() -> anyhow::Result<()>
{
    Box::pin(a_call_in_another_transaction::<databases::MariaDb>()).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_that_was_undone_tells_nothing_of_a_lost_commit() -> anyhow::Result<()>
{
    a_call_that_was_undone_with_the_one_around_it::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_that_was_undone_tells_nothing_of_a_lost_commit() -> anyhow::Result<()> {
    a_call_that_was_undone_with_the_one_around_it::<databases::MariaDb>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_in_a_task_of_its_own_tells_of_a_lost_commit() -> anyhow::Result<()> {
    Box::pin(a_call_in_a_task_of_its_own::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_in_a_task_of_its_own_tells_of_a_lost_commit() -> anyhow::Result<()> {
    Box::pin(a_call_in_a_task_of_its_own::<databases::MariaDb>()).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_one_of_two_records_does_not_tell_of_a_lost_commit() -> anyhow::Result<()> {
    one_of_two_records_after_a_lost_commit::<databases::Postgres>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_the_record_of_one_lost_commit_tells_nothing_of_another() -> anyhow::Result<()>
{
    Box::pin(two_lost_commits_of_different_records::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_the_record_of_one_lost_commit_tells_nothing_of_another() -> anyhow::Result<()> {
    Box::pin(two_lost_commits_of_different_records::<databases::MariaDb>()).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_lost_commit_without_a_record_is_not_hidden_by_one_with_a_record()
-> anyhow::Result<()> {
    Box::pin(an_unguarded_lost_commit_after_a_guarded_one::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_lost_commit_without_a_record_is_not_hidden_by_one_with_a_record()
-> anyhow::Result<()> {
    Box::pin(an_unguarded_lost_commit_after_a_guarded_one::<databases::MariaDb>()).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_lost_commit_inside_another_transaction_is_not_made_again()
-> anyhow::Result<()> {
    Box::pin(a_lost_commit_inside_another_transaction::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_lost_commit_inside_another_transaction_is_not_made_again()
-> anyhow::Result<()> {
    Box::pin(a_lost_commit_inside_another_transaction::<databases::MariaDb>()).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_transaction_with_a_call_without_a_record_is_not_made_again_after_a_lost_commit()
-> anyhow::Result<()> {
    a_call_without_a_record_in_a_lost_commit::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_one_of_two_records_does_not_tell_of_a_lost_commit() -> anyhow::Result<()> {
    one_of_two_records_after_a_lost_commit::<databases::MariaDb>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_transaction_with_a_call_without_a_record_is_not_made_again_after_a_lost_commit()
-> anyhow::Result<()> {
    a_call_without_a_record_in_a_lost_commit::<databases::MariaDb>().await
}
