//! Messages whose record is in one transaction with what their handler writes.

use std::cell::Cell;
use std::time::Duration;

use futures::future::join_all;
use idempotency::inbox::{DeadReason, Delivery, Disposition, Handled, Inbox, OnFailure, Outcome};
use idempotency::record::{Resolution, State};
use idempotency::store::SqlTransaction;
use idempotency::tx::OpenTransaction;
use idempotency::{Idempotency, OnCrash};
use idempotency_test_support::deadline::within;
use sqlx::{Pool, Transaction};

use crate::databases;
use crate::scene::{Connection, Database, Scene};
use crate::world::{DAY, Fault};

pub const INBOX: &str = "billing";

pub fn inbox(engine: &Idempotency) -> Inbox {
    Inbox::new(engine.clone(), INBOX, DAY).with_wait(Duration::from_secs(20))
}

pub fn delivery(id: &str) -> Delivery<'_> {
    Delivery::new(("id", id)).payload(id.as_bytes())
}

/// Handles one delivery with one effect.
pub async fn book<D: Database>(
    inbox: &Inbox,
    pool: &Pool<D::Sqlx>,
    delivery: Delivery<'_>,
    id: &str,
) -> Handled<Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    ends::<D, _>(inbox, pool, delivery, id, || Ok(())).await
}

/// Handles one delivery with one effect, after which the handler ends with what `end` says.
async fn ends<D: Database, P>(
    inbox: &Inbox<P>,
    pool: &Pool<D::Sqlx>,
    delivery: Delivery<'_>,
    id: &str,
    end: impl Fn() -> Result<(), Fault>,
) -> Handled<Fault>
where
    P: idempotency::inbox::FailurePolicy<Fault>,
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let end = &end;
    let handler = |mut transaction: OpenTransaction<D::Sqlx>| async move {
        D::add(&mut **transaction, id, "booked").await?;
        end()
    };
    within("a delivery", inbox.handle_in(pool, delivery, handler)).await.expect("it ends")
}

async fn count<D: Database>(scene: &Scene<D>, id: &str) -> anyhow::Result<usize> {
    Ok(scene.effects().await?.get(id).map_or(0, Vec::len))
}

/// The state of the record that a delivery has named.
async fn state<D: Database>(
    scene: &Scene<D>,
    handled: &Handled<Fault>,
) -> anyhow::Result<Option<State>> {
    let hash = handled.record.expect("the key is usable");
    Ok(scene.engine.record_by_hash(hash).inspect().await?.map(|record| record.state))
}

async fn once<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let inbox = inbox(&scene.engine);
    let first = book::<D>(&inbox, &scene.pool, delivery("a"), "a").await;
    assert!(matches!(first.outcome, Outcome::Processed), "{first:?}");
    assert_eq!((first.disposition, first.attempt), (Disposition::Ack, 1));
    assert_eq!(state(&scene, &first).await?, Some(State::Completed));
    for _ in 0..2 {
        // However often it was delivered: it is done.
        let again = book::<D>(&inbox, &scene.pool, delivery("a").deliveries(99), "a").await;
        assert!(matches!(again.outcome, Outcome::Duplicate), "{again:?}");
        assert_eq!(again.disposition, Disposition::Ack);
    }
    // The two ways to handle a message know of each other.
    let plain = inbox.handle(delivery("a"), || async { Err::<(), _>(Fault::No) }).await;
    assert!(matches!(plain.outcome, Outcome::Duplicate), "{plain:?}");
    assert_eq!(count(&scene, "a").await?, 1);
    let other = Delivery::new(("id", "a")).payload(b"another message");
    let other = book::<D>(&inbox, &scene.pool, other, "a").await;
    assert_eq!(other.disposition, Disposition::DeadLetter(DeadReason::Mismatch));
    let nameless = Delivery::new(None::<&str>);
    let nameless = book::<D>(&inbox, &scene.pool, nameless, "a").await;
    assert_eq!(nameless.disposition, Disposition::DeadLetter(DeadReason::MissingKey));
    assert_eq!(count(&scene, "a").await?, 1);
    Ok(())
}

