//! A receipt by mail for each payment of a day, whose events are in a NATS JetStream stream. Two
//! processes send them, and one is killed in the middle (SIGKILL). Still each receipt is sent once.
//!
//! ```sh
//! cargo run -p idempotency-nats --example nats_mail -- nats://localhost
//! ```
//!
//! `NATS_URL` can name the server too. It needs JetStream (`nats-server -js`). The streams belong to
//! this run, and are deleted at the end.
//!
//! The policy is `verify`: the other process gets the messages that the dead one had in its handlers,
//! and asks the mail server whether their receipts were sent. Those that were are acknowledged, the
//! others are sent. No operator has to answer, and nothing is sent twice.

#[expect(dead_code, reason = "shared with the other examples")]
#[path = "../fleet/mod.rs"]
mod fleet;
#[expect(dead_code, reason = "shared with the other examples")]
#[path = "../payments/mod.rs"]
mod payments;
mod stream;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fleet::{Ledger, Worker, first_of_each_payment};
use idempotency::inbox::{Consumer, Inbox, OnFailure};
use idempotency::store::SqliteStore;
use idempotency::{Idempotency, Verdict};
use idempotency_nats::async_nats::{self, jetstream};
use idempotency_nats::{JetStream, StreamMessage};
use payments::{Payment, exit_code, read_events, sums};
use stream::Stream;

const WEEK: Duration = Duration::from_secs(7 * 86_400);

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    exit_code(match (arguments.next(), arguments.next(), arguments.next(), arguments.next()) {
        (Some(word), Some(_), Some(url), Some(sent)) if word == "worker" => {
            work(&url, Path::new(&sent)).await
        }
        (url, ..) => lead(url.or_else(|| std::env::var("NATS_URL").ok())).await,
    })
}

/// Sends receipts until the stream has no more events.
async fn work(url: &str, sent: &Path) -> anyhow::Result<()> {
    let stream = Stream::of(url, sent).await?;
    let context = jetstream::new(async_nats::connect(url).await?);
    let source = JetStream::new(stream.consumer().await?);
    let source = source.dead_letters(context, stream.dead()).connect().await?;
    // The store is all that the workers have in common, beside the stream and the mail server. A
    // short lease, so that the messages of the dead worker are soon asked about: the default of 15 s
    // fits a real service.
    let store = SqliteStore::open(sent.with_file_name("records.db")).await?;
    let engine = Idempotency::builder(store).lease(Duration::from_secs(2)).build()?;
    let inbox = Inbox::new(engine, "receipts", WEEK).with_on_failure(|error: &anyhow::Error| {
        if error.is::<serde_json::Error>() { OnFailure::DeadLetter } else { OnFailure::Retry }
    });
    let server = Arc::new(Ledger::open(sent)?);
    let asked = server.clone();
    let consumer = Consumer::new(inbox, source).with_concurrency(8);
    let consumer = consumer.with_on_crash_verify(move |message: Arc<StreamMessage>, _| {
        let asked = asked.clone();
        async move {
            match was_sent(&asked, &message) {
                Ok(true) => Verdict::Completed(()),
                Ok(false) => Verdict::NotExecuted,
                // It is asked again later.
                Err(_) => Verdict::Unknown,
            }
        }
    });
    let run = consumer.run(stream.is_done(), move |message| {
        let server = server.clone();
        async move {
            let payment: Payment = message.json()?;
            // A payment whose card is declined gets no receipt.
            server.charge(&payment).await?;
            println!("done {}", payment.id);
            anyhow::Ok(())
        }
    });
    Box::pin(run).await?;
    Ok(())
}

/// Returns true if the mail server has sent the receipt of this message.
fn was_sent(server: &Ledger, message: &StreamMessage) -> anyhow::Result<bool> {
    let payment: Payment = message.json()?;
    Ok(server.charges()?.iter().any(|sent| sent.id == payment.id))
}

async fn lead(url: Option<String>) -> anyhow::Result<()> {
    let url = url.context("give the URL of a server, as argument or in NATS_URL")?;
    let directory = tempfile::tempdir()?;
    let sent = directory.path().join("sent.jsonl");
    let stream = Stream::of(&url, &sent).await?;
    stream.create().await?;
    let result = day(&url, &stream, &sent).await;
    stream.delete().await?;
    result
}

/// The events of a day.
async fn day(url: &str, stream: &Stream, sent: &Path) -> anyhow::Result<()> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/events.jsonl");
    let (events, _) = read_events(&bundled)?;
    stream.publish(&events).await?;
    let mut victim = Worker::start(1, url, sent)?;
    let other = Worker::start(2, url, sent)?;
    victim.wait_for_lines(30).await?;
    victim.kill().await?;
    println!("a worker was killed (SIGKILL) after 30 receipts, in the middle of the next ones");
    other.finish().await?;

    let sent = Ledger::open(sent)?.charges()?;
    for (currency, (amount, count)) in sums(&sent) {
        println!("  paid, {currency}  {:>6}.{:02} in {count} receipts", amount / 100, amount % 100);
    }
    for letter in stream.dead_letters().await? {
        let payment: Payment = serde_json::from_slice(&letter.payload)?;
        let reason = letter.headers.get("idempotency-reason").context("no reason")?.as_str();
        ensure!(reason == "mismatch", "{} is a dead letter: {reason}", payment.id);
        println!("{} came with another amount: refused", payment.id);
    }
    let expected = first_of_each_payment(events);
    ensure!(sent.len() == expected.len(), "{} receipts, not {}", sent.len(), expected.len());
    ensure!(sums(&sent) == sums(&expected), "the total is wrong");
    println!("every receipt was sent once: {} receipts", sent.len());
    Ok(())
}
