//! Processes that call in transactions are killed while they do.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use idempotency::Idempotency;
use idempotency::store::SqlTransaction;
use idempotency_test_support::random::{Random, seed};
use idempotency_test_support::worker::Worker;
use serde::{Deserialize, Serialize};
use sqlx::{Pool, Transaction};

use crate::databases;
#[cfg(feature = "inbox")]
use crate::messages::{delivery, inbox};
use crate::scene::{Connection, Database, Ending, Scene, charge, keys};
use crate::world::Fault;

/// More than the processes can complete in their lives: until their end there is something to run.
const KEYS: usize = 400;
/// How many calls of one process are under way at once.
const CALLS_AT_ONCE: u32 = 6;
const PROCESSES: usize = 4;
/// How often each of them is killed and another one takes its place.
const KILLS: usize = 5;
const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_CLIENT";
/// Begins a line with a key and the answer to a call.
const ANSWER: &str = "answer ";
/// The line of a body that begins.
const RUNNING: &str = "running";

/// What a process does.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    database: String,
    url: String,
    seed: u64,
    /// It handles messages instead of making calls.
    messages: bool,
}

fn spawn(orders: &Orders) -> anyhow::Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "clients::obeys_its_orders",
        "--exact",
        "--nocapture",
        "--quiet",
        "--test-threads=2",
    ]);
    command.env(ORDERS_VARIABLE, serde_json::to_string(orders)?);
    Worker::spawn(command, &[])
}

/// What such a process runs. In the test process it has no orders, and nothing to do.
#[tokio::test]
async fn obeys_its_orders() -> anyhow::Result<()> {
    let Ok(orders) = std::env::var(ORDERS_VARIABLE) else { return Ok(()) };
    let orders: Orders = serde_json::from_str(&orders)?;
    match &*orders.database {
        #[cfg(feature = "postgres")]
        "postgres" => obey::<databases::Postgres>(&orders).await,
        #[cfg(feature = "mysql")]
        "mariadb" => obey::<databases::MariaDb>(&orders).await,
        _ => obey::<databases::Sqlite>(&orders).await,
    }
}

async fn obey<D: Database>(orders: &Orders) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let (pool, engine) = D::open(&orders.url, CALLS_AT_ONCE, None).await?;
    let mut random = Random::new(orders.seed);
    #[cfg(feature = "inbox")]
    if orders.messages {
        let messages =
            (0..CALLS_AT_ONCE).map(|_| messages_for_ever::<D>(&pool, &engine, random.fork()));
        futures::future::try_join_all(messages).await?;
        return Ok(());
    }
    let calls = (0..CALLS_AT_ONCE).map(|_| calls_for_ever::<D>(&pool, &engine, random.fork()));
    futures::future::try_join_all(calls).await?;
    Ok(())
}

async fn calls_for_ever<D: Database>(
    pool: &Pool<D::Sqlx>,
    engine: &Idempotency,
    mut random: Random,
) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let keys = keys(KEYS);
    loop {
        let key = &keys[usize::try_from(random.below(KEYS as u64))?];
        let ending = match random.below(4) {
            0 => Ending::CommitError,
            1 => Ending::RollBack,
            _ => Ending::Commit,
        };
        match charge::<D>(pool, engine, key, ending, &|| println!("{RUNNING}")).await {
            Ok(Some(answer)) => println!("{ANSWER}{key} {answer}"),
            Ok(None) | Err(Fault::No) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Handles messages, of which some fail after their effect, and prints each that it may
/// acknowledge.
#[cfg(feature = "inbox")]
async fn messages_for_ever<D: Database>(
    pool: &Pool<D::Sqlx>,
    engine: &Idempotency,
    mut random: Random,
) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    use idempotency::inbox::Disposition;
    let (keys, inbox) = (keys(KEYS), inbox(engine));
    loop {
        let key = &keys[usize::try_from(random.below(KEYS as u64))?];
        let fails = random.below(4) == 0;
        let handled = inbox.handle_in(pool, delivery(key), |mut transaction| async move {
            println!("{RUNNING}");
            D::add(&mut **transaction, key, "booked").await?;
            if fails { Err(Fault::No) } else { Ok(()) }
        });
        let handled = handled.await;
        match handled.disposition {
            Disposition::Ack => println!("{ANSWER}{key} booked"),
            Disposition::Retry(_) => {}
            other => anyhow::bail!("{key}: {other:?} {:?}", handled.outcome),
        }
    }
}

/// Processes that handle messages are killed. What they have acknowledged has one effect, and what
/// they have not has at most one, and gets it in the end.
#[cfg(feature = "inbox")]
async fn killed_consumers<D: Database>(database: &str) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    use idempotency::inbox::Disposition;
    let seed = seed();
    let mut random = Random::new(seed);
    let again = || format!("IDEMPOTENCY_SEED={seed} repeats the choices");
    let scene = Scene::<D>::new(4, None).await?;
    let mut lives = Vec::new();
    for _ in 0..PROCESSES {
        lives.push(deaths(database, scene.database.url(), random.fork(), true));
    }
    let acked = futures::future::try_join_all(lives).await.with_context(again)?.concat();
    let effects = scene.effects().await?;
    for (key, _) in &acked {
        let of_key = effects.get(key).map_or(0, Vec::len);
        anyhow::ensure!(of_key == 1, "{key} is acknowledged and has {of_key} effects; {}", again());
    }
    let inbox = inbox(&scene.engine);
    for key in keys(KEYS) {
        let handled = inbox.handle_in(&scene.pool, delivery(&key), |mut transaction| {
            let key = key.clone();
            async move { Ok::<_, Fault>(D::add(&mut **transaction, &key, "booked").await?) }
        });
        let handled = handled.await;
        anyhow::ensure!(handled.disposition == Disposition::Ack, "{key}: {handled:?}");
    }
    let effects = scene.effects().await?;
    let all = effects.len() == KEYS && effects.values().all(|of_key| of_key.len() == 1);
    anyhow::ensure!(all, "not one effect for each message; {}", again());
    Ok(())
}

