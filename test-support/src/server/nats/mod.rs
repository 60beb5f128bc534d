//! A NATS server with JetStream: a private one, or the one that the environment names.

mod options;

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

pub use options::NatsOptions;

use super::binary;
use super::lifecycle::{Kind, Server};
use super::process::Signals;

/// The variable that names the program to start.
const PROGRAM_VARIABLE: &str = "NATS_SERVER";

/// A NATS server with JetStream, 2.9 or newer.
///
/// If the environment variable `IDEMPOTENCY_NATS_URL` names a server and the options request
/// nothing special, that one is used instead. Tests create streams of their own on it, which stay
/// there.
///
/// A restarted server still has its streams: they are in its directory.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{NatsOptions, NatsServer};
///
/// let mut server = NatsServer::start(NatsOptions::new().private()).await?;
/// let url = server.url(); // for the client
/// server.kill()?;
/// server.restart().await?;
/// # Ok(())
/// # }
/// ```
pub type NatsServer = Server<Nats>;

/// The kind of [`NatsServer`].
#[derive(Debug)]
pub struct Nats(());

impl Kind for Nats {
    type Options = NatsOptions;

    const NAME: &'static str = "nats-server";
    const URL_VARIABLE: Option<&'static str> = Some("IDEMPOTENCY_NATS_URL");
    const PRIVATE: &'static str = "NatsOptions::private";
    const PORT: u16 = 4222;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(options: &NatsOptions) -> bool {
        options.any_server_will_do()
    }

    fn prepare(_: NatsOptions, _: &Path) -> anyhow::Result<Self> {
        Ok(Self(()))
    }

    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command> {
        let file = |name: &str| directory.join(name);
        let mut command = Command::new(binary::find("nats-server", PROGRAM_VARIABLE)?);
        command
            .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream"])
            .arg("--store_dir")
            .arg(file("streams"))
            .arg("--log")
            .arg(file("server.log"))
            .arg("--pid")
            .arg(file("server.pid"));
        Ok(command)
    }

    async fn is_ready(&self, port: u16, pid: u32, directory: &Path) -> bool {
        let file = std::fs::read_to_string(directory.join("server.pid")).unwrap_or_default();
        let log = std::fs::read_to_string(directory.join("server.log")).unwrap_or_default();
        // The log of the last start: the file is continued after a restart.
        let last = log.rsplit("Starting nats-server").next().unwrap_or_default();
        file.trim() == pid.to_string()
            && last.contains("Server is ready")
            && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    }

    fn url(&self, port: u16) -> String {
        format!("nats://127.0.0.1:{port}")
    }
}
