//! The transaction of a message on a server: its round trips, its bounds, and its commit, which is
//! lost, or meets a transaction that the handler has broken.

use std::cell::Cell;
use std::time::Duration;

use idempotency::inbox::{DeadReason, Disposition, Inbox, Outcome};
use idempotency::store::{PostgresStore, SqlTransaction};
use idempotency::tx::OpenTransaction;
use idempotency::{ErrorKind, Idempotency};
use sqlx::Transaction;

use crate::databases;
use crate::messages::{INBOX, book, count, delivery, ends, inbox, state};
use crate::scene::{Connection, Database as _, Scene};
use crate::world::{DAY, Fault};

/// Cuts the connection at the next commit of a message, at each moment of it.
async fn commits_that_are_cut<D: crate::scene::Remote>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy};

    let database = D::start().await?;
    let proxy = Proxy::start_for(D::PROTOCOL, database.address()).await?;
    // The store's own connections are not cut.
    let (direct, engine) = D::open(&database.url(), 1, None).await?;
    let (pool, _) = D::open(&proxy.url(&database.url()), 1, None).await?;
    let inbox = inbox(&engine);
    for moment in Moment::ALL {
        for action in [Action::Close, Action::Reset] {
            let id = format!("{moment:?} {action:?}");
            let runs = Cell::new(0);
            let end = || {
                runs.set(runs.get() + 1);
                Ok(())
            };
            let commits = |request: &idempotency_test_support::proxy::Request| {
                request.command() == "COMMIT"
                    || request.bytes().windows(8).any(|words| words == b"; COMMIT")
            };
            let cut = proxy.nth(1, commits, Fault::new(moment, action));
            let handled = ends::<D, _>(&inbox, &pool, delivery(&id), &id, end).await;
            cut.happened().await?;
            assert_eq!(handled.disposition, Disposition::Ack, "{id}: {handled:?}");
            let effects = D::effects(&direct).await?;
            assert_eq!(effects.iter().filter(|(name, _)| *name == id).count(), 1, "{id}");
            // Where the server has the whole commit, the record answers.
            let is_applied = matches!(moment, Moment::AfterRequest | Moment::InsideAnswer);
            assert_eq!(runs.get(), if is_applied { 1 } else { 2 }, "{id}");
            let is_found = matches!(handled.outcome, Outcome::Duplicate);
            assert_eq!(is_found, is_applied, "{id}: {handled:?}");
        }
    }
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_lost_commit_of_a_message_is_found_by_its_record() -> anyhow::Result<()> {
    commits_that_are_cut::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_lost_commit_of_a_message_is_found_by_its_record() -> anyhow::Result<()> {
    commits_that_are_cut::<databases::MariaDb>().await
}

/// Without the handler's own statements.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_message_takes_three_round_trips() -> anyhow::Result<()> {
    use crate::scene::Remote as _;
    use idempotency_test_support::proxy::{Protocol, Proxy};

    let database = databases::Postgres::start().await?;
    let proxy = Proxy::start_for(Protocol::Postgres, database.address()).await?;
    let (direct, engine) = databases::Postgres::open(&database.url(), 2, None).await?;
    // No test of the connection on its way out of the pool, which is not the inbox's.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = pool.connect(&proxy.url(&database.url())).await?;
    let inbox = inbox(&engine);
    for number in 0..20 {
        let id = format!("message {number}");
        let before = Cell::new(0);
        let inside = Cell::new(0);
        let start = proxy.round_trips();
        let books = |mut transaction: OpenTransaction<sqlx::Postgres>| {
            inside.set(proxy.round_trips());
            let (id, before) = (id.clone(), &before);
            let proxy = &proxy;
            async move {
                databases::Postgres::add(&mut transaction, &id, "booked").await?;
                before.set(proxy.round_trips());
                Ok::<_, Fault>(())
            }
        };
        let handled = inbox.handle_in(&pool, delivery(&id), books).await;
        let end = proxy.round_trips();
        assert_eq!(handled.disposition, Disposition::Ack);
        // The first one prepares the statement, and each connection learns its own.
        if number > 0 {
            let (beginning, ending) = (inside.get() - start, end - before.get());
            assert_eq!((beginning, ending), (2, 1), "{id}");
        }
        // The connection is back in the pool, with what that sends.
        idempotency_test_support::deadline::eventually("the connection", || pool.num_idle() == 1)
            .await?;
    }
    let idle = sqlx::query_as::<_, (i64,)>(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'",
    );
    assert_eq!(idle.fetch_one(&direct).await?.0, 0, "no transaction is left open");
    Ok(())
}

