//! A day of payment events on a queue of Amazon SQS. Two processes consume it, and one is killed in
//! the middle (SIGKILL). Still every payment is charged once.
//!
//! ```sh
//! cargo run -p idempotency-sqs --example sqs_charges -- http://localhost:4566
//! ```
//!
//! The URL is that of an emulator, as MiniStack or LocalStack; `AWS_ENDPOINT_URL_SQS` can name it
//! too. A service at Amazon takes its client from `aws-config`. The queues belong to this run, and
//! are deleted at the end.
//!
//! The policy is `hold`, the default: the payments that the dead worker had in its handlers become
//! dead letters, in doubt. At the end the example plays the operator: it looks up each of them in
//! the provider's ledger, resolves its record, and moves the message back. It is acknowledged as a
//! duplicate, or it runs.

#[expect(dead_code, reason = "shared with the other examples")]
#[path = "../payments/mod.rs"]
mod payments;
mod queues;

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::Idempotency;
use idempotency::inbox::{Consumer, Inbox, OnFailure};
use idempotency::key::KeyHash;
use idempotency::record::Resolution;
use idempotency::store::SqliteStore;
use idempotency_sqs::Sqs;
use idempotency_sqs::aws_sdk_sqs::types::Message;
use payments::{Payment, exit_code, read_events, sums};
use queues::{Queues, Worker, client};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

/// The longest time for which a queue keeps a message.
const RETENTION: Duration = Duration::from_secs(14 * 86_400);

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    exit_code(match (arguments.next(), arguments.next(), arguments.next(), arguments.next()) {
        (Some(word), Some(url), Some(queue), Some(directory)) if word == "worker" => {
            work(&url, &queue, Path::new(&directory)).await
        }
        (url, ..) => lead(url.or_else(|| std::env::var("AWS_ENDPOINT_URL_SQS").ok())).await,
    })
}

/// Consumes the queue until its standard input ends.
async fn work(url: &str, queue: &str, directory: &Path) -> anyhow::Result<()> {
    let source = Sqs::new(client(url), queue).dead_letters(queues::dead(queue)).connect().await?;
    let inbox = Inbox::new(engine(directory).await?, "payments", RETENTION).with_on_failure(
        |error: &anyhow::Error| {
            if error.is::<serde_json::Error>() { OnFailure::DeadLetter } else { OnFailure::Retry }
        },
    );
    let ledger = directory.join("ledger.jsonl");
    let stop = async {
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    };
    let consumer = Consumer::new(inbox, source).with_concurrency(8);
    let run = consumer.run(stop, move |message| {
        let ledger = ledger.clone();
        async move {
            let payment: Payment = message.json()?;
            charge(&ledger, &payment).await?;
            println!("{}", payment.id);
            anyhow::Ok(())
        }
    });
    Box::pin(run).await?;
    Ok(())
}

/// The store is all that the workers have in common, beside the queue.
async fn engine(directory: &Path) -> anyhow::Result<Idempotency> {
    let store = SqliteStore::open(directory.join("records.db")).await?;
    // A short lease, so that the payments of the dead worker are soon in doubt. The default of 15 s
    // fits a real service.
    Ok(Idempotency::builder(store).lease(Duration::from_secs(2)).build()?)
}

/// Charges a payment on every request. A card that ends in `-0002` is declined, which is a result
/// like any other.
async fn charge(ledger: &Path, payment: &Payment) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_millis(10)).await; // latency
    if !is_declined(payment) {
        let mut file = OpenOptions::new().create(true).append(true).open(ledger)?;
        file.write_all(format!("{}\n", serde_json::to_string(payment)?).as_bytes())?;
    }
    tokio::time::sleep(Duration::from_millis(10)).await; // and the response
    Ok(())
}

fn is_declined(payment: &Payment) -> bool {
    payment.card.ends_with("-0002")
}

