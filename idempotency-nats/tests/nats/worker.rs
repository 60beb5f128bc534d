//! The program that the tests start: this test binary again, as a consumer with its orders in a
//! variable.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use idempotency::inbox::{Consumer, Inbox, OnFailure};
use idempotency::store::RedisStore;
use idempotency::{Idempotency, OnCrash};
use idempotency_nats::async_nats::{self, jetstream};
use idempotency_nats::{JetStream, StreamMessage};
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::{RedisOptions, RedisServer};
use idempotency_test_support::worker::{
    AFTER_EFFECT, BEFORE_EFFECT, KillPointStore, KillPoints, Worker,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::scene::{CONSUMER, DAY, Scene, append, server};

const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_NATS_WORKER";
/// The line that a worker prints when a handler begins.
pub const BEGUN: &str = "begun";
/// Begins the payload of a message that kills its process.
pub const POISON: &str = "poison";

/// What a worker consumes, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub server: String,
    pub store: String,
    pub stream: String,
    pub dead: String,
    pub effects: PathBuf,
    pub retries: bool,
    pub lease: Duration,
    pub concurrency: usize,
    pub body: Duration,
    /// The handler has no effect, and says that another attempt will not help.
    pub fails: bool,
}

impl Orders {
    pub async fn of(scene: &Scene) -> anyhow::Result<Self> {
        Ok(Self {
            server: server().await?.url(),
            store: store().await?.url(),
            stream: scene.stream.clone(),
            dead: scene.dead.clone(),
            effects: scene.effects.path().to_owned(),
            retries: false,
            lease: Duration::from_secs(1),
            concurrency: 16,
            body: Duration::ZERO,
            fails: false,
        })
    }

    /// The inbox of a worker, or of the test process. That of each stream is another one.
    pub fn inbox(&self, engine: Idempotency) -> Inbox {
        let on_crash = if self.retries { OnCrash::Retry } else { OnCrash::Hold };
        Inbox::new(engine, &*self.stream, DAY)
            .with_on_crash(on_crash)
            .with_max_attempts(3)
            .with_backoff(Duration::from_millis(100), Duration::from_secs(1))
    }

    /// An engine in the test process, on the store of the workers.
    pub async fn engine(&self) -> anyhow::Result<Idempotency> {
        let store = RedisStore::builder(&self.store).response_timeout(DEADLINE).connect().await?;
        Ok(Idempotency::builder(store).lease(self.lease).build()?)
    }

    /// Starts a worker process that waits at `points`.
    pub fn spawn(&self, points: &[&str]) -> anyhow::Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        // With one thread, the harness begins a line that the worker would end.
        command.args(["worker::obeys_its_orders", "--exact", "--nocapture", "--quiet"]);
        command.arg("--test-threads=2").env(ORDERS_VARIABLE, serde_json::to_string(self)?);
        Worker::spawn(command, points)
    }
}

/// The store of all workers. It ends with this process, as the server does.
pub async fn store() -> anyhow::Result<&'static RedisServer> {
    static STORE: OnceLock<RedisServer> = OnceLock::new();
    let start = || {
        STORE.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let start = RedisServer::start(RedisOptions::new().private());
            runtime.expect("a runtime").block_on(start).expect("the store starts")
        })
    };
    Ok(tokio::task::spawn_blocking(start).await?)
}

/// How many workers live at once. Most of them wait.
pub const AT_ONCE: usize = 16;
/// A place for each. A test that kills the server takes all: the machine is quiet then.
pub static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// What a worker process runs. In the test process it has no orders, and nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_its_orders() -> anyhow::Result<()> {
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
    let context = jetstream::new(async_nats::connect(&orders.server).await?);
    let stream = context.get_stream_no_info(&orders.stream).await?;
    let consumer = stream.get_consumer(CONSUMER).await.map_err(|error| anyhow::anyhow!(error))?;
    let source = JetStream::new(consumer).dead_letters(context, &*orders.dead).connect().await?;
    let effects = Arc::new(EffectLog::open(&orders.effects)?);
    let (body, fails) = (orders.body, orders.fails);
    let handler = move |message: Arc<StreamMessage>| {
        let (effects, points) = (effects.clone(), points.clone());
        async move {
            println!("{BEGUN}");
            if message.payload().starts_with(POISON.as_bytes()) {
                std::process::abort();
            }
            if fails {
                return Err("the card is unknown");
            }
            tokio::time::sleep(body).await;
            points.reach(BEFORE_EFFECT).await;
            append(&effects, &message);
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
