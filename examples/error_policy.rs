//! Three errors of a bank, and the outcome of a retry after each: a declined card is stored, a
//! timeout is held, a busy bank is released.
//!
//! ```sh
//! cargo run --example error_policy
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use idempotency::record::{Resolution, State};
use idempotency::store::MemoryStore;
use idempotency::{Error, Idempotency, OnError, idempotent};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
enum PayError {
    #[error("the card was declined")]
    Declined,
    #[error("the bank gave no answer in time")]
    Timeout,
    #[error("the bank is busy")]
    Busy,
    #[error(transparent)]
    #[serde(skip)]
    Idempotency(#[from] Error),
}

/// Decides about each error by one question: what does it say about the money?
fn policy(error: &PayError) -> OnError {
    match error {
        // The money was not moved, and that is the result: every retry gets the same, and the bank
        // is not called again.
        PayError::Declined => OnError::Store,
        // The outcome is unknown: every retry is refused until an operator has checked with the
        // bank.
        PayError::Timeout => OnError::Hold,
        // The money was not moved, and the next attempt may succeed.
        PayError::Busy | PayError::Idempotency(_) => OnError::Release,
    }
}

#[idempotent(key = payment, ttl = "24h", name = "payments.charge", on_error = policy)]
async fn charge(bank: &Bank, payment: &str) -> Result<String, PayError> {
    bank.charge(payment)
}

/// The bank, which is outside of the service. It counts the requests that it gets.
#[derive(Default)]
struct Bank {
    asked: Mutex<HashMap<String, u32>>,
}

impl Bank {
    fn charge(&self, payment: &str) -> Result<String, PayError> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let times = asked.entry(payment.to_owned()).or_default();
        *times += 1;
        match (payment, *times) {
            ("declined", _) => Err(PayError::Declined),
            ("timeout", 1) => Err(PayError::Timeout),
            ("busy", 1) => Err(PayError::Busy),
            _ => Ok(format!("receipt for `{payment}`")),
        }
    }

    fn asked(&self, payment: &str) -> u32 {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(payment)
            .copied()
            .unwrap_or_default()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let engine = Idempotency::new(MemoryStore::new());
    engine.clone().install()?;
    let bank = Bank::default();

    for payment in ["declined", "timeout", "busy"] {
        attempt("first try", &bank, payment).await;
        attempt("retry", &bank, payment).await;
    }

    println!("an operator looks into the held payment:");
    let record = engine.record("payments.charge", "timeout");
    let view = record.inspect().await?.context("the record of the timeout is gone")?;
    anyhow::ensure!(view.state == State::InDoubt, "the timeout was not held: {view:?}");
    println!(
        "  {} is {:?} because {}",
        view.key,
        view.state,
        view.reason.context("it has no reason")?
    );
    // The bank's books show that the money was moved. Otherwise the resolution would be
    // `Resolution::not_executed()`.
    record.resolve(&view, Resolution::completed("receipt from the bank's books")).await?;
    attempt("retry", &bank, "timeout").await;

    for (payment, expected) in [("declined", 1), ("timeout", 1), ("busy", 2)] {
        let asked = bank.asked(payment);
        anyhow::ensure!(
            asked == expected,
            "the bank was asked {asked} times about `{payment}`, not {expected}"
        );
    }
    Ok(())
}

async fn attempt(what: &str, bank: &Bank, payment: &str) {
    let answer = charge(bank, payment).await.unwrap_or_else(|error| error.to_string());
    println!("{payment:9} {what:10} the bank was asked {}x: {answer}", bank.asked(payment));
}
