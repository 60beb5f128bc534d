//! The tests that need no faults of the broker, on one that is a process of its own.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency_test_support::server::{TansuOptions, TansuServer};
use tokio::process::Command;
use tokio::time::timeout;

use crate::cluster::URL_VARIABLE;

/// Those of these modules.
const MODULES: [&str; 7] =
    ["example", "fleet", "keys", "kills", "lanes", "rebalance", "transactions"];
/// Longer than they take on a busy machine.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// Runs in the long version alone: the broker takes minutes to build.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_of_its_own_makes_no_difference() -> anyhow::Result<()> {
    let is_given = std::env::var_os(URL_VARIABLE).is_some_and(|url| !url.is_empty());
    if std::env::var_os("IDEMPOTENCY_LONG").is_none() || is_given {
        return Ok(());
    }
    let broker = TansuServer::start(TansuOptions::new().private()).await?;
    let mut command = Command::new(std::env::current_exe()?);
    // One needs sixteen partitions at the same moment, and one an answer at once about the end of a
    // topic. In the third a member is killed, and tansu gives its partitions to none that is left.
    for skipped in ["a_process_that_is_terminated", "a_kill_between", "members_that_join"] {
        command.args(["--skip", skipped]);
    }
    command.args(MODULES);
    command.env(URL_VARIABLE, broker.url()).env_remove("IDEMPOTENCY_LONG");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONGEST, command.output()).await.context("they do not end")??;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}\n{printed}", output.status);
    Ok(())
}
