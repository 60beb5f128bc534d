//! Tansu, a broker that speaks Kafka's protocol: a private one, or the one that the environment names.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use super::binary;
use super::lifecycle::{Kind, Server};
use super::process::Signals;

/// A broker of Kafka's protocol: tansu 0.6, with its storage in memory.
///
/// If the environment variable `IDEMPOTENCY_KAFKA_URL` names a broker and the options request
/// nothing special, that one is used instead. Tests create topics of their own on it, which stay
/// there.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{TansuOptions, TansuServer};
///
/// let server = TansuServer::start(TansuOptions::new().private()).await?;
/// let url = server.url(); // the host and the port, as `bootstrap.servers`
/// # Ok(())
/// # }
/// ```
pub type TansuServer = Server<Tansu>;

/// The kind of [`TansuServer`].
#[derive(Debug)]
pub struct Tansu(());

/// The options of a [`TansuServer`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TansuOptions {
    is_private: bool,
}

impl TansuOptions {
    /// Creates options without any setting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a broker of its own, which a test may stop, pause and kill.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.is_private = true;
        self
    }
}

impl Kind for Tansu {
    type Options = TansuOptions;

    const NAME: &'static str = "tansu";
    const URL_VARIABLE: Option<&'static str> = Some("IDEMPOTENCY_KAFKA_URL");
    const PRIVATE: &'static str = "TansuOptions::private";
    const PORT: u16 = 9092;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(options: &TansuOptions) -> bool {
        !options.is_private
    }

    fn prepare(_: TansuOptions, _: &Path) -> anyhow::Result<Self> {
        Ok(Self(()))
    }

    fn command(&mut self, port: u16, _: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(binary::find("tansu", "TANSU")?);
        let url = format!("tcp://127.0.0.1:{port}");
        command.args(["broker", "--listener-url", &url, "--advertised-listener-url", &url]);
        command.args(["--storage-engine", "memory://tansu/"]);
        Ok(command)
    }

    async fn is_ready(&self, port: u16, _: u32, _: &Path) -> bool {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    }

    fn url(&self, port: u16) -> String {
        format!("127.0.0.1:{port}")
    }
}
