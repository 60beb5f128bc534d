//! How many instructions a call takes, as Valgrind counts them: the same however busy the machine
//! is. They are those of the profile that the tests are built in, in which nothing is inlined.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use idempotency::store::MemoryStore;
use idempotency::{Error, Idempotency, idempotent};
use idempotency_test_support::worker::Worker;

const KIND_VARIABLE: &str = "IDEMPOTENCY_TEST_INSTRUCTIONS_OF";
const CALLS_VARIABLE: &str = "IDEMPOTENCY_TEST_INSTRUCTIONS_CALLS";
const CALLS: u64 = 300;
/// How often it may take longer than anything else in a test: Valgrind is fifty times as slow as
/// the machine.
const PATIENCE: u32 = 10;
/// No lease is renewed, and no claim is sent again meanwhile.
const LEASE: Duration = Duration::from_secs(3_600);

#[idempotent(name = "payments.charge", key = order, ttl = "24h", engine = engine)]
async fn charge(engine: &Idempotency, order: u64) -> Result<u64, Error> {
    Ok(order)
}

/// What the process runs whose instructions are counted. In the test process it has no calls to
/// make.
#[test]
fn makes_its_calls() -> anyhow::Result<()> {
    let (Ok(kind), Ok(calls)) = (std::env::var(KIND_VARIABLE), std::env::var(CALLS_VARIABLE))
    else {
        return Ok(());
    };
    let key: fn(u64) -> u64 = match &*kind {
        "hits" => |_| 7,
        "misses" => |number| number,
        other => bail!("what are {other}?"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let engine = Idempotency::builder(MemoryStore::new()).lease(LEASE).claim_timeout(LEASE);
    let engine = engine.background_purge(false).build()?;
    runtime.block_on(async {
        for number in 0..calls.parse()? {
            ensure!(charge(&engine, key(number)).await? == key(number));
        }
        Ok(())
    })
}

/// The program, where it is.
fn valgrind() -> Option<PathBuf> {
    let named = std::env::var_os("VALGRIND").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join("valgrind"));
    named.or_else(|| found.find(|program| program.is_file()))
}

/// How many instructions a process takes that makes `calls` calls.
async fn process(valgrind: &PathBuf, kind: &str, calls: u64) -> anyhow::Result<u64> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("log");
    let mut command = Command::new(valgrind);
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(format!("--log-file={}", log.display())).arg(std::env::current_exe()?);
    command.args(["makes_its_calls", "--exact", "--test-threads=1"]);
    command.env(KIND_VARIABLE, kind).env(CALLS_VARIABLE, calls.to_string());
    let mut worker = Worker::spawn(command, &[])?;
    let mut ended = worker.wait().await;
    for _ in 1..PATIENCE {
        ended = if ended.is_err() { worker.wait().await } else { ended };
    }
    let ended = ended?;
    let log = std::fs::read_to_string(log)?;
    ensure!(ended.success(), "{log}");
    let collected = log
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .context("no figure in the log")?
        .1;
    Ok(collected.trim().parse()?)
}

/// `allowed`: a quarter more than there were when this was written, which is what another compiler
/// may make of it.
async fn assert_instructions(kind: &str, allowed: u64) -> anyhow::Result<()> {
    let Some(valgrind) = valgrind() else {
        println!("instructions were not counted: there is no valgrind");
        return Ok(());
    };
    // Those of the second half: threads and tables are made in the first.
    let (once, twice) =
        (process(&valgrind, kind, CALLS).await?, process(&valgrind, kind, 2 * CALLS).await?);
    let each = twice.checked_sub(once).context("more calls took fewer instructions")? / CALLS;
    println!("{each} instructions by each of the {kind}");
    assert!(each <= allowed, "{each} instructions by each of the {kind}: more than {allowed}");
    // Far fewer would not be those of a call.
    assert!(each >= allowed / 4, "{each} instructions by each of the {kind}: were they made?");
    Ok(())
}

#[tokio::test]
async fn a_hit_on_the_memory_store() -> anyhow::Result<()> {
    assert_instructions("hits", 70_000).await
}

#[tokio::test]
async fn a_miss_on_the_memory_store() -> anyhow::Result<()> {
    assert_instructions("misses", 165_000).await
}
