//! A PostgreSQL server: a private one, or the one that the environment names.

pub(super) mod client;
mod options;

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use rustix::process::Signal;

pub use options::PostgresOptions;

use super::binary;
use super::lifecycle::{Kind, Server};
use super::process::Signals;
use super::sql::{Rows, fresh_name};
use super::system_user::SystemUser;
use super::url::ServerUrl;

/// A PostgreSQL server, 13 or newer.
///
/// If the environment variable `IDEMPOTENCY_POSTGRES_URL` names a server and the options request
/// nothing special, that one is used instead. Tests create databases of their own on it with
/// [`database`](Server::database), which stay there.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{PostgresOptions, PostgresServer};
///
/// let server = PostgresServer::start(PostgresOptions::new()).await?;
/// let url = server.database("orders").await?;
/// server.sql_at(&url, "CREATE TABLE orders (id bigint); INSERT INTO orders VALUES (7)").await?;
/// assert_eq!(server.sql_at(&url, "SELECT id FROM orders").await?, [[Some("7".to_owned())]]);
/// # Ok(())
/// # }
/// ```
pub type PostgresServer = Server<Postgres>;

/// The kind of [`PostgresServer`].
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    user: SystemUser,
}

/// The role that owns the server, and its initial database.
pub(super) const OWNER: &str = "idempotency";

/// The file in which a server writes its process id and its progress.
const STATUS: &str = "data/postmaster.pid";

impl Kind for Postgres {
    type Options = PostgresOptions;

    const NAME: &'static str = "postgres";
    const URL_VARIABLE: Option<&'static str> = Some("IDEMPOTENCY_POSTGRES_URL");
    const PRIVATE: &'static str = "PostgresOptions::private";
    const PORT: u16 = 5432;
    // SIGTERM would wait for the clients to disconnect. SIGKILL would leave shared memory behind.
    const SIGNALS: Signals = Signals { stop: Signal::INT, discard: Signal::QUIT };

    fn any_server_will_do(options: &PostgresOptions) -> bool {
        options.any_server_will_do()
    }

    fn prepare(options: PostgresOptions, directory: &Path) -> anyhow::Result<Self> {
        let user = SystemUser::without_rights(&["postgres", "nobody"])?;
        user.owns(directory)?;
        let mut command = Command::new(binary::postgres("initdb")?);
        command.args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--username",
            OWNER,
        ]);
        command.args(["--pgdata", "data"]).current_dir(directory);
        user.runs(&mut command);
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self { options, user })
    }

    fn command(&mut self, port: u16, _: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(binary::postgres("postgres")?);
        command.args(["-D", "data", "-p", &port.to_string()]);
        for (name, value) in self.options.settings() {
            command.args(["-c", &format!("{name}={value}")]);
        }
        self.user.runs(&mut command);
        Ok(command)
    }

    async fn is_ready(&self, _: u16, pid: u32, directory: &Path) -> bool {
        let file = std::fs::read_to_string(directory.join(STATUS)).unwrap_or_default();
        let lines: Vec<_> = file.lines().map(str::trim).collect();
        lines.first() == Some(&&*pid.to_string()) && lines.last() == Some(&"ready")
    }

    async fn set_up(&self, port: u16) -> anyhow::Result<()> {
        let url = ServerUrl::parse(&self.url(port), Self::PORT)?;
        client::run(&url.with_database("postgres"), &format!("CREATE DATABASE {OWNER}")).await?;
        Ok(())
    }

    fn clean_up_after_kill(&self, directory: &Path) {
        // A segment of a few bytes, by which a server detects whether processes of an earlier one
        // still live: its key and its id are in one line. Without this program, it stays until the
        // machine restarts.
        let file = std::fs::read_to_string(directory.join(STATUS)).unwrap_or_default();
        if let Some(segment) = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", segment]).output();
        }
    }

    fn url(&self, port: u16) -> String {
        format!("postgres://{OWNER}@127.0.0.1:{port}/{OWNER}")
    }
}

impl PostgresServer {
    /// Runs statements, each in a transaction of its own unless they begin one, and returns the
    /// rows of all of them as text. Uses a connection of `psql`, not the code under test.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, with its message.
    pub async fn sql(&self, statements: &str) -> anyhow::Result<Rows> {
        self.sql_at(&self.url(), statements).await
    }

    /// Runs statements like [`sql`](Self::sql), in another database or as another role.
    pub async fn sql_at(&self, url: &str, statements: &str) -> anyhow::Result<Rows> {
        client::run(url, statements).await
    }

    /// Creates an empty database whose name begins with `name` and is not used by any other test,
    /// and returns its URL.
    ///
    /// # Errors
    /// As [`sql`](Self::sql).
    pub async fn database(&self, name: &str) -> anyhow::Result<String> {
        let name = fresh_name(name);
        self.sql(&format!("CREATE DATABASE {name}")).await?;
        Ok(ServerUrl::parse(&self.url(), Postgres::PORT)?.with_database(&name))
    }
}
