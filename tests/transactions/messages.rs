//! Messages whose record is in one transaction with what their handler writes.

use std::cell::Cell;
use std::time::Duration;

use futures::future::join_all;
use idempotency::inbox::{DeadReason, Delivery, Disposition, Handled, Inbox, OnFailure, Outcome};
use idempotency::record::{Resolution, State};
use idempotency::store::SqlTransaction;
use idempotency::tx::OpenTransaction;
use idempotency::{Context, Idempotency, OnCrash};
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
pub async fn ends<D: Database, P>(
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

pub async fn count<D: Database>(scene: &Scene<D>, id: &str) -> anyhow::Result<usize> {
    Ok(scene.effects().await?.get(id).map_or(0, Vec::len))
}

/// The state of the record that a delivery has named.
pub async fn state<D: Database>(
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
    // A process dies in the third, and the broker delivers it once more.
    dies(&scene, &inbox, delivery("a").deliveries(3)).await?;
    let more = book::<D>(&inbox, &scene.pool, delivery("a").deliveries(4), "a").await;
    assert!(matches!(more.outcome, Outcome::Exhausted), "{more:?}");
    assert_eq!(more.disposition, Disposition::DeadLetter(DeadReason::Attempts));
    assert_eq!((count(&scene, "a").await?, state(&scene, &more).await?), (0, None));
    // A redrive begins to count from one.
    let redriven = book::<D>(&inbox, &scene.pool, delivery("a").deliveries(1), "a").await;
    assert_eq!(redriven.disposition, Disposition::Ack);
    assert_eq!(count(&scene, "a").await?, 1);
    // The third one fails as the others do.
    for deliveries in 1..=3 {
        let given = delivery("b").deliveries(deliveries);
        let failed = ends::<D, _>(&inbox, &scene.pool, given, "b", fails).await;
        let is_last = failed.disposition == Disposition::DeadLetter(DeadReason::Attempts);
        assert_eq!((failed.attempt, is_last), (deliveries, deliveries == 3), "{failed:?}");
    }
    // One that was delivered beside a message that has killed its process was not tried.
    let neighbour = book::<D>(&inbox, &scene.pool, delivery("c").deliveries(99), "c").await;
    assert_eq!(neighbour.disposition, Disposition::Ack, "{neighbour:?}");
    assert_eq!(count(&scene, "c").await?, 1);
    // Each is tried, and how often a message was that kills its process is known from then on.
    let once = inbox.clone().with_max_attempts(1);
    let given = || delivery("d").deliveries(99);
    dies(&scene, &once, given()).await?;
    let last = book::<D>(&once, &scene.pool, given(), "d").await;
    assert!(matches!(last.outcome, Outcome::Exhausted), "{last:?}");
    Ok(())
}

/// Handles a delivery in a process that dies: its future ends in the middle of the handler.
async fn dies<D: Database>(
    scene: &Scene<D>,
    inbox: &Inbox,
    delivery: Delivery<'_>,
) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let begun = tokio::sync::Notify::new();
    let dies = inbox.handle_in(&scene.pool, delivery, |mut transaction| {
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
    within("the handler", dead).await?
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
        dies(&scene, &inbox, delivery("a").suspect()).await?;
    }
    let fourth = book::<D>(&inbox, &scene.pool, delivery("a").suspect(), "a").await;
    assert_eq!(fourth.disposition, Disposition::DeadLetter(DeadReason::Attempts), "{fourth:?}");
    assert!(matches!(fourth.outcome, Outcome::Exhausted), "{fourth:?}");
    assert_eq!((count(&scene, "a").await?, state(&scene, &fourth).await?), (0, None));
    // A redrive begins to count from one.
    let redriven = book::<D>(&inbox, &scene.pool, delivery("a").suspect(), "a").await;
    assert_eq!(redriven.disposition, Disposition::Ack, "{redriven:?}");
    assert_eq!(count(&scene, "a").await?, 1);
    // Its neighbours are handled, and one that was handled is done, however often it comes.
    for _ in 0..5 {
        let neighbour = book::<D>(&inbox, &scene.pool, delivery("b").suspect(), "b").await;
        assert_eq!(neighbour.disposition, Disposition::Ack);
    }
    assert_eq!(count(&scene, "b").await?, 1);
    Ok(())
}

/// Two messages of a log that kill their process, one behind the other: the process that makes a
/// dead letter of the first dies of the second, before the log knows that the first is finished.
#[tokio::test]
async fn on_sqlite_two_messages_of_a_log_that_kill_one_behind_the_other_kill_as_often_as_each_alone()
-> anyhow::Result<()> {
    type Sqlite = databases::Sqlite;
    let scene = Scene::<Sqlite>::new(2, None).await?;
    let inbox = inbox(&scene.engine).with_max_attempts(3);
    let at = |offset: i64| {
        delivery(if offset == 7 { "a" } else { "b" }).suspect_at(("orders", 0, offset))
    };
    let exhausted = Disposition::DeadLetter(DeadReason::Attempts);
    for _ in 0..3 {
        dies(&scene, &inbox, at(7)).await?;
    }
    for _ in 0..3 {
        let first = book::<Sqlite>(&inbox, &scene.pool, at(7), "a").await;
        assert_eq!(first.disposition, exhausted, "{first:?}");
        dies(&scene, &inbox, at(8)).await?;
    }
    for (offset, id) in [(7, "a"), (8, "b")] {
        let last = book::<Sqlite>(&inbox, &scene.pool, at(offset), id).await;
        assert_eq!(last.disposition, exhausted, "{last:?}");
    }
    // A redrive has another place.
    let redriven = delivery("a").suspect_at(("orders", 0, 9));
    let redriven = book::<Sqlite>(&inbox, &scene.pool, redriven, "a").await;
    assert_eq!(redriven.disposition, Disposition::Ack, "{redriven:?}");
    assert_eq!((count(&scene, "a").await?, count(&scene, "b").await?), (1, 0));
    Ok(())
}

/// By a broker that says that it delivers again, and not how often: the first delivery counts too.
#[tokio::test]
async fn on_sqlite_a_message_has_as_many_attempts_as_the_inbox_allows_though_none_was_counted()
-> anyhow::Result<()> {
    type Sqlite = databases::Sqlite;
    let scene = Scene::<Sqlite>::new(2, None).await?;
    let inbox = inbox(&scene.engine).with_max_attempts(3);
    let fails = || Err(Fault::No);
    let mut attempts = Vec::new();
    for number in 1..=3 {
        let given = if number == 1 { delivery("a") } else { delivery("a").redelivered() };
        let failed = ends::<Sqlite, _>(&inbox, &scene.pool, given, "a", fails).await;
        let is_last = failed.disposition == Disposition::DeadLetter(DeadReason::Attempts);
        attempts.push((failed.attempt, is_last));
    }
    assert_eq!(attempts, [(1, false), (2, false), (3, true)]);
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

/// The error of a handler may be the engine's own, and is no result then.
async fn refused_steps<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(2, None).await?;
    let inbox = inbox(&scene.engine).with_on_failure(|_: &Fault| OnFailure::Done);
    let steps =
        |_| async { Context::current().step("charge", async || Ok::<_, Fault>(1)).await.map(drop) };
    let handled = inbox.handle_in(&scene.pool, delivery("a"), steps).await;
    assert!(matches!(handled.outcome, Outcome::Failed(_)), "{handled:?}");
    assert!(matches!(handled.disposition, Disposition::Retry(_)), "{handled:?}");
    assert_eq!(state(&scene, &handled).await?, None);
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
        assert_eq!((handled.disposition, handled.attempt), (Disposition::Ack, 0));
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

#[tokio::test]
async fn on_sqlite_a_message_has_its_effect_once() -> anyhow::Result<()> {
    once::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_message_has_its_effect_once() -> anyhow::Result<()> {
    once::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_message_has_its_effect_once() -> anyhow::Result<()> {
    once::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_a_failure_undoes_the_effect_and_the_broker_counts() -> anyhow::Result<()> {
    failures::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_failure_undoes_the_effect_and_the_broker_counts() -> anyhow::Result<()> {
    failures::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_failure_undoes_the_effect_and_the_broker_counts() -> anyhow::Result<()> {
    failures::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_a_decision_about_a_failure_leaves_what_it_says() -> anyhow::Result<()> {
    decisions::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_decision_about_a_failure_leaves_what_it_says() -> anyhow::Result<()> {
    decisions::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_decision_about_a_failure_leaves_what_it_says() -> anyhow::Result<()> {
    decisions::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_64_deliveries_at_once_have_one_effect() -> anyhow::Result<()> {
    duplicates::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_64_deliveries_at_once_have_one_effect() -> anyhow::Result<()> {
    duplicates::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_64_deliveries_at_once_have_one_effect() -> anyhow::Result<()> {
    duplicates::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_a_message_that_kills_its_process_is_a_dead_letter() -> anyhow::Result<()> {
    deaths::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_message_that_kills_its_process_is_a_dead_letter() -> anyhow::Result<()> {
    deaths::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_message_that_kills_its_process_is_a_dead_letter() -> anyhow::Result<()> {
    deaths::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_a_record_in_doubt_is_a_dead_letter_until_it_is_resolved() -> anyhow::Result<()> {
    in_doubt::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_record_in_doubt_is_a_dead_letter_until_it_is_resolved()
-> anyhow::Result<()> {
    in_doubt::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_record_in_doubt_is_a_dead_letter_until_it_is_resolved() -> anyhow::Result<()>
{
    in_doubt::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_a_disabled_inbox_records_nothing() -> anyhow::Result<()> {
    disabled::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_disabled_inbox_records_nothing() -> anyhow::Result<()> {
    disabled::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_disabled_inbox_records_nothing() -> anyhow::Result<()> {
    disabled::<databases::MariaDb>().await
}

#[tokio::test]
async fn on_sqlite_a_failure_for_want_of_a_step_is_not_acknowledged() -> anyhow::Result<()> {
    refused_steps::<databases::Sqlite>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_failure_for_want_of_a_step_is_not_acknowledged() -> anyhow::Result<()> {
    refused_steps::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_failure_for_want_of_a_step_is_not_acknowledged() -> anyhow::Result<()> {
    refused_steps::<databases::MariaDb>().await
}
