//! `ChromeDriver`, which starts Chromium and steers it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use super::binary;
use super::process::{ServerProcess, Signals};
use crate::deadline::eventually;

/// What it prints before its port.
const STARTED: &str = "started successfully on port ";

/// A `ChromeDriver` for one test, on a port that it has chosen, with a directory for the browsers that it starts.
///
/// The browsers end with it, also when it is killed, and it ends with this value or with the test process.
#[derive(Debug)]
pub struct ChromeDriver {
    url: String,
    // Ends before its directory is removed.
    _process: ServerProcess,
    directory: TempDir,
}

impl ChromeDriver {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// When its program is missing, with the way to get it, or when it does not start, with what it printed.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("chromedriver-").tempdir()?;
        let mut command = Command::new(binary::find("chromedriver", "CHROMEDRIVER")?);
        // What the browser leaves in a home directory is removed too.
        command.arg("--port=0").env("HOME", directory.path());
        let signals = Signals { stop: Signal::TERM, discard: Signal::KILL };
        let mut process = ServerProcess::spawn("chromedriver", command, directory.path(), signals)?;
        let mut port = None;
        eventually("chromedriver to listen", || {
            port = port_in(&process.last_output());
            port.is_some() || !matches!(process.ended(), Ok(None))
        })
        .await?;
        let Some(port) = port else { bail!("chromedriver has ended:\n{}", process.last_output()) };
        Ok(Self { url: format!("http://127.0.0.1:{port}"), _process: process, directory })
    }

    /// Where it takes commands.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The arguments with which a browser runs without a screen, also as root in a container, and keeps its files in the
    /// directory that is removed.
    ///
    /// # Errors
    /// When that directory has no name in UTF-8.
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
        let profile = profile(self.directory.path()).context("the temporary directory is not named in UTF-8")?;
        Ok(ARGUMENTS.into_iter().map(String::from).chain([format!("--user-data-dir={profile}")]).collect())
    }
}

fn profile(directory: &Path) -> Option<String> {
    directory.join("profile").into_os_string().into_string().ok()
}

fn port_in(output: &str) -> Option<u16> {
    let (_, rest) = output.split_once(STARTED)?;
    // Whole, once the end of the sentence is there.
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
