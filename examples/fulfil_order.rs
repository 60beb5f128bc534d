//! An order in four steps: reserve, charge, ship, notify. A process that fulfils one is killed in
//! the middle, and another process continues after its last finished step. If a step fails, the
//! earlier ones stay done.
//!
//! ```sh
//! cargo run --features sqlite --example fulfil_order
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::step::StepRetry;
use idempotency::store::SqliteStore;
use idempotency::{Context, Error, Idempotency, idempotent};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// An order whose truck takes a minute to load; its process is killed meanwhile.
const SLOW: u32 = 4711;
/// An order for which there is no truck at first.
const NO_TRUCK: u32 = 4712;

#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("no truck today")]
    NoTruck,
    #[error(transparent)]
    Books(#[from] std::io::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

#[idempotent(name = "orders.fulfil", key = order, ttl = "24h", lease = "10s", on_crash = resume)]
async fn fulfil(shop: &Shop, order: u32) -> Result<String, ShopError> {
    let context = Context::current();
    let place = shop.tell("reserve", context.step("reserve", || shop.reserve(order))).await?;
    // Never run again after a crash in the middle of it. Its key is the same in every attempt, and
    // differs from that of every other step.
    let charge = context.step("charge", || shop.charge(order, context.derive_key("provider")));
    let payment = shop.tell("charge", charge.at_most_once()).await?;
    let parcel = shop.tell("ship", context.step("ship", || shop.ship(order, place))).await?;
    let notify = context.step("notify", || shop.note(format!("{order} notify")));
    let notify = notify.retry(StepRetry::tries(3)).timeout(Duration::from_secs(5));
    shop.tell("notify", notify).await?;
    Ok(format!("{parcel}, paid with {payment}"))
}

/// The world outside. Its books are where effects are counted.
struct Shop {
    books: PathBuf,
    ran: AtomicBool,
}

impl Shop {
    fn new(directory: &Path) -> Self {
        Self { books: directory.join("books"), ran: AtomicBool::new(false) }
    }

    /// Prints whether a step ran here or was replayed.
    async fn tell<T>(
        &self,
        name: &str,
        step: impl IntoFuture<Output = Result<T, ShopError>>,
    ) -> Result<T, ShopError> {
        self.ran.store(false, Ordering::Relaxed);
        let result = step.await;
        let how = match (&result, self.ran.load(Ordering::Relaxed)) {
            (Err(_), _) => "failed",
            (Ok(_), true) => "ran",
            (Ok(_), false) => "replayed",
        };
        println!("{name} {how}");
        result
    }

    async fn note(&self, line: String) -> Result<(), ShopError> {
        tokio::time::sleep(Duration::from_millis(3)).await; // network latency
        self.ran.store(true, Ordering::Relaxed);
        let mut books = OpenOptions::new().create(true).append(true).open(&self.books)?;
        Ok(books.write_all(format!("{line}\n").as_bytes())?)
    }

    fn has_noted(&self, line: &str) -> std::io::Result<bool> {
        Ok(fs::read_to_string(&self.books)?.lines().any(|noted| noted == line))
    }

    async fn reserve(&self, order: u32) -> Result<u32, ShopError> {
        self.note(format!("{order} reserve")).await?;
        Ok(order % 100)
    }

    async fn charge(&self, order: u32, key: String) -> Result<String, ShopError> {
        self.note(format!("{order} charge")).await?;
        Ok(format!("ch_{}", &key[..6]))
    }

    async fn ship(&self, order: u32, place: u32) -> Result<String, ShopError> {
        let first_time = !self.has_noted(&format!("{order} truck"))?;
        self.note(format!("{order} truck")).await?;
        if first_time && order == NO_TRUCK {
            return Err(ShopError::NoTruck);
        } else if first_time && order == SLOW {
            println!("ship started");
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        self.note(format!("{order} ship")).await?;
        Ok(format!("parcel from shelf {place}"))
    }
}

/// Fulfils `order` in a process of its own, which is killed as soon as it prints the line `until`.
async fn in_process(directory: &Path, order: u32, until: Option<&str>) -> anyhow::Result<()> {
    println!("order {order}, a process starts");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(directory).arg(order.to_string()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        println!("  {line}");
        if until == Some(line.as_str()) {
            child.kill().await?; // SIGKILL: none of its code runs any more
            println!("  killed");
            println!("the next process goes on when its lease is over, in ten seconds");
        }
    }
    child.wait().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [directory, order] = &arguments[..] {
        let directory = Path::new(directory);
        Idempotency::new(SqliteStore::open(directory.join("orders.db")).await?).install()?;
        match fulfil(&Shop::new(directory), order.to_string_lossy().parse()?).await {
            Ok(result) => println!("fulfilled: {result}"),
            Err(error) => println!("not fulfilled: {error}"),
        }
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    in_process(directory.path(), SLOW, Some("ship started")).await?;
    in_process(directory.path(), SLOW, None).await?;
    in_process(directory.path(), NO_TRUCK, None).await?;
    in_process(directory.path(), NO_TRUCK, None).await?;
    let books = fs::read_to_string(directory.path().join("books"))?;
    for order in [SLOW, NO_TRUCK] {
        for step in ["reserve", "charge", "ship", "notify"] {
            let times = books.lines().filter(|line| *line == format!("{order} {step}")).count();
            ensure!(times == 1, "{step} of order {order} happened {times} times");
        }
    }
    println!("each effect happened once");
    Ok(())
}
