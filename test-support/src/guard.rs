//! A guard that ends a process when the test process is gone, for whatever reason.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

/// Reads the process id, then waits: for a line, which means that all is well, or for the end of
/// the pipe, which means that the test process has died. It ignores signals of the terminal: they
/// would end it when it is needed.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r pid || exit 0
read -r _ && exit 0
kill -"$1" "$pid"
if [ "$1" != 9 ]; then
    kill -CONT "$pid"
    left=100
    while [ "$left" -gt 0 ] && kill -0 "$pid"; do
        sleep 0.1
        left=$((left - 1))
    done
    kill -9 "$pid"
fi
if [ -n "$2" ]; then
    # Again, if somebody has written to it in the last moment.
    rm -rf -- "$2" || { sleep 1; rm -rf -- "$2"; }
fi
"#;

/// A shell on the other end of a pipe. The kernel closes the pipe when this process ends, even by
/// SIGKILL, where no destructor runs; the shell then ends the process that it watches.
#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// Starts a guard, before the process that it is to watch, so that only the moment between the
    /// start of the process and [`watch`](Self::watch) is unguarded. The process is sent `signal`,
    /// and killed if it has not ended after ten seconds. `directory` is removed as well.
    pub(crate) fn start(directory: Option<&Path>, signal: Signal) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "guard"]).arg(signal.as_raw().to_string());
        if let Some(directory) = directory {
            command.arg(directory);
        }
        // In a group of its own: signals to the group of the test process do not reach it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { shell: command.spawn()? })
    }

    pub(crate) fn watch(&mut self, pid: u32) -> io::Result<()> {
        self.tell(&pid.to_string())
    }

    /// Watches the process like [`watch`](Self::watch), and all others of the group that it leads.
    /// They are killed in any case.
    pub(crate) fn watch_group(&mut self, leader: u32) -> io::Result<()> {
        self.tell(&format!("-{leader}"))
    }

    fn tell(&mut self, line: &str) -> io::Result<()> {
        // One write: half a line followed by the end of the pipe would be read as a complete one.
        let pipe = self.shell.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{line}\n").as_bytes())
    }
}

impl Drop for Guard {
    /// Stands down. Only after the watched process is reaped: until then its id is not reused.
    fn drop(&mut self) {
        if self.tell("done").is_ok() {
            drop(self.shell.stdin.take());
            let _ = self.shell.wait();
        }
    }
}
