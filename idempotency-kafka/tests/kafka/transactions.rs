//! Messages that kill their process, where the attempts are rolled back with everything else: they
//! are counted as suspects. Those that run beside them are counted too, and may be dead letters.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::Idempotency;
use idempotency::inbox::{Consumer, Inbox};
use idempotency::store::SqliteStore;
use idempotency::tx::OpenTransaction;
use idempotency_kafka::rdkafka::Message as _;
use idempotency_kafka::{Kafka, TopicMessage};
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::worker::Worker;
use sqlx::Sqlite;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::scene::{DAY, Scene, header, ids, settings};

const ORDERS_VARIABLE: &str = "IDEMPOTENCY_TEST_KAFKA_TRANSACTIONS";
/// Three attempts that are counted, and the first one, which may have been none of the suspects.
const MOST_DEATHS: usize = 4;

async fn pool(file: &str) -> anyhow::Result<sqlx::SqlitePool> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let options = options.busy_timeout(Duration::from_secs(20));
    Ok(SqlitePoolOptions::new().max_connections(4).connect_with(options).await?)
}

/// What a worker process runs: it consumes into a database, and dies of a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_its_orders() -> anyhow::Result<()> {
    let Ok(orders) = std::env::var(ORDERS_VARIABLE) else { return Ok(()) };
    let [url, topic, file] = orders.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("{orders}");
    };
    let pool = pool(file).await?;
    let store = SqliteStore::from_pool(pool.clone());
    store.migrate().await?;
    let inbox = Inbox::new(Idempotency::new(store), "billing", DAY)
        .with_max_attempts(3)
        .with_backoff(Duration::from_millis(100), Duration::from_secs(1));
    let mut settings = settings(url, topic);
    // What is finished is far behind what is committed.
    settings.set("auto.commit.interval.ms", "60000");
    let source = Kafka::new(settings, [topic]).dead_letters(format!("{topic}.dead"));
    let source = if topic.starts_with("keys") { source.by_key() } else { source };
    let handler = |mut tx: OpenTransaction<Sqlite>, message: Arc<TopicMessage>| async move {
        if message.payload().is_some_and(|payload| payload.starts_with(b"poison")) {
            std::process::abort();
        }
        let payload = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
        let insert = sqlx::query("INSERT INTO bookings VALUES (?)").bind(payload);
        insert.execute(&mut **tx).await.map(drop)
    };
    let mut ends = signal(SignalKind::terminate())?;
    let stop = async {
        ends.recv().await;
    };
    Consumer::new(inbox, source.connect().await?).run_in(pool, stop, handler).await?;
    Ok(())
}

/// Lets the poison kill, as many messages one behind the other, until they are dead letters. Returns
/// how many processes they have killed.
async fn poison(scene: &Scene, file: &str, count: usize) -> anyhow::Result<usize> {
    let pool = pool(file).await?;
    sqlx::query("CREATE TABLE bookings (payload TEXT)").execute(&pool).await?;
    let mut expected = Vec::new();
    for id in ids("before", 100) {
        scene.publish_with(0, &id, &[], &id).await?;
        expected.push(id);
    }
    for id in ids("poison", count) {
        scene.publish_with(0, &id, &[], &id).await?;
    }
    for id in ids("after", 100) {
        scene.publish_with(0, &id, &[], &id).await?;
        expected.push(id);
    }
    let spawn = || {
        let mut command = Command::new(std::env::current_exe()?);
        let test = "transactions::obeys_its_orders";
        command.args([test, "--exact", "--nocapture", "--quiet", "--test-threads=2"]);
        command.env(ORDERS_VARIABLE, format!("{} {} {file}", scene.cluster.url(), scene.topic));
        Worker::spawn(command, &[])
    };
    let most = MOST_DEATHS * count;
    let (mut died, mut worker, mut dead) = (0, spawn()?, BTreeSet::new());
    let rows = || sqlx::query_as::<_, (String,)>("SELECT payload FROM bookings").fetch_all(&pool);
    let all = async {
        while !ids("poison", count).all(|id| dead.contains(&id))
            || rows().await?.len() + dead.len() < expected.len() + count
        {
            while scene.letters()? > 0 {
                let letter = scene.letter().await?;
                let reason = header(&letter, "idempotency-reason").context("a reason")?;
                ensure!(reason == "attempts", "{reason}");
                // What is dead may be so again, while its offset is not committed.
                dead.insert(String::from_utf8(letter.payload().unwrap_or_default().to_vec())?);
            }
            let ended = tokio::time::timeout(Duration::from_millis(50), worker.wait()).await;
            if let Ok(status) = ended {
                ensure!(!status?.success(), "the worker has stopped");
                died += 1;
                ensure!(died <= most, "{died} processes have died");
                worker = spawn()?;
            }
        }
        anyhow::Ok(())
    };
    // Each death costs the time in which the group notices it.
    let longest = 3 * DEADLINE * u32::try_from(count)?;
    tokio::time::timeout(longest, all).await??;
    worker.kill().await?;
    let mut found: Vec<_> = rows().await?.into_iter().map(|(row,)| row).collect();
    found.extend(dead.into_iter().filter(|payload| !payload.starts_with("poison")));
    found.sort_unstable();
    expected.sort_unstable();
    ensure!(found == expected, "{found:?}");
    Ok(died)
}

#[tokio::test]
async fn a_message_that_kills_its_process_far_behind_what_is_committed_is_a_dead_letter_in_the_end()
-> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (lanes, keys) = (Scene::with("partitions", 1).await?, Scene::by_key(1).await?);
    let (of_lanes, of_keys) = (file("lanes"), file("keys"));
    let (lanes, keys) = tokio::join!(poison(&lanes, &of_lanes, 1), poison(&keys, &of_keys, 1));
    for died in [lanes.context("lanes of partitions")?, keys.context("lanes of keys")?] {
        // A process that is held up may count more than one.
        ensure!((1..=MOST_DEATHS).contains(&died), "{died}");
    }
    Ok(())
}

/// In `minutes`.
pub async fn two_behind_one_another() -> anyhow::Result<usize> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bookings").display().to_string();
    let scene = Scene::with("partitions", 1).await?;
    poison(&scene, &file, 2).await
}
