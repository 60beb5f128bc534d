//! The ledger of the runs with transactions, and the program that books into it: the test binary
//! again, as a consumer with its orders in a variable.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotent_runtime::inbox::{Consumer, Disposition, Inbox, Order, Settled, Source};
use idempotent_runtime::store::PostgresStore;
use idempotent_runtime::tx::OpenTransaction;
use idempotent_runtime::{Idempotency, OnCrash};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::signal::unix::{SignalKind, signal};

use super::worker::POISON;
use super::{Address, Broker, DAY, MessageOf, shared};
use crate::deadline::{DEADLINE, eventually_async};
use crate::server::{PostgresOptions, PostgresServer};
use crate::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPoints, Worker};

const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_BOOKKEEPER";
/// The test of the adapter's binary that calls [`book`].
const TEST: &str = "worker::books_as_ordered";
/// The point of a worker that has a message and has not asked for its record.
pub const RECEIVED: &str = "received";

/// What a worker consumes, and into which database it books.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bookings {
    /// Where it finds its messages.
    pub address: Address,
    /// The URL of the database, which has the records too.
    pub database: String,
    /// How many handlers run at once.
    pub concurrency: usize,
    /// How long a handler takes.
    pub body: Duration,
}

/// The database of all workers. It ends with this process, as the broker does.
async fn database() -> anyhow::Result<&'static PostgresServer> {
    static DATABASE: OnceLock<PostgresServer> = OnceLock::new();
    shared(&DATABASE, || async {
        let options = PostgresOptions::new().private().setting("max_connections", "300");
        let server = PostgresServer::start(options).await?;
        server.sql("CREATE TABLE ledger (queue text NOT NULL, entry text NOT NULL)").await?;
        PostgresStore::connect(&server.url()).await?.migrate().await?;
        Ok(server)
    })
    .await
}

impl Bookings {
    /// Returns those of a worker for this queue.
    ///
    /// # Errors
    /// If the database does not start.
    pub async fn of<B: Broker>(broker: &B) -> anyhow::Result<Self> {
        let database = database().await?.url();
        let body = Duration::ZERO;
        Ok(Self { address: broker.address(), database, concurrency: 16, body })
    }

    /// Returns the host and port of the database.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn database_address() -> anyhow::Result<String> {
        Ok(database().await?.address())
    }

    /// The same, for a worker that finds the broker there.
    #[must_use]
    pub fn by(&self, url: String) -> Self {
        Self { address: Address { url, ..self.address.clone() }, ..self.clone() }
    }

    /// Opens the database, and creates an inbox whose records are in it.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn open(&self) -> anyhow::Result<(PgPool, Inbox)> {
        let options: PgConnectOptions = self.database.parse()?;
        let options = options.application_name(&self.address.messages);
        let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(DEADLINE);
        let pool = pool.connect_with(options).await?;
        let store = PostgresStore::from_pool(pool.clone());
        // Its policy counts for no message: after a crash nothing has happened.
        let inbox = Inbox::new(Idempotency::new(store), &*self.address.messages, DAY)
            .with_on_crash(OnCrash::Hold)
            .with_max_attempts(3)
            .with_wait(Duration::from_millis(200))
            .with_backoff(Duration::from_millis(100), Duration::from_secs(1));
        Ok((pool, inbox))
    }

    /// Starts a worker process that waits at `points`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn spawn(&self, points: &[&str]) -> anyhow::Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([TEST, "--exact", "--nocapture", "--quiet", "--test-threads=2"]);
        command.env(ORDERS_VARIABLE, serde_json::to_string(self)?);
        Worker::spawn(command, points)
    }

    /// Returns the entries of this queue's messages, counted by the database.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn entries(&self, pool: &PgPool) -> anyhow::Result<Vec<String>> {
        let entries =
            sqlx::query_scalar("SELECT entry FROM ledger WHERE queue = $1 ORDER BY entry");
        Ok(entries.bind(&self.address.messages).fetch_all(pool).await?)
    }

    /// Waits until there are so many entries at least.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn has_entries(&self, pool: &PgPool, count: usize) -> anyhow::Result<()> {
        eventually_async(format!("{count} entries"), async || {
            self.entries(pool).await.is_ok_and(|entries| entries.len() >= count)
        })
        .await
    }

    /// Waits until a transaction of this queue's consumers waits for another one.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn waits_for_a_row(&self, pool: &PgPool) -> anyhow::Result<()> {
        let waits = "SELECT count(*) FROM pg_stat_activity \
                     WHERE wait_event_type = 'Lock' AND application_name = $1";
        eventually_async("a transaction that waits", async || {
            let waiting = sqlx::query_scalar::<_, i64>(waits).bind(&self.address.messages);
            waiting.fetch_one(pool).await.is_ok_and(|count| count > 0)
        })
        .await
    }

    /// Checks that each of `ids` has one entry, and nothing else has any.
    ///
    /// # Errors
    /// If that is not so.
    pub async fn assert_once(
        &self,
        pool: &PgPool,
        ids: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<()> {
        let mut expected: Vec<_> = ids.into_iter().collect();
        expected.sort();
        let entries = self.entries(pool).await?;
        ensure!(entries == expected, "{entries:?}, not {expected:?}");
        Ok(())
    }

    /// Books one message.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn enter(
        &self,
        transaction: &mut OpenTransaction<sqlx::Postgres>,
        payload: &[u8],
    ) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO ledger VALUES ($1, $2)")
            .bind(&self.address.messages)
            .bind(String::from_utf8_lossy(payload))
            .execute(&mut ***transaction)
            .await
            .map(drop)
    }
}

