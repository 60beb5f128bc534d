//! Starts the worker that the arguments name, pauses it, and holds it until this
//! process is killed.

use std::process::Command;

use anyhow::Context as _;
use idempotency_test_support::worker::{AFTER_CLAIM, Worker};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let mut command = Command::new(arguments.next().context("the program is missing")?);
    command.args(arguments);
    let mut worker = Worker::spawn(command, &[AFTER_CLAIM])?;
    worker.wait_for_point(AFTER_CLAIM).await?;
    worker.stop()?;
    println!("{}", worker.pid());
    std::future::pending().await
}
