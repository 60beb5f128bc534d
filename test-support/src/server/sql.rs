//! Code that the SQL servers share.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::deadline::within;

/// Rows with their values as text.
pub type Rows = Vec<Vec<Option<String>>>;

/// Runs the client program `command` on `statements`, and returns what it printed.
pub(super) async fn feed(mut command: Command, statements: &str) -> anyhow::Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut client = command.spawn().context("could not start the client of the database")?;
    let mut input = client.stdin.take().context("the client has no input")?;
    let write = async {
        // A client that has ended reports the reason.
        let _ = input.write_all(statements.as_bytes()).await;
        drop(input);
    };
    let run = async { tokio::join!(write, client.wait_with_output()).1 };
    let output = within("the client of the database", run).await??;
    if !output.status.success() {
        bail!("the database refused: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns a name for a database that no other test has, even on a shared server.
pub(super) fn fresh_name(name: &str) -> String {
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let number = DATABASES.fetch_add(1, Ordering::Relaxed);
    format!("{name}_{}_{number}", std::process::id())
}
