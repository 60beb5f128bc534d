//! Servers in processes of their own: this test binary again, with its orders in a file that a
//! variable names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::routing::post;
use idempotency::clock::{Clock, Sleep, SystemClock, Timestamp};
use idempotency::http::{IdempotencyKey, IdempotencyLayer, Scope};
use idempotency::report::DuplicateRun;
use idempotency::store::{DynStore, RedisStore, SqliteStore};
use idempotency::{Context, Idempotency, OnCrash, Verdict};
use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::worker::{
    AFTER_EFFECT, BEFORE_EFFECT, KillPointStore, KillPoints, Worker,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::charges::{self, Book};
use crate::client::{Client, Outgoing, Pending, Reply};
use crate::transfer::{self, Ledger};

const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_HTTP_SERVER";
/// Begins the line that tells where the server listens.
const LISTENING: &str = "listening ";

/// How long a server waits for its store: a busy machine is no fault.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a claim lives in tests in which its owner dies.
pub const LEASE: Duration = Duration::from_millis(1_500);

/// What a server does when it finds that an earlier attempt began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Hold,
    Retry,
    /// Asks the log of effects.
    Verify,
}

/// What a server is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    url: String,
    directory: PathBuf,
    policy: Policy,
    lease: Duration,
    /// How far its clock is off, in seconds.
    skew: i64,
    /// Of the test process.
    #[serde(skip)]
    _kept: Option<Arc<TempDir>>,
}

impl Orders {
    /// A server on the store at `url`, with a log of effects of its own.
    pub fn new(url: String) -> anyhow::Result<Self> {
        let kept = tempfile::tempdir()?;
        let directory = kept.path().to_owned();
        let lease = Duration::from_secs(15);
        Ok(Self {
            url,
            directory,
            policy: Policy::Hold,
            lease,
            skew: 0,
            _kept: Some(Arc::new(kept)),
        })
    }

    pub fn with(mut self, policy: Policy, lease: Duration) -> Self {
        (self.policy, self.lease) = (policy, lease);
        self
    }

    pub fn skewed(mut self, seconds: i64) -> Self {
        self.skew = seconds;
        self
    }

    pub fn log(&self) -> anyhow::Result<EffectLog> {
        Ok(EffectLog::open(self.directory.join("effects"))?)
    }

    /// The database in which handlers charge. Servers have the route for it if it was there before
    /// them.
    pub async fn book(&self) -> anyhow::Result<Book> {
        Book::open(&self.book_path()).await
    }

    fn book_path(&self) -> PathBuf {
        self.directory.join("charges.db")
    }

    /// How often the handler had its effect for `key`, in whatever process.
    pub fn effects(&self, key: &str) -> anyhow::Result<usize> {
        Ok(self.log()?.count(key)?)
    }

    pub fn all_effects(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        Ok(self.log()?.count_by_key()?)
    }

    /// Waits until the handler of `key` has begun.
    pub async fn entered(&self, key: &str) -> anyhow::Result<()> {
        let (log, word) = (self.log()?, format!("entered-{key}"));
        eventually(&word, || log.count(&word).is_ok_and(|count| count > 0)).await
    }

    /// Lets handlers of `key` that wait go on, in all servers.
    pub fn open_the_gate(&self, key: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.gate(key), "")?)
    }

    fn gate(&self, key: &str) -> PathBuf {
        self.directory.join(format!("open-{key}"))
    }

    /// An engine of the test's own on the same store.
    pub async fn engine(&self) -> anyhow::Result<Idempotency> {
        Ok(Idempotency::builder(connect(&self.url).await?)
            .lease(self.lease)
            .claim_timeout(PATIENCE)
            .build()?)
    }
}

/// A server in a process of its own. It is killed when this value is dropped.
pub struct Process {
    worker: Worker,
    client: Client,
}

