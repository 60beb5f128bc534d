//! Three processes share a Redis store and work on one file of payment events. One is killed in the
//! middle (SIGKILL). Still every payment is charged once.
//!
//! ```sh
//! cargo run --features redis --example redis_shared                            # starts a redis-server of its own
//! cargo run --features redis --example redis_shared -- redis://127.0.0.1/      # or takes yours; REDIS_URL does it too
//! ```
//!
//! The policy is `hold`, the default: money is not moved twice. If a worker died in the body, its
//! payment is therefore in doubt and is not run again automatically. At the end the example plays
//! the operator: it looks up each of them in the provider's ledger, and resolves its record. With
//! `on_crash = retry` none would be left, but payments that the dead worker had already charged
//! would be charged again.

mod fleet;
#[expect(dead_code, reason = "shared with the other examples")]
mod payments;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use fleet::{Ledger, Redis, Worker};
use futures::stream::{self, StreamExt as _};
use idempotency::record::{Resolution, State};
use idempotency::store::RedisStore;
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, WithEngine as _, idempotent};
use payments::{Payment, bundled_events, exit_code, read_events, sums};

const OPERATION: &str = "payments.charge";

/// Charges a payment. Returns false if the card was declined, which is a result like any other.
#[idempotent(name = OPERATION, key = payment.id, ttl = "24h", fingerprint = payment, on_error = hold)]
async fn charge(ledger: &Ledger, payment: &Payment) -> anyhow::Result<bool> {
    ledger.charge(payment).await
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    exit_code(match (arguments.next(), arguments.next(), arguments.next(), arguments.next()) {
        (Some(word), Some(number), Some(url), Some(ledger)) if word == "worker" => {
            work(&number, &url, Path::new(&ledger)).await
        }
        (url, ..) => lead(url.or_else(|| std::env::var("REDIS_URL").ok())).await,
    })
}

/// Creates the engine. The URL is all that the processes have in common. The namespace separates
/// the runs of this example.
async fn engine(url: &str, ledger: &Path) -> anyhow::Result<Idempotency> {
    let store = RedisStore::connect(url).await?;
    let run = ledger
        .parent()
        .and_then(Path::file_name)
        .context("the ledger is in a directory of this run")?;
    let run = format!(
        "run-{}",
        run.to_string_lossy().to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    );
    // A short lease, so that the payments of the dead worker are soon in doubt. The default of 15 s
    // fits a real service.
    let engine = Idempotency::builder(store).namespace(run).lease(Duration::from_secs(4));
    // An event that was not answered in time is not repeated: wait longer than a busy machine
    // takes.
    let engine = engine.claim_timeout(Duration::from_secs(20));
    Ok(engine.on_conflict(OnConflict::Wait(Duration::from_secs(20))).build()?)
}

/// Runs all events, beginning at another place than the other workers.
async fn work(number: &str, url: &str, ledger: &Path) -> anyhow::Result<()> {
    engine(url, ledger).await?.install()?;
    let (mut events, _) = read_events(&bundled_events())?;
    let distance = events.len() / 6;
    events.rotate_left(distance * (number.parse::<usize>()? - 1));
    let ledger = Ledger::open(ledger)?;
    let mut calls = stream::iter(&events)
        .map(async |event| (charge(&ledger, &event.payment).await, event))
        .buffer_unordered(8);
    while let Some((result, event)) = calls.next().await {
        match result {
            Ok(_) => println!("done {}", event.payment.id),
            Err(error) => match error.downcast::<Error>() {
                Ok(error) => println!("{:?} {}", error.kind(), event.payment.id),
                Err(error) => return Err(error.context("the ledger cannot be written")),
            },
        }
    }
    Ok(())
}

async fn lead(url: Option<String>) -> anyhow::Result<()> {
    let redis = Redis::take_or_start(url).await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ledger.jsonl");
    let engine = engine(redis.url(), &path).await?;
    let ledger = Ledger::open(&path)?;

    let workers = (1..=3).map(|number| Worker::start(number, redis.url(), &path));
    let mut workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
    let mut victim = workers.remove(0);
    victim.wait_for_lines(30).await?;
    victim.kill().await?;
    println!("worker 1 was killed (SIGKILL) after 30 events, in the middle of the next ones");
    let mut doubtful = std::collections::BTreeSet::new();
    for worker in workers {
        let name = worker.name();
        let (done, failed) = worker.finish().await?;
        println!(
            "{name} has answers for {done} events, {} are in doubt",
            count(&failed, ErrorKind::InDoubt)
        );
        println!(
            "{name} was refused {} event: its content differs",
            count(&failed, ErrorKind::Mismatch)
        );
        let in_doubt =
            failed.into_iter().filter(|(kind, _)| *kind == format!("{:?}", ErrorKind::InDoubt));
        doubtful.extend(in_doubt.map(|(_, payment)| payment));
    }

    let (events, _) = read_events(&bundled_events())?;
    for id in doubtful {
        let record = engine.record(OPERATION, &id);
        let view = record.inspect().await?.with_context(|| format!("{id} has no record"))?;
        if view.state != State::InDoubt {
            println!("{id} was in doubt until its worker came back");
            continue;
        }
        let was_charged = ledger.charges()?.iter().any(|charge| charge.id == id);
        let answer =
            if was_charged { Resolution::completed(true) } else { Resolution::not_executed() };
        record.resolve(&view, answer).await?;
        // The next redelivery: a replay for the one, the first run for the other.
        let payment = &events
            .iter()
            .find(|event| event.payment.id == id)
            .context("an unknown payment")?
            .payment;
        charge(&ledger, payment).with_engine(&engine).await?;
        println!(
            "{id} was in doubt: the ledger {}",
            if was_charged { "has it" } else { "does not have it: run again" }
        );
    }

    let charges = ledger.charges()?;
    for (currency, (amount, count)) in sums(&charges) {
        println!("  moved, {currency}  {:>6}.{:02} in {count} charges", amount / 100, amount % 100);
    }
    let payments =
        charges.iter().map(|charge| &charge.id).collect::<std::collections::HashSet<_>>().len();
    anyhow::ensure!(charges.len() == payments, "a payment was charged twice");
    let accepted = fleet::first_of_each_payment(events);
    anyhow::ensure!(sums(&charges) == sums(&accepted), "the total is wrong");
    println!("every payment was charged once: {payments} charges");
    Ok(())
}

fn count(failed: &[(String, String)], kind: ErrorKind) -> usize {
    failed.iter().filter(|(name, _)| *name == format!("{kind:?}")).count()
}
