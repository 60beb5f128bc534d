//! Processes a file of payment events at full speed, and charges each payment once.
//!
//! ```sh
//! cargo run --example quickstart                   # the bundled day of a shop
//! cargo run --example quickstart -- my.jsonl       # your own events, in the format of examples/data/README.md
//! cargo run --example quickstart -- my.jsonl kept  # and keeps the card provider's ledger in the new file `kept`
//! cargo run --features sqlite --example quickstart -- --store sqlite:events.db   # run it twice: the second run replays
//! ```

mod payments;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use futures::stream::{self, StreamExt as _};
use idempotency::{Error, ErrorKind, Idempotency, OnError, Report, idempotent, with_report};
use payments::{
    Answer, CardProvider, Event, Payment, ProviderError, bundled_events, exit_code, read_events,
    sums,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
enum PayError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    #[serde(skip)]
    Idempotency(#[from] Error),
}

/// The function that must not run twice for one payment. Everything that makes it safe to retry is
/// in the attribute.
#[idempotent(key = payment.id, ttl = "24h", fingerprint = payment, on_error = |error| match error {
    // A result like any other: a retry gets it again.
    PayError::Provider(ProviderError::Declined) => OnError::Store,
    // Money may have moved: no retry, an operator decides.
    PayError::Provider(ProviderError::NoAnswer(_)) => OnError::Hold,
    // Nothing has happened.
    PayError::Idempotency(_) => OnError::Release,
})]
async fn charge(provider: &CardProvider, payment: &Payment) -> Result<(), PayError> {
    Ok(provider.charge(payment).await?)
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(run().await)
}

async fn run() -> anyhow::Result<()> {
    let (mut store, mut files) = (String::from("memory:"), Vec::new());
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--store" {
            store = arguments
                .next()
                .and_then(|url| url.into_string().ok())
                .context("`--store` needs a URL")?;
        } else {
            files.push(PathBuf::from(argument));
        }
    }
    let mut files = files.into_iter();
    let path = files.next().unwrap_or_else(bundled_events);
    let (events, malformed) = read_events(&path)?;
    let provider = Arc::new(CardProvider::open(files.next())?);
    Idempotency::connect(&store).await?.install()?;

    println!(
        "{} events from {}, 64 at a time; {malformed} malformed lines",
        events.len(),
        path.display()
    );
    let mut account = Account::default();
    let charge_in_a_task = |event: Event| {
        let provider = provider.clone();
        tokio::spawn(async move { (with_report(charge(&provider, &event.payment)).await, event) })
    };
    let mut tasks = stream::iter(events).map(charge_in_a_task).buffered(64);
    while let Some(task) = tasks.next().await {
        let ((result, report), event) = task?;
        account.enter(event, result, report.filter(|report| report.replayed));
    }
    account.print();
    account.check(&provider.charges()?)
}

#[derive(Default)]
struct Account {
    charges: Vec<Payment>,
    declined: usize,
    replayed: usize,
    joined: usize,
    refused: usize,
    failed: usize,
    lost: usize,
}

impl Account {
    fn enter(
        &mut self,
        Event { payment, answer }: Event,
        result: Result<(), PayError>,
        replay: Option<Report>,
    ) {
        self.lost += usize::from(answer == Answer::Lost);
        match (result, replay) {
            (Err(PayError::Idempotency(error)), _) if error.kind() == ErrorKind::Mismatch => {
                self.refused += 1;
            }
            (Ok(()) | Err(PayError::Provider(ProviderError::Declined)), Some(replay)) => {
                let count = if replay.joined || replay.waited {
                    &mut self.joined
                } else {
                    &mut self.replayed
                };
                *count += 1;
            }
            (Ok(()), None) => self.charges.push(payment),
            (Err(PayError::Provider(ProviderError::Declined)), None) => self.declined += 1,
            (Err(error), _) => {
                eprintln!("payment {:?} failed: {error}", payment.id);
                self.failed += 1;
            }
        }
    }

    fn print(&self) {
        println!("  charges made              {:>10}", self.charges.len());
        println!("  declined by the provider  {:>10}", self.declined);
        println!("  repeats: replayed         {:>10}", self.replayed);
        println!("  repeats: joined in flight {:>10}", self.joined);
        println!("  refused: content differs  {:>10}", self.refused);
        println!("  answers lost on the way   {:>10}", self.lost);
        for (currency, (amount, _)) in sums(&self.charges) {
            println!("  moved, {currency:18} {:>7}.{:02}", amount / 100, amount % 100);
        }
    }

    fn check(&self, ledger: &[Payment]) -> anyhow::Result<()> {
        let payments = ledger.iter().map(|charge| &charge.id).collect::<HashSet<_>>().len();
        println!("the provider's ledger: {} charges of {payments} payments", ledger.len());
        anyhow::ensure!(ledger.len() == payments, "a payment was charged twice");
        anyhow::ensure!(
            sums(ledger) == sums(&self.charges),
            "the ledger holds other charges than the account"
        );
        anyhow::ensure!(self.failed == 0, "{} events failed", self.failed);
        println!("every payment was charged once");
        Ok(())
    }
}
