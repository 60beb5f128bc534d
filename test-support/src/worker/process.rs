//! The test's side of a worker.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use rustix::process::{Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{AT, GO, POINTS_VARIABLE};
use crate::deadline::within;
use crate::guard::Guard;
use crate::server::pid_of;
use crate::stop::stop_child;

/// A worker process. It is killed when this value is dropped, and when the test process is gone.
///
/// All waits end at [`DEADLINE`](crate::deadline::DEADLINE) with an error.
///
/// ```no_run
/// # async fn test(mut command: std::process::Command) -> anyhow::Result<()> {
/// use idempotency_test_support::worker::{AFTER_CLAIM, Worker};
///
/// let mut worker = Worker::spawn(command, &[AFTER_CLAIM])?;
/// worker.wait_for_point(AFTER_CLAIM).await?;
/// worker.kill().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Worker {
    child: Child,
    pid: u32,
    input: ChildStdin,
    points: UnboundedReceiver<String>,
    output: UnboundedReceiver<String>,
    current: Option<String>,
    _guard: Guard,
}

impl Worker {
    /// Starts `command`, which waits at `points` each time it reaches them. Its standard error is
    /// that of the test.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(command: impl Into<Command>, points: &[&str]) -> anyhow::Result<Self> {
        let mut command = command.into();
        command
            .env(POINTS_VARIABLE, points.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut guard =
            Guard::start(None, Signal::KILL).context("could not start the guard of a worker")?;
        let mut child =
            command.spawn().with_context(|| format!("could not start the worker {command:?}"))?;
        let pid = child.id().context("the worker has no process id")?;
        guard.watch(pid).context("the guard of a worker has ended")?;
        let input = child.stdin.take().context("the worker has no standard input")?;
        let printed = child.stdout.take().context("the worker has no standard output")?;
        let (point, points) = unbounded_channel();
        let (line, output) = unbounded_channel();
        tokio::spawn(sort(printed, point, line));
        Ok(Self { child, pid, input, points, output, current: None, _guard: guard })
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the next point that it reaches. Another task of it may still wait at an earlier one.
    ///
    /// # Errors
    /// If it ends, or reaches none.
    pub async fn next_point(&mut self) -> anyhow::Result<String> {
        let point = within("the worker to reach a point", self.points.recv()).await?;
        let point = point.context("the worker has ended, and reached no further point")?;
        self.current = Some(point.clone());
        Ok(point)
    }

    /// Lets it pass all other points until it waits at this one. A point at which it already waits
    /// does not count: let it [`go`](Self::go) from there first.
    ///
    /// # Errors
    /// If it ends, or does not get there.
    pub async fn wait_for_point(&mut self, point: &str) -> anyhow::Result<()> {
        while self.next_point().await.with_context(|| format!("while waiting for {point}"))?
            != point
        {
            self.go().await?;
        }
        Ok(())
    }

    /// Lets it continue from the point that was last waited for.
    ///
    /// # Errors
    /// If it waits at none, or is gone.
    pub async fn go(&mut self) -> anyhow::Result<()> {
        let point = self.current.take().context("the worker waits at no point")?;
        self.go_from(&point).await
    }

    /// Lets it continue from the point at which it waits, also where it comes to that once more.
    ///
    /// # Errors
    /// If it waits at no point, or is gone.
    pub async fn go_past(&mut self) -> anyhow::Result<()> {
        let point = self.current.take().context("the worker waits at no point")?;
        self.go_from(&point).await?;
        self.go_from(&point).await
    }

    /// Lets one of its tasks continue from this point, whichever was reached last.
    ///
    /// # Errors
    /// If it is gone.
    pub async fn go_from(&mut self, point: &str) -> anyhow::Result<()> {
        self.input
            .write_all(format!("{GO}{point}\n").as_bytes())
            .await
            .context("the worker is gone")
    }

    /// Returns the next line that it prints, or `None` if it has ended.
    ///
    /// # Errors
    /// If there is none in time.
    pub async fn line(&mut self) -> anyhow::Result<Option<String>> {
        within("a line of the worker", self.output.recv()).await
    }

    /// Returns all lines that it prints from now on until it ends.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn lines(&mut self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await? {
            lines.push(line);
        }
        Ok(lines)
    }

    /// Pauses it (SIGSTOP), and waits until it stands still. Its clocks continue.
    ///
    /// # Errors
    /// If it has ended.
    pub fn stop(&self) -> anyhow::Result<()> {
        stop_child(self.id()?).context("could not stop the worker")
    }

    /// Resumes it after [`stop`](Self::stop) (SIGCONT).
    ///
    /// # Errors
    /// If it was reaped.
    pub fn cont(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it (SIGKILL), and waits until it is gone. Nothing in it runs any more, not even a
    /// destructor or a thread.
    ///
    /// # Errors
    /// If it had already ended by itself.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the worker had ended before it could be killed ({status})");
        }
        self.child.kill().await.context("could not kill the worker")
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(within("the worker to end", self.child.wait()).await??)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(pid_of(self.id()?)?, signal)
            .with_context(|| format!("could not send {signal:?} to the worker"))
    }

    /// Returns its process id, which is not reused as long as it is not reaped.
    fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("the worker has ended")
    }
}

/// Sorts the printed lines into points and output. Always reads, so that a worker never waits for a
/// test that does not listen.
async fn sort(
    printed: ChildStdout,
    points: UnboundedSender<String>,
    output: UnboundedSender<String>,
) {
    let mut lines = BufReader::new(printed).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // The receiver is gone if the test has dropped the worker.
        let _ = match line.strip_prefix(AT) {
            Some(point) => points.send(String::from(point)),
            None => output.send(line),
        };
    }
}

/// Returns the program of an example of the workspace, built in the same profile as the calling
/// test.
///
/// # Errors
/// If it is not built, with the command that builds it.
pub fn example(name: &str) -> anyhow::Result<PathBuf> {
    // Tests are in `target/<profile>/deps`, examples in `target/<profile>/examples`.
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("the test is in no target directory")?;
    let program = profile.join("examples").join(name);
    if !program.is_file() {
        bail!(
            "the example {name} is not built: `cargo build --workspace --all-features --examples` builds all"
        );
    }
    Ok(program)
}
