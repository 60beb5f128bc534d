//! The example, started as a user starts it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency_test_support::consuming::quiet;
use idempotency_test_support::worker::example;
use tokio::process::Command;
use tokio::time::timeout;

use crate::scene::broker;

/// Longer than its day takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_day_of_payments_with_a_killed_worker_comes_to_the_right_sums() -> anyhow::Result<()> {
    // It has three processes and waits for leases: in the middle of the kills it would take long.
    let _is_quiet = quiet().await?;
    let mut command = Command::new(example("rabbitmq_orders")?);
    command.arg(broker().await?.url()).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONGEST, command.output()).await;
    let output = output.context("the example does not end")??;
    let printed = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{printed}\n{errors}", output.status);
    // As `examples/data/README.md` has it.
    for row in [
        "EUR   12032.58 in 143 charges",
        "GBP    6770.99 in 68 charges",
        "USD    1013.17 in 17 charges",
        "pay_GN1Q5C75KM came with another amount: refused",
        "every payment was charged once: 228 charges",
    ] {
        ensure!(printed.contains(row), "{row} is not in\n{printed}");
    }
    Ok(())
}
