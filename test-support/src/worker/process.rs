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
/// All waiting ends at [`DEADLINE`](crate::deadline::DEADLINE) with an error.
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
    /// Starts `command`; it shall wait at `points`, each time that it gets there. What it prints as
    /// errors goes where the errors of the test go.
    ///
    /// # Errors
    /// When the program cannot be started.
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The next point that it reaches. It may still wait at an earlier one, with another task.
    ///
    /// # Errors
    /// When it ends, or gets to none.
    pub async fn next_point(&mut self) -> anyhow::Result<String> {
        let point = within("the worker to reach a point", self.points.recv()).await?;
        let point = point.context("the worker has ended, and reached no further point")?;
        self.current = Some(point.clone());
        Ok(point)
    }

    /// Lets it pass all other points until it waits at this one. One at which it waits already is
    /// left alone: let it [`go`](Self::go) from there first.
    ///
    /// # Errors
    /// When it ends, or does not get there.
    pub async fn wait_for_point(&mut self, point: &str) -> anyhow::Result<()> {
        while self.next_point().await.with_context(|| format!("while waiting for {point}"))?
            != point
        {
            self.go().await?;
        }
        Ok(())
    }

    /// Lets it go on from the point that was last waited for.
    ///
    /// # Errors
    /// When it waits at none, or is gone.
    pub async fn go(&mut self) -> anyhow::Result<()> {
        let point = self.current.take().context("the worker waits at no point")?;
        self.go_from(&point).await
    }

    /// Lets one task of it go on from this point, whichever was reached last.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn go_from(&mut self, point: &str) -> anyhow::Result<()> {
        self.input
            .write_all(format!("{GO}{point}\n").as_bytes())
            .await
            .context("the worker is gone")
    }

    /// The next line that it prints, or `None` when it has ended.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn line(&mut self) -> anyhow::Result<Option<String>> {
        within("a line of the worker", self.output.recv()).await
    }

    /// All lines that it prints from now on until it ends.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn lines(&mut self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await? {
            lines.push(line);
        }
        Ok(lines)
    }

    /// Stops it where it stands (SIGSTOP), and waits until it stands still. Its clocks go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn stop(&self) -> anyhow::Result<()> {
        stop_child(self.id()?).context("could not stop the worker")
    }

    /// Lets it go on after [`stop`](Self::stop) (SIGCONT).
    ///
    /// # Errors
    /// When it was reaped.
    pub fn cont(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it (SIGKILL) and waits until it is gone. Nothing in it runs any more, no destructor
    /// and no thread.
    ///
    /// # Errors
    /// When it had ended by itself before.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the worker had ended before it could be killed ({status})");
        }
        self.child.kill().await.context("could not kill the worker")
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(within("the worker to end", self.child.wait()).await??)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(pid_of(self.id()?)?, signal)
            .with_context(|| format!("could not send {signal:?} to the worker"))
    }

    /// Its process id, which is its own as long as it is not reaped.
    fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("the worker has ended")
    }
}

/// Points here, output there. Always reads, so that a worker never waits for a test that does not
/// listen.
async fn sort(
    printed: ChildStdout,
    points: UnboundedSender<String>,
    output: UnboundedSender<String>,
) {
    let mut lines = BufReader::new(printed).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // Nobody listens any more when the test has dropped the worker.
        let _ = match line.strip_prefix(AT) {
            Some(point) => points.send(String::from(point)),
            None => output.send(line),
        };
    }
}

/// The program of an example of the workspace, built in the same profile as the calling test.
///
/// # Errors
/// When it is not built, with the command that builds it.
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