impl Process {
    /// Starts a server that waits at `points`.
    pub async fn start(orders: &Orders, points: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // With one thread, the harness begins a line that the server would end.
        command.args([
            "process::obeys_its_orders",
            "--exact",
            "--nocapture",
            "--quiet",
            "--test-threads=2",
        ]);
        let file = orders.directory.join(format!("orders-{}", uuid::Uuid::new_v4()));
        std::fs::write(&file, serde_json::to_vec(orders)?)?;
        command.env(ORDERS_VARIABLE, file);
        let mut worker = Worker::spawn(command, points)?;
        loop {
            let line = worker.line().await?.context("the server has ended before it listened")?;
            if let Some(address) = line.strip_prefix(LISTENING) {
                return Ok(Self { client: Client::new(address.parse()?), worker });
            }
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// Sends `request` with `key` until the server waits at `point`. On a busy machine a claim can
    /// come too late for its lease, and the handler does not begin then: another key is tried.
    /// Gives the key that is waiting.
    pub async fn reach(
        &mut self,
        point: &str,
        key: &str,
        request: impl Fn(&Client) -> Outgoing,
    ) -> anyhow::Result<(Pending, String)> {
        for number in 0..10 {
            let key = format!("{key}-{number}");
            let mut pending = request(&self.client).key(&key).spawn();
            tokio::select! {
                reached = self.worker.wait_for_point(point) => return reached.map(|()| (pending, key)),
                reply = pending.answered() => {
                    let reply = reply?;
                    ensure!(reply.status == 503, "{point} was not reached: {reply:?}");
                }
            }
        }
        bail!("{point} was not reached")
    }

    pub fn pid(&self) -> u32 {
        self.worker.pid()
    }

    /// SIGKILL.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.worker.kill().await
    }

    /// Sends until the answer is another than that the first request is in progress, or that a busy
    /// machine was too slow for the lease.
    pub async fn settled(&self, path: &str, key: &str) -> anyhow::Result<Reply> {
        let asking = async {
            loop {
                let reply = self.client.post(path).key(key).send().await?;
                let will_ask_again = reply.header("retry-after").is_some();
                let is_early =
                    reply.status == 409 && (reply.problem()? == "in-progress" || will_ask_again);
                if !is_early && reply.status != 503 {
                    return anyhow::Ok(reply);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("another answer than `in-progress`", asking).await?
    }
}

/// A store that waits long for its server.
pub async fn connect(url: &str) -> anyhow::Result<Arc<dyn DynStore>> {
    if url.starts_with("sqlite:") {
        return Ok(Arc::new(SqliteStore::connect(url).await?));
    }
    let builder = RedisStore::builder(url).connect_timeout(PATIENCE).response_timeout(PATIENCE);
    Ok(Arc::new(builder.connect().await?))
}

/// The machine's clock, set wrong.
#[derive(Clone, Copy, Debug)]
struct Skewed {
    clock: SystemClock,
    seconds: i64,
}

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        let now = self.clock.now().as_millis();
        Timestamp::from_millis(now.saturating_add_signed(self.seconds * 1000))
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.clock.sleep(duration)
    }
}

#[derive(Clone)]
struct Shop {
    orders: Arc<Orders>,
    log: Arc<EffectLog>,
    points: KillPoints,
}

/// As the world's payment, with points at which the process is killed.
async fn pay(
    State(shop): State<Shop>,
    key: IdempotencyKey,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let key = key.as_str();
    if headers.contains_key("x-wait") {
        shop.log.append(&format!("entered-{key}")).expect("the log takes a line");
        while !shop.orders.gate(key).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    shop.points.reach(BEFORE_EFFECT).await;
    let receipt = uuid::Uuid::new_v4().to_string();
    shop.log.append(&format!("{key} {receipt}")).expect("the log takes a line");
    shop.points.reach(AFTER_EFFECT).await;
    let attempt = Context::current().attempt();
    let document = serde_json::json!({
        "key": key, "receipt": receipt, "attempt": attempt, "pid": std::process::id(),
        "derived": Context::current().derive_key("psp"), "body": String::from_utf8_lossy(&body),
    });
    let response =
        Response::builder().status(StatusCode::CREATED).header("content-type", "application/json");
    response.body(Body::from(document.to_string())).expect("the response is well-formed")
}

fn layer(orders: &Orders, engine: Idempotency, log: &Arc<EffectLog>) -> IdempotencyLayer {
    let layer = IdempotencyLayer::new(engine, Scope::global());
    match orders.policy {
        Policy::Hold => layer,
        Policy::Retry => layer.with_on_crash(OnCrash::Retry),
        Policy::Verify => {
            let log = log.clone();
            layer.with_settle(Duration::from_millis(10)).with_verify(
                move |_: Context, request: Request<Bytes>| {
                    let (log, key) =
                        (log.clone(), request.extensions().get::<IdempotencyKey>().cloned());
                    async move {
                        let key = key.expect("the request has a key");
                        log.append(&format!("asked-{}", key.as_str()))
                            .expect("the log takes a line");
                        match log.count(key.as_str()) {
                            Ok(0) => Verdict::NotExecuted,
                            Ok(_) => {
                                Verdict::Completed(Response::new(Bytes::from("found in the books")))
                            }
                            Err(_) => Verdict::Unknown,
                        }
                    }
                },
            )
        }
    }
}

/// What a server process runs. In the test process it has no orders, and nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_its_orders() -> anyhow::Result<()> {
    let Some(orders) = std::env::var_os(ORDERS_VARIABLE) else { return Ok(()) };
    let orders: Orders = serde_json::from_slice(&std::fs::read(orders)?)?;
    let points = KillPoints::from_env();
    let store = KillPointStore::new(connect(&orders.url).await?, points.clone());
    let log = Arc::new(orders.log()?);
    let late = log.clone();
    let engine = Idempotency::builder(store)
        .lease(orders.lease)
        .claim_timeout(PATIENCE)
        .clock(Skewed { clock: SystemClock::new(), seconds: orders.skew })
        .on_duplicate(move |_: &DuplicateRun| charges::overtaken(&late))
        .build()?;
    let layer = layer(&orders, engine, &log);
    let shop = Shop { orders: Arc::new(orders.clone()), log: log.clone(), points: points.clone() };
    let mut router = Router::new().route("/pay", post(pay)).with_state(shop);
    if orders.book_path().exists() {
        router = router.merge(charges::routes(orders.book().await?, points.clone()));
    }
    if orders.url.starts_with("sqlite:") {
        router = router.merge(transfer::routes(Ledger::open(&orders.url).await?, points));
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{LISTENING}{}", listener.local_addr()?);
    Ok(axum::serve(listener, router.layer(layer)).await?)
}
