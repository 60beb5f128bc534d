//! A RabbitMQ broker: a private one, or the one that the environment names.

mod options;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;
use rustix::process::Signal;

pub use options::RabbitMqOptions;

use super::binary;
use super::lifecycle::{Kind, Server};
use super::process::Signals;
use super::system_user::SystemUser;
use crate::port;

/// A RabbitMQ broker, 3.10 or newer, on Linux.
///
/// If the environment variable `IDEMPOTENCY_RABBITMQ_URL` names a broker and the options request
/// nothing special, that one is used instead. Tests declare queues of their own on it, which stay
/// there.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{RabbitMqOptions, RabbitMqServer};
///
/// let mut broker = RabbitMqServer::start(RabbitMqOptions::new().private()).await?;
/// let url = broker.url(); // for the client
/// broker.kill()?;
/// broker.restart().await?;
/// # Ok(())
/// # }
/// ```
pub type RabbitMqServer = Server<RabbitMq>;

/// The kind of [`RabbitMqServer`].
#[derive(Debug)]
pub struct RabbitMq {
    options: RabbitMqOptions,
    user: SystemUser,
    /// The port of its name server, and the one for other nodes and for its commands.
    names: u16,
    nodes: u16,
}

/// The name server lives in a process of its own, which ends with the broker: the kernel kills it
/// then. Without one, the broker would start one that stays.
const START: &str = r#"
setpriv --pdeathsig KILL epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" &
until epmd -names >/dev/null 2>&1; do sleep 0.02; done
exec "$0"
"#;

impl Kind for RabbitMq {
    type Options = RabbitMqOptions;

    const NAME: &'static str = "rabbitmq-server";
    const URL_VARIABLE: Option<&'static str> = Some("IDEMPOTENCY_RABBITMQ_URL");
    const PRIVATE: &'static str = "RabbitMqOptions::private";
    const PORT: u16 = 5672;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(options: &RabbitMqOptions) -> bool {
        options.any_server_will_do()
    }

    fn prepare(options: RabbitMqOptions, directory: &Path) -> anyhow::Result<Self> {
        let user = SystemUser::without_rights(&["rabbitmq", "nobody"])?;
        user.owns(directory)?;
        std::fs::write(directory.join("plugins"), "[].")?;
        Ok(Self { options, user, names: port::free()?, nodes: port::free()? })
    }

    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command> {
        std::fs::write(directory.join("rabbitmq.conf"), self.options.configuration(port))?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", START]).arg(binary::rabbitmq("rabbitmq-server")?);
        self.surroundings(&mut command, directory);
        Ok(command)
    }

    async fn is_ready(&self, port: u16, pid: u32, directory: &Path) -> bool {
        let file = std::fs::read_to_string(directory.join("broker.pid")).unwrap_or_default();
        let log = std::fs::read_to_string(directory.join("broker.log")).unwrap_or_default();
        // The log of the last start: the file is continued after a restart.
        let last = log.rsplit("Starting RabbitMQ").next().unwrap_or_default();
        file.trim() == pid.to_string()
            && last.contains("Server startup complete")
            && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    }

    fn url(&self, port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
    }
}

impl RabbitMq {
    /// All that it would share with another broker of this machine, by its defaults.
    fn surroundings(&self, command: &mut Command, directory: &Path) {
        let file = |name: &str| directory.join(name);
        let own = |name: &str| format!("RABBITMQ_{name}");
        command
            .env("HOME", directory)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.names.to_string())
            .env(own("NODENAME"), format!("test{}@localhost", self.nodes))
            .env(own("DIST_PORT"), self.nodes.to_string())
            .env(own("MNESIA_BASE"), file("data"))
            .env(own("LOG_BASE"), directory)
            .env(own("LOGS"), file("broker.log"))
            .env(own("PID_FILE"), file("broker.pid"))
            .env(own("CONFIG_FILE"), file("rabbitmq.conf"))
            .env(own("ENABLED_PLUGINS_FILE"), file("plugins"))
            .env(own("CONF_ENV_FILE"), file("none"))
            // Two cores are shared with the clients: schedulers that spin would take them.
            .env(
                own("SERVER_ADDITIONAL_ERL_ARGS"),
                "+sbwt none +sbwtdcpu none +sbwtdio none +S 2:2",
            )
            // The broker's own process, without a shell around it.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        self.user.runs(command);
    }
}

impl RabbitMqServer {
    /// Runs `rabbitmqctl` with these arguments, and returns what it prints. Takes seconds: it is a
    /// virtual machine of its own.
    ///
    /// # Errors
    /// If the broker is not private, or refuses.
    pub async fn control(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let broker = self.private("cannot be controlled")?;
        let mut command = Command::new(binary::rabbitmq("rabbitmqctl")?);
        command.arg("--quiet").args(arguments).stdin(Stdio::null());
        broker.kind.surroundings(&mut command, self.directory()?);
        let output = tokio::process::Command::from(command).output().await?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "rabbitmqctl failed: {printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(printed)
    }
}
