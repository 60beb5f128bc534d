//! MiniStack, which answers as Amazon SQS and SNS do.

mod options;

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use rustix::process::Signal;

pub use options::MiniStackOptions;

use super::lifecycle::{Kind, Server};
use super::process::Signals;
use crate::packages;

/// MiniStack, with its SQS and its SNS.
///
/// A server that is [stopped](Server::stop) keeps its queues for its [restart](Server::restart). One
/// that is killed loses them, which Amazon's do not.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{MiniStackOptions, MiniStackServer};
///
/// let mut server = MiniStackServer::start(MiniStackOptions::new()).await?;
/// let url = server.url(); // the client's endpoint
/// server.stop().await?;
/// server.restart().await?;
/// # Ok(())
/// # }
/// ```
pub type MiniStackServer = Server<MiniStack>;

/// The kind of [`MiniStackServer`].
#[derive(Debug)]
pub struct MiniStack(());

impl Kind for MiniStack {
    type Options = MiniStackOptions;

    const NAME: &'static str = "ministack";
    const URL_VARIABLE: Option<&'static str> = None;
    const PRIVATE: &'static str = "MiniStackOptions::new";
    const PORT: u16 = 4566;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(_: &MiniStackOptions) -> bool {
        false
    }

    fn prepare(_: MiniStackOptions, _: &Path) -> anyhow::Result<Self> {
        Ok(Self(()))
    }

    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command> {
        let python = packages::ministack()?.join("bin/python");
        ensure!(
            python.is_file(),
            "MiniStack is missing in {}: `cargo xtask test servers` installs it, with python3 and \
             its module `venv`",
            python.display()
        );
        let mut command = Command::new(python);
        command
            // Neither the packages nor the settings of the user.
            .args(["-I", "-m", "ministack"])
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("SERVICES", "sqs,sns")
            .env("PERSIST_STATE", "1")
            .env("STATE_DIR", directory.join("state"))
            .env("HOME", directory)
            // It writes its process id there, and leaves it.
            .env("TMPDIR", directory);
        Ok(command)
    }

    async fn is_ready(&self, port: u16, _: u32, directory: &Path) -> bool {
        let log = std::fs::read_to_string(directory.join("output.log")).unwrap_or_default();
        // The log of the last start: the file is continued after a restart.
        let last = log.rsplit("Local AWS Service Emulator").next().unwrap_or_default();
        last.contains(&format!("Running on http://127.0.0.1:{port}"))
            && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    }

    fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }
}