async fn killed_clients<D: Database>(database: &str) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let seed = seed();
    let run = killed_clients_of::<D>(database, Random::new(seed)).await;
    run.with_context(|| format!("IDEMPOTENCY_SEED={seed} repeats the choices"))
}

async fn killed_clients_of<D: Database>(database: &str, mut random: Random) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(4, None).await?;
    let mut lives = Vec::new();
    for _ in 0..PROCESSES {
        lives.push(deaths(database, scene.database.url(), random.fork(), false));
    }
    let mut answers = futures::future::try_join_all(lives).await?.concat();
    let keys = keys(KEYS);
    scene.is_exact(&keys, &answers).await?;
    for key in &keys {
        // Waits for what the dead have left open in the database.
        let answer = charge::<D>(&scene.pool, &scene.engine, key, Ending::Commit, &|| {}).await?;
        answers.extend(answer.map(|answer| (key.clone(), answer)));
    }
    scene.is_exact(&keys, &answers).await?;
    let effects = scene.effects().await?;
    anyhow::ensure!(effects.len() == KEYS, "{} keys have effects", effects.len());
    Ok(())
}

/// Lets one process after the other live until some of its bodies have begun. Gives the answers
/// that were heard of.
async fn deaths(
    database: &str,
    url: String,
    mut random: Random,
    messages: bool,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut answers = Vec::new();
    for _ in 0..KILLS {
        let (database, url, seed) = (database.to_owned(), url.clone(), random.bits());
        let orders = Orders { database, url, seed, messages };
        let mut worker = spawn(&orders)?;
        let mut bodies = 1 + random.below(5);
        while bodies > 0 {
            let line = worker.line().await?.context("the process has ended by itself")?;
            if line == RUNNING {
                bodies -= 1;
            } else if let Some((key, answer)) =
                line.strip_prefix(ANSWER).and_then(|line| line.split_once(' '))
            {
                answers.push((key.to_owned(), answer.to_owned()));
            }
        }
        // In its body, at its commit, or after that.
        tokio::time::sleep(random.duration_below(Duration::from_millis(4))).await;
        worker.kill().await?;
    }
    Ok(answers)
}

#[tokio::test]
async fn on_sqlite_killed_clients_leave_as_many_effects_as_records() -> anyhow::Result<()> {
    killed_clients::<databases::Sqlite>("sqlite").await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_killed_clients_leave_as_many_effects_as_records() -> anyhow::Result<()> {
    killed_clients::<databases::Postgres>("postgres").await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_killed_clients_leave_as_many_effects_as_records() -> anyhow::Result<()> {
    killed_clients::<databases::MariaDb>("mariadb").await
}

#[cfg(feature = "inbox")]
#[tokio::test]
async fn on_sqlite_killed_consumers_have_one_effect_for_each_message() -> anyhow::Result<()> {
    killed_consumers::<databases::Sqlite>("sqlite").await
}

#[cfg(all(feature = "inbox", feature = "postgres"))]
#[tokio::test]
async fn on_postgresql_killed_consumers_have_one_effect_for_each_message() -> anyhow::Result<()> {
    killed_consumers::<databases::Postgres>("postgres").await
}

#[cfg(all(feature = "inbox", feature = "mysql"))]
#[tokio::test]
async fn on_mariadb_killed_consumers_have_one_effect_for_each_message() -> anyhow::Result<()> {
    killed_consumers::<databases::MariaDb>("mariadb").await
}
