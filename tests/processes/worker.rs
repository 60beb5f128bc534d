//! The program that the tests start: this test binary again, with its orders in a file that a
//! variable names.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use idempotency::report::DuplicateRun;
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, OnCrash};
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::history::{Call, OpenCall, Outcome};
use idempotency_test_support::worker::{KillPointStore, KillPoints, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::backend::connect;
use crate::operator::{self, Answer, Policy};
use crate::service::{Planned, Service};

/// How long a caller waits for another one.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Where a worker is ready, and has called nothing yet.
pub const START: &str = "start";

/// How many calls of one worker are under way at once.
const CALLS_AT_ONCE: usize = 64;
const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_WORKER";
/// Begins a line that tells how a call ended.
const ANSWER: &str = "answer ";
/// The line of the hook that is told of a body whose call was taken over.
pub const DUPLICATE: &str = "duplicate";

/// What a worker does, and where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub url: String,
    pub effects: PathBuf,
    pub lease: Duration,
    pub work: Work,
}

/// The calls that a worker makes.
#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    Charge {
        retries: bool,
        /// The body waits after its effect, until the worker is killed.
        endless: bool,
        calls: Vec<Planned>,
    },
    Fulfil(Vec<String>),
    Ship(String),
    Settle {
        key: String,
        provider_knows: bool,
    },
    Pay {
        key: String,
        policy: Policy,
    },
    /// Looks at the record of a payment whose owner is gone, and answers.
    Answer {
        key: String,
        answer: Answer,
    },
}

/// Starts a worker process that waits at `points`.
pub fn spawn(orders: &Orders, points: &[&str]) -> anyhow::Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    // With one thread, the harness begins a line that the worker would end.
    command.args([
        "worker::obeys_its_orders",
        "--exact",
        "--nocapture",
        "--quiet",
        "--test-threads=2",
    ]);
    // A variable holds less than the calls of a long list.
    let file = orders.effects.with_file_name(format!("orders-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, serde_json::to_vec(orders)?)?;
    command.env(ORDERS_VARIABLE, file);
    Worker::spawn(command, points)
}

/// The calls among the lines that a worker printed.
pub fn answers(lines: &[String]) -> anyhow::Result<Vec<Call>> {
    lines
        .iter()
        .filter_map(|line| line.strip_prefix(ANSWER))
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

/// The answer of a worker that makes one call.
pub async fn only_answer(worker: &mut Worker) -> anyhow::Result<Outcome> {
    let answers = answers(&worker.lines().await?)?;
    anyhow::ensure!(answers.len() == 1, "{answers:?}");
    Ok(answers[0].outcome.clone())
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
        .on_conflict(OnConflict::Wait(PATIENCE))
        // A request that waits at a point is not given up, and sent anew behind the back of the
        // test.
        .claim_timeout(2 * DEADLINE)
        .commit_timeout(2 * DEADLINE)
        .on_duplicate(|_: &DuplicateRun| println!("{DUPLICATE}"))
        .build()?;
    let service = Arc::new(Service::new(engine, &orders.effects, points)?);

    service.points.reach(START).await;
    let mut calls = JoinSet::new();
    match orders.work {
        Work::Charge { retries, endless, calls: planned } => {
            let on_crash = if retries { OnCrash::Retry } else { OnCrash::Hold };
            let places = Arc::new(Semaphore::new(CALLS_AT_ONCE));
            for planned in planned {
                let (service, places) = (service.clone(), places.clone());
                calls.spawn(async move {
                    // Waited for in here, so that the answers of the first calls are printed
                    // meanwhile.
                    let place = places.acquire_owned().await;
                    tokio::time::sleep(planned.delay).await;
                    let call = OpenCall::start(&*planned.key, caller())
                        .with_fingerprint(planned.payload.to_string());
                    let call =
                        call.end(outcome(&service.charge(&planned, on_crash, endless).await));
                    drop(place);
                    call
                });
            }
        }
        Work::Fulfil(orders) => {
            for order in orders {
                let service = service.clone();
                calls.spawn(async move {
                    let call = OpenCall::start(&*order, caller());
                    call.end(outcome(&service.fulfil(&order).await))
                });
            }
        }
        Work::Ship(order) => {
            calls.spawn(async move {
                let call = OpenCall::start(&*order, caller());
                call.end(outcome(&service.ship(&order).await))
            });
        }
        Work::Settle { key, provider_knows } => {
            calls.spawn(async move {
                let call = OpenCall::start(&*key, caller());
                call.end(outcome(&service.settle(&key, provider_knows).await))
            });
        }
        Work::Pay { key, policy } => {
            calls.spawn(async move {
                let call = OpenCall::start(&*key, caller());
                call.end(operator::outcome(&service.pay(&key, policy).await))
            });
        }
        Work::Answer { key, answer } => {
            let call = OpenCall::start(&*key, caller());
            let answered = call.end(outcome(&service.answer(&key, &answer).await?));
            println!("{ANSWER}{}", serde_json::to_string(&answered)?);
        }
    }
    while let Some(answer) = calls.join_next().await {
        println!("{ANSWER}{}", serde_json::to_string(&answer?)?);
    }
    Ok(())
}

fn caller() -> String {
    std::process::id().to_string()
}

/// How a history has it.
pub fn outcome(result: &Result<impl Serialize, Error>) -> Outcome {
    match result {
        Ok(value) => Outcome::Value(serde_json::to_vec(value).expect("a result is written")),
        Err(error) if error.kind() == ErrorKind::Mismatch => Outcome::Mismatch,
        Err(error) => Outcome::Error(format!("{:?}", error.kind())),
    }
}