/// A handler that goes on after an error of the database, and one that ends its transaction.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_handler_that_breaks_its_transaction_is_not_acknowledged()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(2, None).await?;
    let inbox = inbox(&scene.engine).with_max_attempts(2);
    let breaks = |statement: &'static str| {
        move |mut transaction: OpenTransaction<sqlx::Postgres>| async move {
            Postgres::add(&mut transaction, statement, "booked").await?;
            let _ = sqlx::raw_sql(statement).execute(&mut **transaction).await;
            Ok::<_, Fault>(())
        }
    };
    let ignored = "SELECT 1 / 0";
    for (deliveries, disposition) in
        [(1, None), (2, Some(Disposition::DeadLetter(DeadReason::Attempts)))]
    {
        let given = delivery(ignored).deliveries(deliveries);
        let handled = inbox.handle_in(&scene.pool, given, breaks(ignored)).await;
        assert!(matches!(handled.outcome, Outcome::Refused(_)), "{handled:?}");
        let is_tried_again = matches!(handled.disposition, Disposition::Retry(_));
        assert_eq!(disposition.is_none(), is_tried_again, "{handled:?}");
        assert!(disposition.is_none_or(|known| known == handled.disposition), "{handled:?}");
        assert_eq!((count(&scene, ignored).await?, state(&scene, &handled).await?), (0, None));
    }
    for by_hand in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
        let handled = inbox.handle_in(&scene.pool, delivery(by_hand), breaks(by_hand)).await;
        let in_doubt = Disposition::DeadLetter(DeadReason::InDoubt);
        assert_eq!(handled.disposition, in_doubt, "{by_hand}: {handled:?}");
    }
    // The same if it fails afterwards, with an error that would let it run again, or of its own.
    let passing = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$";
    for by_hand in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
        for is_passing in [true, false] {
            if is_passing && by_hand == "ROLLBACK; BEGIN" {
                // All of it is undone, and it runs again.
                continue;
            }
            let id = format!("{by_hand} {is_passing}");
            let runs = Cell::new(0);
            let fails = |mut transaction: OpenTransaction<sqlx::Postgres>| {
                runs.set(runs.get() + 1);
                let id = id.clone();
                async move {
                    sqlx::raw_sql(by_hand).execute(&mut **transaction).await?;
                    Postgres::add(&mut transaction, &id, "booked").await?;
                    if is_passing {
                        sqlx::raw_sql(passing).execute(&mut **transaction).await?;
                    }
                    Err::<(), _>(Fault::No)
                }
            };
            let handled = inbox.handle_in(&scene.pool, delivery(&id), fails).await;
            let in_doubt = Disposition::DeadLetter(DeadReason::InDoubt);
            assert_eq!((handled.disposition, runs.get()), (in_doubt, 1), "{id}: {handled:?}");
        }
    }
    let fine = book::<Postgres>(&inbox, &scene.pool, delivery("fine"), "fine").await;
    assert_eq!((fine.disposition, count(&scene, "fine").await?), (Disposition::Ack, 1));
    Ok(())
}

/// The bounds of the session are those of its owner, for the handler too.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_the_handler_has_the_bounds_of_its_session() -> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(2, None).await?;
    let seen = |inbox: Inbox, id: &'static str| {
        let pool = scene.pool.clone();
        async move {
            let seen = std::sync::Mutex::new(None);
            let handled = inbox.handle_in(&pool, delivery(id), |mut transaction| {
                let seen = &seen;
                async move {
                    let bound = sqlx::query_as::<_, (String,)>("SHOW lock_timeout");
                    let (bound,) = bound.fetch_one(&mut **transaction).await?;
                    *seen.lock().unwrap() = Some(bound);
                    Ok::<_, Fault>(())
                }
            });
            assert_eq!(handled.await.disposition, Disposition::Ack);
            seen.into_inner().unwrap()
        }
    };
    let inbox = inbox(&scene.engine);
    assert_eq!(seen(inbox.clone(), "a").await.as_deref(), Some("0"));
    // Its record was released, so the first statement finds one.
    let short = Inbox::new(scene.engine.clone(), INBOX, DAY);
    let failed = short.handle(delivery("b"), || async { Err::<(), _>(Fault::No) }).await;
    assert!(matches!(failed.disposition, Disposition::Retry(_)));
    assert_eq!(seen(inbox, "b").await.as_deref(), Some("0"));
    Ok(())
}

/// Its records would be in one database, and the effects in another.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_pool_of_another_database_is_refused() -> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let here = Scene::<Postgres>::new(2, None).await?;
    let there = Scene::<Postgres>::new(2, None).await?;
    let handled = book::<Postgres>(&inbox(&here.engine), &there.pool, delivery("a"), "a").await;
    let Outcome::Refused(error) = &handled.outcome else { panic!("{handled:?}") };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(matches!(handled.disposition, Disposition::Postpone(_)), "{handled:?}");
    assert_eq!(count(&there, "a").await?, 0);
    Ok(())
}

/// The wait for the table comes before the statement could bound it.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_delivery_waits_for_a_locked_table_no_longer_than_for_an_answer()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(3, None).await?;
    let store = PostgresStore::builder(scene.database.url());
    let store = store.response_timeout(Duration::from_secs(1)).connect().await?;
    let inbox = inbox(&Idempotency::new(store)).with_wait(Duration::from_millis(100));
    let first = book::<Postgres>(&inbox, &scene.pool, delivery("a"), "a").await;
    assert_eq!(first.disposition, Disposition::Ack);
    let mut locking = scene.pool.begin().await?;
    let lock = "LOCK TABLE idempotency_records IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut *locking).await?;
    let handled = book::<Postgres>(&inbox, &scene.pool, delivery("b"), "b").await;
    let Outcome::Refused(error) = &handled.outcome else { panic!("{handled:?}") };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    assert!(matches!(handled.disposition, Disposition::Postpone(_)), "{handled:?}");
    locking.rollback().await?;
    let handled = book::<Postgres>(&inbox, &scene.pool, delivery("b"), "b").await;
    assert_eq!((handled.disposition, count(&scene, "b").await?), (Disposition::Ack, 1));
    Ok(())
}
