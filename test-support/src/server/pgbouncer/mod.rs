//! `PgBouncer`, a pool between clients and a PostgreSQL server.

mod options;

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

pub use options::PgBouncerOptions;

use super::binary;
use super::lifecycle::{Kind, Server};
use super::postgres::{OWNER, client};
use super::process::Signals;
use super::system_user::SystemUser;
use super::url::with_address;

/// `PgBouncer` in transaction mode: each transaction of a client may run on another connection to
/// the server, so that no session state carries over to the next one.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{PgBouncer, PgBouncerOptions, PostgresOptions, PostgresServer};
///
/// let server = PostgresServer::start(PostgresOptions::new()).await?;
/// let pooler = PgBouncer::start(PgBouncerOptions::before(&server)).await?;
/// let url = pooler.through(&server.database("orders").await?); // for the client
/// # Ok(())
/// # }
/// ```
pub type PgBouncer = Server<Pooler>;

/// The kind of [`PgBouncer`].
#[derive(Debug)]
pub struct Pooler {
    options: PgBouncerOptions,
    user: SystemUser,
}

/// The file in which it writes its process id.
const STATUS: &str = "pgbouncer.pid";

impl Kind for Pooler {
    type Options = PgBouncerOptions;

    const NAME: &'static str = "pgbouncer";
    const URL_VARIABLE: Option<&'static str> = None;
    const PRIVATE: &'static str = "PgBouncerOptions::before";
    const PORT: u16 = 6432;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(_: &PgBouncerOptions) -> bool {
        false
    }

    fn prepare(options: PgBouncerOptions, directory: &Path) -> anyhow::Result<Self> {
        let user = SystemUser::without_rights(&["postgres", "nobody"])?;
        user.owns(directory)?;
        Ok(Self { options, user })
    }

    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command> {
        let file = |name: &str| directory.join(name);
        std::fs::write(file("users"), self.options.users(OWNER))?;
        let settings = self.options.configuration(port, &file("users"), &file(STATUS));
        std::fs::write(file("pgbouncer.ini"), settings)?;
        let mut command = Command::new(binary::find("pgbouncer", "PGBOUNCER")?);
        command.arg(file("pgbouncer.ini"));
        self.user.runs(&mut command);
        Ok(command)
    }

    async fn is_ready(&self, port: u16, pid: u32, directory: &Path) -> bool {
        let file = std::fs::read_to_string(directory.join(STATUS)).unwrap_or_default();
        // Its own console: the server may have been stopped.
        let console = format!("postgres://{OWNER}@127.0.0.1:{port}/pgbouncer");
        file.trim() == pid.to_string() && client::run(&console, "SHOW VERSION").await.is_ok()
    }

    fn url(&self, port: u16) -> String {
        format!("postgres://{OWNER}@127.0.0.1:{port}/{OWNER}")
    }
}

impl PgBouncer {
    /// Returns `url`, a URL of the server behind it, with its own host and port.
    pub fn through(&self, url: &str) -> String {
        with_address(url, &self.address())
    }
}
