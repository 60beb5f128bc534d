//! An adapter's example, started as a user starts it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use super::quiet;
use crate::worker::example;

/// Longer than its day takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs the example with the URL of a broker, and checks that it prints these rows.
///
/// # Errors
/// If it fails, does not end, or prints something else.
pub async fn example_prints(name: &str, url: &str, rows: &[&str]) -> anyhow::Result<()> {
    // It has three processes and waits for leases: in the middle of the kills it would take long.
    let _is_quiet = quiet().await?;
    let mut command = Command::new(example(name)?);
    command.arg(url).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONGEST, command.output()).await.context("the example does not end")??;
    let printed = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{printed}\n{errors}", output.status);
    for row in rows {
        ensure!(printed.contains(row), "{row} is not in\n{printed}");
    }
    Ok(())
}
