//! One server: its process, and the processes that it starts.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::family::signal_children;
use crate::deadline::eventually;
use crate::guard::Guard;
use crate::stop::{state_of, stop_child, wait_until_stopped};

/// The number of lines of output that are quoted for a server that failed.
const QUOTED_LINES: usize = 20;

/// The time that a dropped server may take to end by itself before it is killed.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// The interval at which a process is polled.
const PAUSE: Duration = Duration::from_millis(2);

/// The signals that end a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// The signal for an orderly end, without waiting for clients.
    pub stop: Signal,
    /// The signal for an immediate end when the data is no longer needed. SIGKILL if that leaves
    /// nothing behind.
    pub discard: Signal,
}

/// A server's process. It ends with this value, even if the test process is killed before that.
#[derive(Debug)]
pub struct ServerProcess {
    name: String,
    signals: Signals,
    child: Child,
    output: PathBuf,
    // After the child: the guard stands down once the process is reaped.
    _guard: Guard,
}

impl ServerProcess {
    /// Starts `command` as the server `name`. Its output goes to a file in `directory`, which is
    /// removed together with the process if the test process is killed.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(
        name: &str,
        mut command: Command,
        directory: &Path,
        signals: Signals,
    ) -> anyhow::Result<Self> {
        let output = directory.join("output.log");
        let file = File::options().create(true).append(true).open(&output)?;
        command.current_dir(directory).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut guard = Guard::start(Some(directory), signals.discard)
            .context("could not start the guard of a server")?;
        let mut child = command.spawn().with_context(|| format!("could not start {name}"))?;
        if let Err(error) = guard.watch(child.id()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error).context("the guard of a server has ended");
        }
        Ok(Self { name: String::from(name), signals, child, output, _guard: guard })
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how it ended, if it has ended.
    ///
    /// # Errors
    /// If the system cannot report it.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Returns the last lines that it printed.
    pub fn last_output(&self) -> String {
        let output = std::fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&output);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
    }

    /// Pauses it with all processes that it has started (SIGSTOP), and waits until they stand
    /// still. Its connections stay open, and nothing answers.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        // The server itself first: it then starts no more children.
        stop_child(self.pid()).with_context(|| format!("could not stop {}", self.name))?;
        signal_children(self.pid(), Signal::STOP).into_iter().try_for_each(wait_until_stopped)
    }

    /// Resumes it (SIGCONT).
    ///
    /// # Errors
    /// If the process has ended.
    pub fn resume(&self) -> anyhow::Result<()> {
        signal_children(self.pid(), Signal::CONT);
        self.signal(Signal::CONT)
    }

    /// Requests it to end, and waits until it has.
    ///
    /// # Errors
    /// If it does not end; it is then killed when this value is dropped.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.signal(self.signals.stop)?;
        // A paused process sees the first signal only after this one.
        self.resume()?;
        let what = format!("{} to end", self.name);
        eventually(what, || !matches!(self.child.try_wait(), Ok(None))).await
    }

    /// Kills it with all processes that it has started (SIGKILL), and waits until they are gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.kill_all()
    }

    fn kill_all(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        if let Err(error) = stop_child(self.pid()) {
            // It may have just ended by itself.
            return if self.child.try_wait()?.is_some() { Ok(()) } else { Err(error) };
        }
        let children = signal_children(self.pid(), Signal::KILL);
        self.child.kill()?;
        self.child.wait()?;
        for child in children {
            while is_running(child)? {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn discard(&mut self) -> anyhow::Result<()> {
        if self.signals.discard != Signal::KILL && self.child.try_wait()?.is_none() {
            self.signal(self.signals.discard)?;
            self.resume()?;
            let start = Instant::now();
            while self.child.try_wait()?.is_none() && start.elapsed() < LAST_MOMENTS {
                std::thread::sleep(PAUSE);
            }
        }
        self.kill_all()
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(pid_of(self.pid())?, signal)
            .with_context(|| format!("could not send {signal:?} to {} ({})", self.name, self.pid()))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // A process that was reaped before is left alone: its id may belong to another one by now.
        if self.discard().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns true if a process with this id exists and has not ended. A zombie counts as ended.
///
/// # Errors
/// If the id cannot be that of a process.
pub fn is_running(pid: u32) -> anyhow::Result<bool> {
    if test_kill_process(pid_of(pid)?).is_err() {
        return Ok(false);
    }
    Ok(!matches!(state_of(pid), Some('Z' | 'X')))
}

pub(crate) fn pid_of(id: u32) -> anyhow::Result<Pid> {
    match i32::try_from(id).ok().and_then(Pid::from_raw) {
        Some(pid) => Ok(pid),
        None => bail!("{id} is not the id of a process"),
    }
}
