//! The program that the tests start: the test binary again, as a consumer with its orders in a
//! variable.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use idempotent_runtime::inbox::{Consumer, Inbox, OnFailure};
use idempotent_runtime::store::RedisStore;
use idempotent_runtime::{Idempotency, OnCrash};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Address, Broker, DAY, MessageOf, append_payload, shared};
use crate::deadline::DEADLINE;
use crate::effects::EffectLog;
use crate::server::{RedisOptions, RedisServer};
use crate::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPointStore, KillPoints, Worker};

const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_CONSUMER";
/// The test of the adapter's binary that calls [`obey`].
const TEST: &str = "worker::obeys_its_orders";
/// The line that a worker prints when a handler begins.
pub const BEGUN: &str = "begun";
/// Begins the payload of a message that kills its process.
pub const POISON: &str = "poison";

/// What a worker consumes, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Where it finds its messages.
    pub address: Address,
    /// The URL of the store.
    pub store: String,
    /// The file of the effects.
    pub effects: PathBuf,
    /// An attempt that broke off is made again. Otherwise it is in doubt.
    pub retries: bool,
    /// The lease of a record.
    pub lease: Duration,
    /// How many handlers run at once.
    pub concurrency: usize,
    /// How long a handler takes.
    pub body: Duration,
    /// The handler has no effect, and says that another attempt will not help.
    pub fails: bool,
}

impl Orders {
    /// Returns those of a worker for this queue.
    ///
    /// # Errors
    /// If the store of the workers does not start.
    pub async fn of<B: Broker>(broker: &B) -> anyhow::Result<Self> {
        Ok(Self {
            address: broker.address(),
            store: store().await?.url(),
            effects: broker.effects().path().to_owned(),
            retries: false,
            lease: Duration::from_secs(1),
            concurrency: 16,
            body: Duration::ZERO,
            fails: false,
        })
    }

    /// The same, for a worker that finds the broker there.
    #[must_use]
    pub fn by(&self, url: String) -> Self {
        Self { address: Address { url, ..self.address.clone() }, ..self.clone() }
    }

    /// Returns the inbox of a worker, or of the test process. That of each queue is another one.
    pub fn inbox(&self, engine: Idempotency) -> Inbox {
        let on_crash = if self.retries { OnCrash::Retry } else { OnCrash::Hold };
        Inbox::new(engine, &*self.address.messages, DAY)
            .with_on_crash(on_crash)
            .with_max_attempts(3)
            .with_backoff(Duration::from_millis(100), Duration::from_secs(1))
    }

    /// Creates an engine in the test process, on the store of the workers.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn engine(&self) -> anyhow::Result<Idempotency> {
        let store = RedisStore::builder(&self.store).response_timeout(DEADLINE).connect().await?;
        Ok(Idempotency::builder(store).lease(self.lease).build()?)
    }

    /// Starts a worker process that waits at `points`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn spawn(&self, points: &[&str]) -> anyhow::Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        // With one thread, the harness begins a line that the worker would end.
        command.args([TEST, "--exact", "--nocapture", "--quiet", "--test-threads=2"]);
        command.env(ORDERS_VARIABLE, serde_json::to_string(self)?);
        Worker::spawn(command, points)
    }
}

/// Returns the store of all workers. It ends with this process, as the broker does.
///
/// # Errors
/// If the runtime is shut down.
///
/// # Panics
/// If it does not start.
pub async fn store() -> anyhow::Result<&'static RedisServer> {
    static STORE: OnceLock<RedisServer> = OnceLock::new();
    shared(&STORE, || RedisServer::start(RedisOptions::new().private())).await
}

/// How many workers live at once. Most of them wait.
pub const AT_ONCE: usize = 16;
/// A place for each.
pub static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Takes all places: the machine is quiet then, for a test that starts or kills a broker.
///
/// # Errors
/// None: the places are never closed.
pub async fn quiet() -> anyhow::Result<SemaphorePermit<'static>> {
    Ok(PLACES.acquire_many(u32::try_from(AT_ONCE)?).await?)
}

/// Runs what a worker process runs. In the test process there are no orders, and nothing to do.
///
/// # Errors
/// If the consumer fails, or leaves something.
///
/// # Panics
/// If an effect cannot be written.
pub async fn obey<B: Broker>() -> anyhow::Result<()> {
    let Some(orders) = std::env::var_os(ORDERS_VARIABLE) else { return Ok(()) };
    let orders: Orders = serde_json::from_slice(orders.as_encoded_bytes())?;
    let points = KillPoints::from_env();
    let store = RedisStore::builder(&orders.store).response_timeout(2 * DEADLINE);
    let store = KillPointStore::new(Arc::new(store.connect().await?), points.clone());
    let engine = Idempotency::builder(store)
        .lease(orders.lease)
        // A request that waits at a point is not sent again behind the back of the test.
        .claim_timeout(2 * DEADLINE)
        .commit_timeout(2 * DEADLINE)
        .build()?;
    let source = B::connect(&orders.address).await.context("the worker does not connect")?;
    let effects = Arc::new(EffectLog::open(&orders.effects)?);
    let (body, fails) = (orders.body, orders.fails);
    let handler = move |message: Arc<MessageOf<B>>| {
        let (effects, points) = (effects.clone(), points.clone());
        async move {
            println!("{BEGUN}");
            if B::payload(&message).starts_with(POISON.as_bytes()) {
                std::process::abort();
            }
            if fails {
                return Err("the card is unknown");
            }
            tokio::time::sleep(body).await;
            points.reach(BEFORE_EFFECT).await;
            append_payload(&effects, B::payload(&message));
            points.reach(AFTER_EFFECT).await;
            Ok(())
        }
    };
    let mut ends = signal(SignalKind::terminate())?;
    let stop = async {
        ends.recv().await;
    };
    let inbox = orders.inbox(engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let consumer = Consumer::new(inbox, source).with_concurrency(orders.concurrency);
    let drained = Box::pin(consumer.run(stop, handler)).await?;
    anyhow::ensure!(drained.left == 0, "{drained:?}");
    Ok(())
}