async fn lead(url: Option<String>) -> anyhow::Result<()> {
    let url = url.context("give the URL of SQS, as argument or in AWS_ENDPOINT_URL_SQS")?;
    let directory = tempfile::tempdir()?;
    let run = directory.path().file_name().context("a directory has a name")?;
    let name = format!("payments-{}", run.to_string_lossy().replace('.', "-"));
    let queues = Queues::create(&url, &name).await?;
    let result = day(&url, &queues, directory.path()).await;
    queues.delete().await?;
    result
}

/// The events of a day.
async fn day(url: &str, queues: &Queues, directory: &Path) -> anyhow::Result<()> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/events.jsonl");
    let (events, _) = read_events(&bundled)?;
    let (first, second) = events.split_at(events.len() / 2);
    queues.publish(first).await?;
    let mut victim = Worker::start(url, queues, directory)?;
    let other = Worker::start(url, queues, directory)?;
    victim.wait_for_lines(30).await?;
    victim.kill().await?;
    println!("a worker was killed (SIGKILL) after 30 payments, in the middle of the next ones");
    queues.publish(second).await?;
    other.finish(queues).await?;

    let engine = engine(directory).await?;
    let ledger = directory.join("ledger.jsonl");
    while let Some(letter) = queues.dead_letter().await? {
        let payment: Payment = serde_json::from_str(letter.body().context("a body")?)?;
        let story = Story::of(&letter)?;
        match &*story.reason {
            "mismatch" => println!("{} came with another amount: refused", payment.id),
            "in-doubt" => {
                let hash: KeyHash = story.record.context("no record")?.parse()?;
                let record = engine.record_by_hash(hash);
                // A declined payment has no effect: it can run again.
                let was_charged = charges(&ledger)?.iter().any(|charge| charge.id == payment.id);
                let answer = if was_charged {
                    Resolution::completed(())
                } else {
                    Resolution::not_executed()
                };
                // A second copy of the dead letter finds it answered, or gone.
                if let Some(view) = record.inspect().await? {
                    let _ = record.resolve(&view, answer).await;
                }
                queues.redrive(&letter).await?;
                let found = if was_charged { "has it" } else { "does not have it: run again" };
                println!("{} was in doubt: the ledger {found}", payment.id);
            }
            reason => anyhow::bail!("{} is a dead letter: {reason}", payment.id),
        }
        queues.delete_dead(&letter).await?;
    }
    Worker::start(url, queues, directory)?.finish(queues).await?;
    ensure!(queues.dead_letter().await?.is_none(), "a payment is still a dead letter");

    let charges = charges(&ledger)?;
    for (currency, (amount, count)) in sums(&charges) {
        println!("  moved, {currency}  {:>6}.{:02} in {count} charges", amount / 100, amount % 100);
    }
    let mut seen = HashSet::new();
    let expected = events.into_iter().map(|event| event.payment);
    let expected: Vec<_> =
        expected.filter(|one| seen.insert(one.id.clone()) && !is_declined(one)).collect();
    let payments = charges.iter().map(|charge| &charge.id).collect::<HashSet<_>>().len();
    ensure!(charges.len() == payments, "a payment was charged twice");
    ensure!(sums(&charges) == sums(&expected), "the total is wrong");
    println!("every payment was charged once: {payments} charges");
    Ok(())
}

fn charges(ledger: &Path) -> anyhow::Result<Vec<Payment>> {
    let text = std::fs::read_to_string(ledger)?;
    text.lines().map(|line| serde_json::from_str(line).context("the ledger is damaged")).collect()
}

/// What a dead letter says.
#[derive(Deserialize)]
struct Story {
    reason: String,
    record: Option<String>,
}

impl Story {
    fn of(letter: &Message) -> anyhow::Result<Self> {
        let attributes = letter.message_attributes().context("a dead letter has attributes")?;
        let story =
            attributes.get("idempotency-dead-letter").and_then(|story| story.string_value());
        Ok(serde_json::from_str(story.context("a dead letter has a story")?)?)
    }
}