async fn failures<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let inbox = inbox(&scene.engine).with_max_attempts(3);
    let fails = || Err(Fault::No);
    for deliveries in 1..=2 {
        let given = delivery("a").deliveries(deliveries);
        let failed = ends::<D, _>(&inbox, &scene.pool, given, "a", fails).await;
        assert!(matches!(failed.outcome, Outcome::Failed(Fault::No)), "{failed:?}");
        assert!(matches!(failed.disposition, Disposition::Retry(_)), "{failed:?}");
        assert_eq!(failed.attempt, deliveries);
        assert_eq!((count(&scene, "a").await?, state(&scene, &failed).await?), (0, None));
    }
    let last = ends::<D, _>(&inbox, &scene.pool, delivery("a").deliveries(3), "a", fails).await;
    assert_eq!(last.disposition, Disposition::DeadLetter(DeadReason::Attempts));
    // A process has died in the third, and the broker delivers it once more.
    let more = book::<D>(&inbox, &scene.pool, delivery("a").deliveries(4), "a").await;
    assert!(matches!(more.outcome, Outcome::Exhausted), "{more:?}");
    assert_eq!(more.disposition, Disposition::DeadLetter(DeadReason::Attempts));
    assert_eq!((count(&scene, "a").await?, state(&scene, &more).await?), (0, None));
    // A redrive begins to count from one.
    let redriven = book::<D>(&inbox, &scene.pool, delivery("a").deliveries(1), "a").await;
    assert_eq!(redriven.disposition, Disposition::Ack);
    assert_eq!(count(&scene, "a").await?, 1);
    Ok(())
}

async fn decisions<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let fails = || Err(Fault::No);
    for (decision, disposition, left) in [
        (OnFailure::DeadLetter, Disposition::DeadLetter(DeadReason::Failed), None),
        (OnFailure::Hold, Disposition::DeadLetter(DeadReason::InDoubt), None),
        (OnFailure::RetryAfter(DAY), Disposition::Retry(DAY), None),
        (OnFailure::Done, Disposition::Ack, Some(State::Failed)),
    ] {
        let id = format!("{decision:?}");
        let inbox = inbox(&scene.engine).with_on_failure(move |_: &Fault| decision);
        let failed = ends::<D, _>(&inbox, &scene.pool, delivery(&id), &id, fails).await;
        assert_eq!(failed.disposition, disposition, "{id}");
        assert!(matches!(failed.outcome, Outcome::Failed(Fault::No)), "{failed:?}");
        assert_eq!((count(&scene, &id).await?, state(&scene, &failed).await?), (0, left), "{id}");
        let again = ends::<D, _>(&inbox, &scene.pool, delivery(&id), &id, || Ok(())).await;
        assert_eq!(again.disposition, Disposition::Ack, "{id}");
        assert_eq!(count(&scene, &id).await?, usize::from(left.is_none()), "{id}");
    }
    Ok(())
}

/// All at the same time, of which some fail.
async fn duplicates<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(8, None).await?;
    let inbox = inbox(&scene.engine);
    let failures = Cell::new(3);
    let end = || {
        if failures.get() == 0 {
            return Ok(());
        }
        failures.set(failures.get() - 1);
        Err(Fault::No)
    };
    let deliveries = (0..64).map(|_| ends::<D, _>(&inbox, &scene.pool, delivery("a"), "a", end));
    let handled = join_all(deliveries).await;
    let acked = handled.iter().filter(|handled| handled.disposition == Disposition::Ack).count();
    let ran = handled.iter().filter(|handled| matches!(handled.outcome, Outcome::Processed));
    assert_eq!((acked, ran.count(), failures.get()), (61, 1, 0));
    assert_eq!(count(&scene, "a").await?, 1);
    Ok(())
}

