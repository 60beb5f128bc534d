//! `ChromeDriver`, which starts and controls Chromium.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Signal, kill_process_group};
use tempfile::TempDir;

use super::binary;
use super::process::pid_of;
use crate::deadline::eventually;
use crate::guard::Guard;

/// The text that it prints before its port.
const STARTED: &str = "started successfully on port ";

/// The number of attempts to remove its directory, into which killed browsers still write.
const REMOVALS: u32 = 500;

/// The pause between these attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// A `ChromeDriver` for one test, on a port that it has chosen, with a directory for the browsers
/// that it starts.
///
/// It ends with this value or with the test process, and so do the browsers. They would outlive a
/// driver that is killed, so all are in one process group.
#[derive(Debug)]
pub struct ChromeDriver {
    url: String,
    child: Child,
    directory: TempDir,
    // After the child: the guard stands down once the process is reaped.
    guard: Guard,
}

impl ChromeDriver {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// If its program is missing, with the way to get it, or if it does not start, with its output.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("chromedriver-").tempdir()?;
        let output = directory.path().join("output.log");
        let file = File::create(&output)?;
        let mut command = Command::new(binary::find("chromedriver", "CHROMEDRIVER")?);
        // Files that the browser leaves in a home directory are removed too.
        command.arg("--port=0").env("HOME", directory.path()).current_dir(directory.path());
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let guard = Guard::start(Some(directory.path()), Signal::KILL)
            .context("could not start the guard")?;
        let child = command.spawn().context("could not start chromedriver")?;
        let mut driver = Self { url: String::new(), child, directory, guard };
        driver.guard.watch_group(driver.child.id()).context("the guard has ended")?;

        let printed = || std::fs::read_to_string(&output).unwrap_or_default();
        let mut port = None;
        eventually("chromedriver to listen", || {
            port = port_in(&printed());
            port.is_some() || !matches!(driver.child.try_wait(), Ok(None))
        })
        .await?;
        let Some(port) = port else { bail!("chromedriver has ended:\n{}", printed()) };
        driver.url = format!("http://127.0.0.1:{port}");
        Ok(driver)
    }

    /// Returns the URL at which it accepts commands.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the arguments with which a browser runs without a screen, even as root in a
    /// container, and keeps its files in the directory that is removed.
    ///
    /// # Errors
    /// If the name of that directory is not UTF-8.
    pub fn browser_arguments(&self) -> anyhow::Result<Vec<String>> {
        const ARGUMENTS: [&str; 9] = [
            "--headless",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ];
        let profile = profile(self.directory.path())
            .context("the temporary directory is not named in UTF-8")?;
        Ok(ARGUMENTS
            .into_iter()
            .map(String::from)
            .chain([format!("--user-data-dir={profile}")])
            .collect())
    }
}

impl Drop for ChromeDriver {
    fn drop(&mut self) {
        // Before it is reaped: until then the group's id cannot belong to another group.
        if let Ok(group) = pid_of(self.child.id()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        for _ in 0..REMOVALS {
            if std::fs::remove_dir_all(self.directory.path()).is_ok() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn profile(directory: &Path) -> Option<String> {
    directory.join("profile").into_os_string().into_string().ok()
}

fn port_in(output: &str) -> Option<u16> {
    let (_, rest) = output.split_once(STARTED)?;
    // Complete once the end of the sentence is there.
    rest.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::port_in;

    #[test]
    fn the_port_is_read_once_it_is_printed_whole() {
        let printed = "Only local connections are allowed.\nChromeDriver was started successfully on port 41233.\n";
        assert_eq!(port_in(printed), Some(41233));
        assert_eq!(port_in("ChromeDriver was started successfully on port 412"), None);
        assert_eq!(port_in("Starting ChromeDriver 156.0.8078.79 on port 0\n"), None);
    }
}
