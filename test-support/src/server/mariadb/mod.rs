//! A MariaDB server: a private one, or the one that the environment names.

mod client;
mod options;

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use rustix::process::Signal;

pub use options::MariaDbOptions;

use super::binary;
use super::lifecycle::{Kind, Server};
use super::process::Signals;
use super::sql::{Rows, fresh_name};
use super::url::ServerUrl;

/// A MariaDB server, 10.5 or newer.
///
/// If the environment variable `IDEMPOTENCY_MARIADB_URL` names a server and the options request
/// nothing special, that one is used instead. Tests create databases of their own on it with
/// [`database`](Server::database), which stay there.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};
///
/// let server = MariaDbServer::start(MariaDbOptions::new()).await?;
/// let url = server.database("orders").await?;
/// server.sql_at(&url, "CREATE TABLE orders (id bigint); INSERT INTO orders VALUES (7)").await?;
/// assert_eq!(server.sql_at(&url, "SELECT id FROM orders").await?, [[Some("7".to_owned())]]);
/// # Ok(())
/// # }
/// ```
pub type MariaDbServer = Server<MariaDb>;

/// The kind of [`MariaDbServer`].
#[derive(Debug)]
pub struct MariaDb {
    options: MariaDbOptions,
}

/// The initial database of a private server.
const DATABASE: &str = "idempotency";

/// The file in which a server writes its process id when it is about to accept connections.
const STATUS: &str = "server.pid";

impl Kind for MariaDb {
    type Options = MariaDbOptions;

    const NAME: &'static str = "mariadbd";
    const URL_VARIABLE: Option<&'static str> = Some("IDEMPOTENCY_MARIADB_URL");
    const PRIVATE: &'static str = "MariaDbOptions::private";
    const PORT: u16 = 3306;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(options: &MariaDbOptions) -> bool {
        options.any_server_will_do()
    }

    fn prepare(options: MariaDbOptions, directory: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(binary::mariadb("mariadb-install-db")?);
        command.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]);
        command.args(binary::mariadb_base());
        command
            .arg(format!("--datadir={}", directory.join("data").display()))
            .current_dir(directory);
        command.args(as_administrator()).env("TMPDIR", directory);
        let output = command.output()?;
        let printed =
            || String::from_utf8_lossy(&[&*output.stdout, &output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "mariadb-install-db failed: {}", printed());
        Ok(Self { options })
    }

    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(binary::mariadb("mariadbd")?);
        let file = |name: &str| directory.join(name).display().to_string();
        command.args([
            "--no-defaults",
            &format!("--datadir={}", file("data")),
            &format!("--port={port}"),
        ]);
        command.args(binary::mariadb_base());
        command
            .args([format!("--socket={}", file("s.sock")), format!("--pid-file={}", file(STATUS))]);
        command.args(self.options.settings().map(|(name, value)| format!("--{name}={value}")));
        // A server that starts removes the temporary tables that it finds there, even those of
        // others.
        command.args(as_administrator()).env("TMPDIR", directory);
        Ok(command)
    }

    async fn is_ready(&self, port: u16, pid: u32, directory: &Path) -> bool {
        let file = std::fs::read_to_string(directory.join(STATUS)).unwrap_or_default();
        file.trim() == pid.to_string() && run(&without_database(port), "SELECT 1").await.is_ok()
    }

    async fn set_up(&self, port: u16) -> anyhow::Result<()> {
        run(&without_database(port), &format!("CREATE DATABASE {DATABASE}")).await?;
        Ok(())
    }

    fn url(&self, port: u16) -> String {
        format!("{}/{DATABASE}", without_database(port))
    }
}

fn without_database(port: u16) -> String {
    format!("mysql://root@127.0.0.1:{port}")
}

/// Returns the option without which the server refuses to run as root.
fn as_administrator() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some("--user=root")
}

async fn run(url: &str, statements: &str) -> anyhow::Result<Rows> {
    client::run(&ServerUrl::parse(url, MariaDb::PORT)?, statements).await
}

impl MariaDbServer {
    /// Runs statements, each in a transaction of its own unless they begin one, and returns the
    /// rows of all of them as text. Uses a connection of the `mariadb` client, not the code under
    /// test. The text `NULL` reads as null.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, with its message.
    pub async fn sql(&self, statements: &str) -> anyhow::Result<Rows> {
        self.sql_at(&self.url(), statements).await
    }

    /// Runs statements like [`sql`](Self::sql), in another database or as another user.
    pub async fn sql_at(&self, url: &str, statements: &str) -> anyhow::Result<Rows> {
        run(url, statements).await
    }

    /// Creates an empty database whose name begins with `name` and is not used by any other test,
    /// and returns its URL.
    ///
    /// # Errors
    /// As [`sql`](Self::sql).
    pub async fn database(&self, name: &str) -> anyhow::Result<String> {
        let name = fresh_name(name);
        self.sql(&format!("CREATE DATABASE {name}")).await?;
        Ok(ServerUrl::parse(&self.url(), MariaDb::PORT)?.with_database(&name))
    }
}