/// Runs what a worker process runs. In the test process there are no orders, and nothing to do.
///
/// # Errors
/// If the consumer fails, or leaves something.
pub async fn book<B: Broker>() -> anyhow::Result<()> {
    let Some(orders) = std::env::var_os(ORDERS_VARIABLE) else { return Ok(()) };
    let orders: Bookings = serde_json::from_slice(orders.as_encoded_bytes())?;
    let points = KillPoints::from_env();
    let (pool, inbox) = orders.open().await?;
    let source = B::connect(&orders.address).await.context("the worker does not connect")?;
    let source = Watched::new(source, points.clone());
    let orders = Arc::new(orders);
    let concurrency = orders.concurrency;
    let handler = move |mut transaction: OpenTransaction<sqlx::Postgres>, message: Arc<_>| {
        let (orders, points) = (orders.clone(), points.clone());
        async move {
            let payload = B::payload(&message);
            if payload.starts_with(POISON.as_bytes()) {
                std::process::abort();
            }
            tokio::time::sleep(orders.body).await;
            points.reach(BEFORE_EFFECT).await;
            orders.enter(&mut transaction, payload).await?;
            points.reach(AFTER_EFFECT).await;
            Ok::<_, sqlx::Error>(())
        }
    };
    let mut ends = signal(SignalKind::terminate())?;
    let stop = async {
        ends.recv().await;
    };
    let consumer = Consumer::new(inbox, source).with_concurrency(concurrency);
    let drained = Box::pin(consumer.run_in(pool, stop, handler)).await?;
    ensure!(drained.left == 0, "{drained:?}");
    Ok(())
}

/// A source whose messages wait at [`RECEIVED`], if the test has named it, and whose ends are counted.
pub(super) struct Watched<S> {
    source: S,
    points: KillPoints,
    ends: Arc<AtomicUsize>,
}

impl<S> Watched<S> {
    pub(super) fn new(source: S, points: KillPoints) -> Self {
        Self { source, points, ends: Arc::default() }
    }

    /// How many messages have their end: they are acknowledged or dead letters.
    pub(super) fn ends(&self) -> Arc<AtomicUsize> {
        self.ends.clone()
    }
}

impl<S: Source> Source for Watched<S> {
    type Message = S::Message;
    type Error = S::Error;

    const ORDER: Order = S::ORDER;

    /// Dropping it while it waits at the point would lose messages. Such a process is killed.
    async fn receive(&self, room: usize) -> Result<Vec<Arc<S::Message>>, S::Error> {
        let received = self.source.receive(room).await?;
        self.points.reach(RECEIVED).await;
        Ok(received)
    }

    async fn settle(&self, settled: Vec<Settled<S::Message>>) -> Result<(), S::Error> {
        let is_end = |settled: &&Settled<S::Message>| {
            matches!(settled.disposition, Disposition::Ack | Disposition::DeadLetter(_))
        };
        let ends = settled.iter().filter(is_end).count();
        self.source.settle(settled).await?;
        self.ends.fetch_add(ends, Ordering::SeqCst);
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        self.source.patience()
    }

    async fn keep(&self, held: Vec<Arc<S::Message>>) -> Result<(), S::Error> {
        self.source.keep(held).await
    }

    fn hold_lane(&self, lane: u64, is_held: bool) {
        self.source.hold_lane(lane, is_held);
    }

    fn is_gone(&self, message: &S::Message) -> bool {
        self.source.is_gone(message)
    }

    async fn stop(&self) -> Result<(), S::Error> {
        self.source.stop().await
    }
}

/// The handler of the test process.
pub(super) fn entering<B: Broker>(
    orders: &Bookings,
) -> impl Fn(
    OpenTransaction<sqlx::Postgres>,
    Arc<MessageOf<B>>,
) -> futures::future::BoxFuture<'static, Result<(), sqlx::Error>>
+ Send
+ Sync
+ use<B> {
    let orders = Arc::new(orders.clone());
    move |mut transaction, message| {
        let orders = orders.clone();
        Box::pin(async move { orders.enter(&mut transaction, B::payload(&message)).await })
    }
}
