//! Pausing processes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::deadline::DEADLINE;
use crate::server::pid_of;

/// The interval at which a process is polled.
const PAUSE: Duration = Duration::from_millis(1);

/// Stops a child of this process (SIGSTOP) and waits until it stands still.
///
/// The signal alone is not enough: it is only noted when the system call returns, and a process
/// that runs on another core can still answer a request after that.
///
/// # Errors
/// If it has ended, or does not stop in time.
pub(crate) fn stop_child(child: u32) -> anyhow::Result<()> {
    let pid = pid_of(child)?;
    kill_process(pid, Signal::STOP)?;
    // Leaves the status in place, so that a second stop sees it too. Never reaps.
    let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    wait_until_still(child, || {
        let status = waitid(WaitId::Pid(pid), stopped)
            .with_context(|| format!("process {child} cannot be stopped"))?;
        Ok(status.is_some())
    })
}

/// Waits until a stopped process that this one did not start stands still, or has ended.
///
/// # Errors
/// If it does not stop in time.
pub(crate) fn wait_until_stopped(process: u32) -> anyhow::Result<()> {
    wait_until_still(process, || {
        Ok(state_of(process).is_none_or(|state| matches!(state, 'T' | 'Z' | 'X')))
    })
}

/// Returns the letter of its state, or `None` if it is gone or there is no `/proc`.
pub(crate) fn state_of(process: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The state follows the name, which is in parentheses and may contain some.
    stat.rsplit_once(") ")?.1.chars().next()
}

fn wait_until_still(
    process: u32,
    mut stands_still: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !stands_still()? {
        if start.elapsed() >= DEADLINE {
            bail!("process {process} did not stop within {DEADLINE:?}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Signal, kill_process};

    use super::{pid_of, state_of, stop_child, wait_until_stopped};

    /// A process that does nothing but run. It is killed even if a test fails.
    struct Busy(Child);

    impl Busy {
        fn start() -> std::io::Result<Self> {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(Self(command.spawn()?))
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_child_stands_still_when_it_was_stopped() -> anyhow::Result<()> {
        let child = Busy::start()?;
        let pid = child.0.id();
        for _ in 0..100 {
            stop_child(pid)?;
            assert_eq!(state_of(pid), Some('T'));
            // A second stop finds it already stopped.
            stop_child(pid)?;
            kill_process(pid_of(pid)?, Signal::CONT)?;
        }
        drop(child);
        assert!(stop_child(pid).is_err(), "it is gone");
        Ok(())
    }

    #[test]
    fn a_process_of_somebody_else_is_waited_for_until_it_stands_still() -> anyhow::Result<()> {
        let process = Busy::start()?;
        let pid = process.0.id();
        for _ in 0..100 {
            kill_process(pid_of(pid)?, Signal::STOP)?;
            wait_until_stopped(pid)?;
            assert_eq!(state_of(pid), Some('T'));
            kill_process(pid_of(pid)?, Signal::CONT)?;
        }
        drop(process);
        wait_until_stopped(pid)
    }
}
