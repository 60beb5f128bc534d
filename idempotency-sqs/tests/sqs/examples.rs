//! The examples, started as a user starts them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency_test_support::consuming::example_prints;
use idempotency_test_support::worker::example;
use tokio::process::Command;
use tokio::time::timeout;

use crate::scene::server;

/// Longer than one takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs a program, and returns what it prints: as its result, and beside it.
async fn run(command: &mut Command) -> anyhow::Result<(String, String)> {
    let output = timeout(LONGEST, command.kill_on_drop(true).output()).await;
    let output = output.context("the example does not end")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{}\n{printed}\n{errors}", output.status);
    Ok((printed, errors))
}

#[tokio::test]
async fn a_day_of_payments_with_a_killed_worker_comes_to_the_right_sums() -> anyhow::Result<()> {
    // As `examples/data/README.md` has it.
    let rows = [
        "EUR   12032.58 in 143 charges",
        "GBP    6770.99 in 68 charges",
        "USD    1013.17 in 17 charges",
        "pay_GN1Q5C75KM came with another amount: refused",
        "every payment was charged once: 228 charges",
    ];
    example_prints("sqs_charges", &server().await?.url(), &rows).await
}

/// The records that the function reports as failed, by the ends of their ids, and what it charges.
async fn handled(event: &str, arguments: &[&str]) -> anyhow::Result<(Vec<u32>, Vec<String>)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data").join(event);
    let event = std::fs::File::open(data)?;
    let mut function = Command::new(example("sqs_lambda")?);
    let (printed, charged) = run(function.args(arguments).stdin(event)).await?;
    let response: serde_json::Value = serde_json::from_str(&printed)?;
    let failures = response["batchItemFailures"].as_array().context("no `batchItemFailures`")?;
    let failures = failures.iter().map(|failure| {
        let id = failure["itemIdentifier"].as_str().context("no `itemIdentifier`")?;
        let (_, end) = id.split_at_checked(id.len() - 7).context("a short id")?;
        Ok(end.parse()?)
    });
    let failures = failures.collect::<anyhow::Result<_>>()?;
    Ok((failures, charged.lines().map(str::to_owned).collect()))
}

#[tokio::test]
async fn a_lambda_function_reports_the_records_that_failed_and_no_duplicate() -> anyhow::Result<()>
{
    let (failures, charged) = handled("sqs_event.json", &[]).await?;
    assert_eq!(failures, [2]);
    assert_eq!(charged, ["charged 100", "charged 300"]);
    Ok(())
}

#[tokio::test]
async fn a_lambda_function_runs_nothing_behind_a_failure_of_its_group() -> anyhow::Result<()> {
    let (failures, charged) = handled("sqs_fifo_event.json", &[]).await?;
    assert_eq!(failures, [2, 4]);
    assert_eq!(charged, ["charged 100", "charged 300"]);
    Ok(())
}

/// The second charge takes ten minutes.
#[tokio::test]
async fn a_lambda_function_reports_what_has_no_time_left_as_failed() -> anyhow::Result<()> {
    let (failures, charged) = handled("sqs_slow_event.json", &["2"]).await?;
    assert_eq!(failures, [2, 3]);
    assert_eq!(charged, ["charged 100"]);
    Ok(())
}