/// The transaction that has the message stays open for longer than a delivery waits.
#[cfg(any(feature = "postgres", feature = "mysql"))]
async fn waits<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(3, None).await?;
    let inbox = inbox(&scene.engine);
    let (begun, ends) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
    let first = inbox.handle_in(&scene.pool, delivery("a"), |mut transaction| {
        let (begun, ends) = (&begun, &ends);
        async move {
            D::add(&mut **transaction, "a", "booked").await?;
            begun.notify_one();
            ends.notified().await;
            Ok::<_, Fault>(())
        }
    });
    let others = async {
        begun.notified().await;
        let impatient = inbox.clone().with_wait(Duration::from_millis(300));
        let second = book::<D>(&impatient, &scene.pool, delivery("a"), "a").await;
        assert!(matches!(second.disposition, Disposition::Postpone(_)), "{second:?}");
        assert!(matches!(second.outcome, Outcome::Refused(_)), "{second:?}");
        // It has left no bound behind on its connection, and no transaction.
        let other = book::<D>(&impatient, &scene.pool, delivery("b"), "b").await;
        ends.notify_one();
        let third = book::<D>(&inbox, &scene.pool, delivery("a"), "a").await;
        assert_eq!(third.disposition, Disposition::Ack);
        other
    };
    let (first, other) = within("both", Box::pin(async { tokio::join!(first, others) })).await?;
    assert_eq!(first.disposition, Disposition::Ack);
    assert_eq!(other.disposition, Disposition::Ack, "{other:?}");
    assert_eq!(count(&scene, "a").await?, 1);
    Ok(())
}

/// A handler whose process dies is one whose future ends in the middle.
async fn deaths<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(3, None).await?;
    let inbox = inbox(&scene.engine).with_max_attempts(3);
    for _ in 0..3 {
        let begun = tokio::sync::Notify::new();
        let dies = inbox.handle_in(&scene.pool, delivery("a").suspect(), |mut transaction| {
            let begun = &begun;
            async move {
                D::add(&mut **transaction, "a", "booked").await?;
                begun.notify_one();
                std::future::pending::<Result<(), Fault>>().await
            }
        });
        let dead = async {
            tokio::select! {
                _ = dies => anyhow::bail!("it dies"),
                () = begun.notified() => Ok(()),
            }
        };
        within("the handler", dead).await??;
    }
    let fourth = book::<D>(&inbox, &scene.pool, delivery("a").suspect(), "a").await;
    assert_eq!(fourth.disposition, Disposition::DeadLetter(DeadReason::Attempts), "{fourth:?}");
    assert!(matches!(fourth.outcome, Outcome::Exhausted), "{fourth:?}");
    assert_eq!((count(&scene, "a").await?, state(&scene, &fourth).await?), (0, None));
    // Its neighbours are handled, and one that was handled is done, however often it comes.
    for _ in 0..5 {
        let neighbour = book::<D>(&inbox, &scene.pool, delivery("b").suspect(), "b").await;
        assert_eq!(neighbour.disposition, Disposition::Ack);
    }
    assert_eq!(count(&scene, "b").await?, 1);
    Ok(())
}

/// What a record without a transaction has left behind.
async fn in_doubt<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    for on_crash in [OnCrash::Hold, OnCrash::Retry] {
        let id = format!("{on_crash:?}");
        let inbox = inbox(&scene.engine)
            .with_on_crash(on_crash)
            .with_on_failure(|_: &Fault| OnFailure::Hold);
        let held = inbox.handle(delivery(&id), || async { Err(Fault::No) }).await;
        assert_eq!(held.disposition, Disposition::DeadLetter(DeadReason::InDoubt));
        let again = ends::<D, _>(&inbox, &scene.pool, delivery(&id), &id, || Ok(())).await;
        assert_eq!(again.disposition, Disposition::DeadLetter(DeadReason::InDoubt), "{again:?}");
        let record = scene.engine.record_by_hash(held.record.expect("a usable key"));
        let view = record.inspect().await?.expect("it is in doubt");
        record.resolve(&view, Resolution::not_executed()).await?;
        let redriven = ends::<D, _>(&inbox, &scene.pool, delivery(&id), &id, || Ok(())).await;
        assert_eq!(redriven.disposition, Disposition::Ack, "{redriven:?}");
        assert_eq!(count(&scene, &id).await?, 1);
    }
    Ok(())
}

