//! The loop with messages whose record is in one transaction with what their handler writes.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::inbox::{
    ConsumeError, Consumer, DeadReason, Disposition, FailurePolicy, Inbox, OnFailure, Source,
};
use idempotency::store::SqliteStore;
use idempotency::tx::OpenTransaction;
use idempotency::{ErrorKind, Idempotency, Verdict};
use idempotency_test_support::deadline::within;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Sqlite, SqlitePool};
use tempfile::TempDir;

use crate::script::{Broker, Mail, never};
use crate::world::DAY;

/// A database of effects with records beside them.
struct Bookings {
    pool: SqlitePool,
    engine: Idempotency,
    _directory: TempDir,
}

async fn pool(path: &Path) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let options =
        options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(20));
    Ok(SqlitePoolOptions::new().max_connections(4).connect_with(options).await?)
}

impl Bookings {
    async fn open() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("bookings.db");
        let pool = pool(&path).await?;
        sqlx::query("CREATE TABLE bookings (id INTEGER)").execute(&pool).await?;
        let store = SqliteStore::from_pool(pool.clone());
        store.migrate().await?;
        Ok(Self { pool, engine: Idempotency::new(store), _directory: directory })
    }

    fn inbox(&self) -> Inbox {
        let inbox = Inbox::new(self.engine.clone(), "billing", DAY);
        inbox.with_backoff(Duration::from_millis(1), Duration::from_millis(1))
    }

    /// How often each message was booked.
    async fn booked(&self) -> anyhow::Result<Vec<(i64, i64)>> {
        let counted = "SELECT id, count(*) FROM bookings GROUP BY id ORDER BY id";
        Ok(sqlx::query_as(counted).fetch_all(&self.pool).await?)
    }
}

#[derive(Debug, thiserror::Error)]
enum BookError {
    #[error("no")]
    No,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

async fn book(transaction: &mut OpenTransaction<Sqlite>, id: u64) -> Result<(), BookError> {
    let booking = sqlx::query("INSERT INTO bookings VALUES (?)").bind(i64::try_from(id).unwrap());
    booking.execute(&mut ***transaction).await?;
    Ok(())
}

/// Runs a consumer whose handler books, and then ends with what `end` says, until `count` messages
/// are settled.
async fn settles<const ORDER: u8, P>(
    bookings: &Bookings,
    inbox: Inbox<P>,
    broker: &Broker<ORDER>,
    count: usize,
    end: fn(u64) -> Result<(), BookError>,
) -> anyhow::Result<()>
where
    P: FailurePolicy<BookError> + Send + Sync + 'static,
    Broker<ORDER>: Source<Message = Mail>,
{
    let handler = move |mut transaction: OpenTransaction<Sqlite>, mail: Arc<Mail>| async move {
        book(&mut transaction, mail.id).await?;
        end(mail.id)
    };
    let stop = broker.has_settled(count);
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(4);
    let drained = within("the consumer", consumer.run_in(bookings.pool.clone(), stop, handler));
    let drained = drained.await?.map_err(|error| anyhow::anyhow!("{error}"))?;
    assert_eq!(drained.left, 0);
    Ok(())
}

#[tokio::test]
async fn each_message_is_booked_once_however_often_it_comes() -> anyhow::Result<()> {
    let bookings = Bookings::open().await?;
    let broker: Broker = Broker::new();
    for _ in 0..3 {
        broker.deliver(1..=10);
    }
    settles(&bookings, bookings.inbox(), &broker, 30, |_| Ok(())).await?;
    assert_eq!(broker.acked(), 30);
    assert_eq!(bookings.booked().await?, (1..=10).map(|id| (id, 1)).collect::<Vec<_>>());
    Ok(())
}

/// Its record is rolled back with each attempt, so the consumer counts those that it makes itself.
#[tokio::test]
async fn a_message_that_fails_in_its_lane_is_a_dead_letter_and_those_behind_it_go_on()
-> anyhow::Result<()> {
    let bookings = Bookings::open().await?;
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1, 2, 3]);
    let inbox = bookings.inbox().with_max_attempts(3);
    let fails = |id| if id == 1 { Err(BookError::No) } else { Ok(()) };
    settles(&bookings, inbox, &broker, 3, fails).await?;
    let dead = Disposition::DeadLetter(DeadReason::Attempts);
    assert_eq!(broker.settled(), [(1, dead), (2, Disposition::Ack), (3, Disposition::Ack)]);
    assert_eq!(broker.tried().first().map(|(.., attempt)| *attempt), Some(3));
    assert_eq!(bookings.booked().await?, [(2, 1), (3, 1)]);
    Ok(())
}

/// Nothing of it is in doubt, under `hold` too.
#[tokio::test]
async fn a_handler_that_panics_leaves_nothing_and_its_message_is_tried_again() -> anyhow::Result<()>
{
    let bookings = Bookings::open().await?;
    let broker: Broker = Broker::new();
    broker.deliver([1, 2]);
    let panics = |id| {
        assert_ne!(id, 1, "on purpose");
        Ok(())
    };
    settles(&bookings, bookings.inbox(), &broker, 2, panics).await?;
    let mut settled = broker.settled();
    settled.sort_by_key(|(id, _)| *id);
    assert!(matches!(settled[0], (1, Disposition::Retry(_))), "{settled:?}");
    assert_eq!(settled[1], (2, Disposition::Ack));
    assert_eq!(bookings.booked().await?, [(2, 1)]);
    Ok(())
}

/// Nothing is left of it on record, and it may have had an effect outside of the database.
#[tokio::test]
async fn a_doubt_whose_dead_letter_is_refused_is_not_handled_again() -> anyhow::Result<()> {
    let bookings = Bookings::open().await?;
    let broker: Broker<1> = Broker::new();
    broker.refuse_dead_letters(true);
    broker.deliver_in_lane(1, [1, 2]);
    let inbox = bookings.inbox().with_on_failure(|_: &BookError| OnFailure::Hold);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let asked = tries.clone();
    let handler = move |_, mail: Arc<Mail>| {
        asked.lock().unwrap().push(mail.id);
        async move { if mail.id == 1 { Err(BookError::No) } else { Ok(()) } }
    };
    let stop = async {
        broker.is(|broker| broker.refused_reports() == 2).await;
        broker.refuse_dead_letters(false);
        broker.has_settled(2).await;
    };
    let consumer = Consumer::new(inbox, broker.clone());
    let drained = within("the consumer", consumer.run_in(bookings.pool.clone(), stop, handler));
    drained.await?.map_err(|error| anyhow::anyhow!("{error}"))?;
    let in_doubt = Disposition::DeadLetter(DeadReason::InDoubt);
    assert_eq!(broker.settled(), [(1, in_doubt), (2, Disposition::Ack)]);
    assert_eq!(*tries.lock().unwrap(), [1, 2]);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_one_transaction_is_refused_before_the_first_message() -> anyhow::Result<()>
{
    let (here, there) = (Bookings::open().await?, Bookings::open().await?);
    let handler = |_, _| async { Ok::<_, BookError>(()) };
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let elsewhere = Consumer::new(here.inbox(), broker.clone());
    let elsewhere = elsewhere.run_in(there.pool.clone(), never(), handler).await;
    let asks = Consumer::new(here.inbox(), broker.clone());
    let asks = asks.with_on_crash_verify(|_, _| async { Verdict::Unknown });
    let asks = asks.run_in(here.pool.clone(), never(), handler).await;
    for refused in [elsewhere, asks] {
        let Err(ConsumeError::Refused(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }
    assert_eq!(broker.queued(), 1);
    Ok(())
}
