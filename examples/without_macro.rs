//! The events of `quickstart` one after the other, with an explicit call instead of the attribute.
//!
//! ```sh
//! cargo run --example without_macro                   # the bundled day of a shop
//! cargo run --example without_macro -- my.jsonl       # your own events
//! cargo run --example without_macro -- my.jsonl kept  # and keeps the card provider's ledger in the new file `kept`
//! ```

mod payments;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency, OnError, with_report};
use payments::{
    Answer, CardProvider, Payment, ProviderError, bundled_events, exit_code, read_events, sums,
};
use serde::{Deserialize, Serialize};

const OPERATION: &str = "payments.charge";
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
enum PayError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    #[serde(skip)]
    Idempotency(#[from] Error),
}

/// The call that the attribute in `quickstart` expands to, in essence: the engine is named, and so
/// is the operation.
async fn charge(
    engine: &Idempotency,
    provider: &CardProvider,
    payment: &Payment,
) -> Result<(), PayError> {
    engine
        .call(OPERATION, &payment.id)
        .ttl(DAY)
        .fingerprint(payment)
        .on_error(|error: &PayError| match error {
            PayError::Provider(ProviderError::Declined) => OnError::Store,
            PayError::Provider(ProviderError::NoAnswer(_)) => OnError::Hold,
            PayError::Idempotency(_) => OnError::Release,
        })
        .run(async || Ok(provider.charge(payment).await?))
        .await
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(run().await)
}

async fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let path = arguments.next().unwrap_or_else(bundled_events);
    let (events, malformed) = read_events(&path)?;
    let provider = CardProvider::open(arguments.next())?;
    let engine = Idempotency::builder(MemoryStore::new()).namespace("shop").build()?;

    println!(
        "{} events from {}, one by one; {malformed} malformed lines",
        events.len(),
        path.display()
    );
    let (mut charges, mut repeats, mut declined, mut refused, mut lost) = (0, 0, 0, 0, 0);
    for event in &events {
        lost += u32::from(event.answer == Answer::Lost);
        let (result, report) = with_report(charge(&engine, &provider, &event.payment)).await;
        let repeat = report.is_some_and(|report| report.replayed);
        match result {
            Ok(()) | Err(PayError::Provider(ProviderError::Declined)) if repeat => repeats += 1,
            Ok(()) => charges += 1,
            Err(PayError::Provider(ProviderError::Declined)) => declined += 1,
            Err(PayError::Idempotency(error)) if error.kind() == ErrorKind::Mismatch => {
                refused += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    println!("  charges made              {charges:>10}");
    println!("  declined by the provider  {declined:>10}");
    println!("  repeats, replayed         {repeats:>10}");
    println!("  refused: content differs  {refused:>10}");
    println!("  answers lost on the way   {lost:>10}");

    let ledger = provider.charges()?;
    for (currency, (amount, count)) in sums(&ledger) {
        println!(
            "  ledger, {currency:17} {:>7}.{:02} in {count} charges",
            amount / 100,
            amount % 100
        );
    }
    anyhow::ensure!(ledger.len() == charges, "the ledger has {} charges", ledger.len());

    // Without the attribute the operation's name is known, so a record can be looked up.
    if let Some(first) = events.first() {
        let record = engine.record(OPERATION, &first.payment.id).inspect().await?;
        let record = record.ok_or_else(|| anyhow::anyhow!("the first payment left no record"))?;
        println!(
            "the first payment's record {}: {:?}, claimed {} time",
            record.key, record.state, record.attempts
        );
    }
    Ok(())
}
