//! The program that the tests start: this test binary again, with its orders in a file that a variable names.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use idempotency::{Context, Duplicate, Error, ErrorKind, Idempotency, OnConflict, OnCrash};
use idempotency_test_support::history::{Call, Effect, EventLog, OpenCall, Outcome};
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPointStore, KillPoints, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::backend::connect;

/// How long a claim lives in these tests.
pub const LEASE: Duration = Duration::from_millis(300);
pub const DAY: Duration = Duration::from_secs(86_400);
pub const OPERATION: &str = "payments.charge";
/// Where a worker is ready, and has called nothing yet.
pub const START: &str = "start";

/// How many calls of one worker are under way at once.
const CALLS_AT_ONCE: usize = 64;
const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_WORKER";
/// Begins a line that tells how a call ended.
const ANSWER: &str = "answer ";
/// The line of the hook that is told of a body whose call was taken over.
pub const DUPLICATE: &str = "duplicate";

/// What a worker does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub url: String,
    pub effects: std::path::PathBuf,
    pub retries: bool,
    pub lease: Duration,
    /// The body waits after its effect, until the worker is killed.
    pub endless: bool,
    pub calls: Vec<Planned>,
}

/// One call, and when it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Planned {
    pub key: String,
    pub payload: u32,
    pub delay: Duration,
    pub body: Duration,
}

impl Planned {
    pub fn now(key: &str) -> Self {
        Self { key: String::from(key), payload: 0, delay: Duration::ZERO, body: Duration::ZERO }
    }
}

/// What a body returns: names its effect, so that a second run would give another receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub effect: String,
    pub payload: u32,
}

impl Receipt {
    /// As histories have it.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a receipt is written")
    }
}

/// One process's engine with the world that its bodies change.
pub struct Service {
    pub engine: Idempotency,
    pub effects: EventLog,
    pub points: KillPoints,
    pub on_crash: OnCrash,
    pub endless: bool,
}

impl Service {
    pub async fn charge(&self, planned: &Planned) -> Result<Receipt, Error> {
        let call = self.engine.call(OPERATION, planned.key.as_str()).ttl(DAY).fingerprint(&planned.payload);
        call.on_crash(self.on_crash).run(|| self.body(planned)).await
    }

    async fn body(&self, planned: &Planned) -> Result<Receipt, Error> {
        tokio::time::sleep(planned.body).await;
        self.points.reach(BEFORE_EFFECT).await;
        let receipt = Receipt { effect: uuid::Uuid::new_v4().to_string(), payload: planned.payload };
        let effect = Effect::now(&*planned.key, Context::current().attempt()).with_result(receipt.bytes());
        let effect = effect.with_fingerprint(planned.payload.to_string());
        self.effects.append(effect).expect("the effect is written");
        self.points.reach(AFTER_EFFECT).await;
        if self.endless {
            std::future::pending::<()>().await;
        }
        Ok(receipt)
    }
}

/// Starts a worker process that waits at `points`.
pub fn spawn(orders: &Orders, points: &[&str]) -> anyhow::Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    // With one thread, the harness begins a line that the worker would end.
    command.args(["worker::obeys_its_orders", "--exact", "--nocapture", "--quiet", "--test-threads=2"]);
    // A variable holds less than the calls of a long list.
    let file = orders.effects.with_file_name(format!("orders-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, serde_json::to_vec(orders)?)?;
    command.env(ORDERS_VARIABLE, file);
    Worker::spawn(command, points)
}

/// The calls among the lines that a worker printed.
pub fn answers(lines: &[String]) -> anyhow::Result<Vec<Call>> {
    lines.iter().filter_map(|line| line.strip_prefix(ANSWER)).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// What a worker process runs. In the test process it has no orders, and nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_its_orders() -> anyhow::Result<()> {
    let Some(orders) = std::env::var_os(ORDERS_VARIABLE) else { return Ok(()) };
    let orders: Orders = serde_json::from_slice(&std::fs::read(orders)?)?;
    let points = KillPoints::from_env();
    let store = KillPointStore::new(connect(&orders.url).await?, points.clone());
    let engine = Idempotency::builder(store)
        .lease(orders.lease)
        .on_conflict(OnConflict::Wait(Duration::from_secs(25)))
        .on_duplicate(|_: &Duplicate| println!("{DUPLICATE}"))
        .build();
    let on_crash = if orders.retries { OnCrash::Retry } else { OnCrash::Hold };
    let effects = EventLog::open(&orders.effects)?;
    let service = Arc::new(Service { engine, effects, points, on_crash, endless: orders.endless });

    service.points.reach(START).await;
    let places = Arc::new(Semaphore::new(CALLS_AT_ONCE));
    let mut calls = tokio::task::JoinSet::new();
    for planned in orders.calls {
        let (service, place) = (service.clone(), places.clone().acquire_owned().await?);
        calls.spawn(async move {
            tokio::time::sleep(planned.delay).await;
            let call = OpenCall::start(&*planned.key, std::process::id().to_string());
            let call = call.with_fingerprint(planned.payload.to_string());
            let call = call.end(outcome(&service.charge(&planned).await));
            drop(place);
            call
        });
    }
    while let Some(answer) = calls.join_next().await {
        println!("{ANSWER}{}", serde_json::to_string(&answer?)?);
    }
    Ok(())
}

/// How a history has it.
fn outcome(result: &Result<Receipt, Error>) -> Outcome {
    match result {
        Ok(receipt) => Outcome::Value(receipt.bytes()),
        Err(error) if error.kind() == ErrorKind::Mismatch => Outcome::Mismatch,
        Err(error) => Outcome::Error(format!("{:?}", error.kind())),
    }
}