/// While the inbox is disabled nothing is recorded.
async fn disabled<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let inbox = inbox(&scene.engine);
    scene.engine.disable(INBOX);
    for _ in 0..2 {
        let handled = book::<D>(&inbox, &scene.pool, delivery("a"), "a").await;
        assert_eq!(handled.disposition, Disposition::Ack);
        assert_eq!(state(&scene, &handled).await?, None);
    }
    let failed = ends::<D, _>(&inbox, &scene.pool, delivery("a"), "a", || Err(Fault::No)).await;
    assert!(matches!(failed.disposition, Disposition::Retry(_)), "{failed:?}");
    assert_eq!(count(&scene, "a").await?, 2);
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_delivery_waits_for_another_and_is_postponed() -> anyhow::Result<()> {
    Box::pin(waits::<databases::Postgres>()).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_delivery_waits_for_another_and_is_postponed() -> anyhow::Result<()> {
    Box::pin(waits::<databases::MariaDb>()).await
}

macro_rules! on_each_database {
    ($($name:ident $sqlite:ident $postgres:ident $mariadb:ident)*) => {$(
        #[tokio::test]
        async fn $sqlite() -> anyhow::Result<()> {
            $name::<databases::Sqlite>().await
        }

        #[cfg(feature = "postgres")]
        #[tokio::test]
        async fn $postgres() -> anyhow::Result<()> {
            $name::<databases::Postgres>().await
        }

        #[cfg(feature = "mysql")]
        #[tokio::test]
        async fn $mariadb() -> anyhow::Result<()> {
            $name::<databases::MariaDb>().await
        }
    )*};
}

on_each_database! {
    once
        on_sqlite_a_message_has_its_effect_once
        on_postgresql_a_message_has_its_effect_once
        on_mariadb_a_message_has_its_effect_once
    failures
        on_sqlite_a_failure_undoes_the_effect_and_the_broker_counts
        on_postgresql_a_failure_undoes_the_effect_and_the_broker_counts
        on_mariadb_a_failure_undoes_the_effect_and_the_broker_counts
    decisions
        on_sqlite_a_decision_about_a_failure_leaves_what_it_says
        on_postgresql_a_decision_about_a_failure_leaves_what_it_says
        on_mariadb_a_decision_about_a_failure_leaves_what_it_says
    duplicates
        on_sqlite_64_deliveries_at_once_have_one_effect
        on_postgresql_64_deliveries_at_once_have_one_effect
        on_mariadb_64_deliveries_at_once_have_one_effect
    deaths
        on_sqlite_a_message_that_kills_its_process_is_a_dead_letter
        on_postgresql_a_message_that_kills_its_process_is_a_dead_letter
        on_mariadb_a_message_that_kills_its_process_is_a_dead_letter
    in_doubt
        on_sqlite_a_record_in_doubt_is_a_dead_letter_until_it_is_resolved
        on_postgresql_a_record_in_doubt_is_a_dead_letter_until_it_is_resolved
        on_mariadb_a_record_in_doubt_is_a_dead_letter_until_it_is_resolved
    disabled
        on_sqlite_a_disabled_inbox_records_nothing
        on_postgresql_a_disabled_inbox_records_nothing
        on_mariadb_a_disabled_inbox_records_nothing
}

/// Cuts the connection at the next commit of a message, at each moment of it.
#[cfg(any(feature = "postgres", feature = "mysql"))]
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
    assert_eq!(error.kind(), idempotency::ErrorKind::Config, "{error}");
    assert!(matches!(handled.disposition, Disposition::Postpone(_)), "{handled:?}");
    assert_eq!(count(&there, "a").await?, 0);
    Ok(())
}
