//! The setup of `PgBouncer`.

use std::fmt::Write as _;
use std::path::Path;

use crate::server::PostgresServer;

/// The options of `PgBouncer`: transaction mode, up to 300 clients, up to 20 connections to each
/// database of the server, and no passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgBouncerOptions {
    server: (String, u16),
    users: Vec<String>,
    settings: Vec<(String, String)>,
}

impl PgBouncerOptions {
    /// Creates options for all databases of `server`.
    pub fn before(server: &PostgresServer) -> Self {
        Self {
            server: (String::from(server.host()), server.port()),
            users: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Adds a role of the server that may log in, besides its owner.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.users.push(name.into());
        self
    }

    /// Sets any other setting, as in `pgbouncer.ini`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Returns the file of users with their passwords.
    pub(super) fn users(&self, owner: &str) -> String {
        let names = [owner].into_iter().chain(self.users.iter().map(String::as_str));
        names.map(|name| format!("\"{name}\" \"\"")).collect::<Vec<_>>().join("\n") + "\n"
    }

    pub(super) fn configuration(&self, port: u16, users: &Path, status: &Path) -> String {
        let (host, server_port) = &self.server;
        let (users, status) = (users.display(), status.display());
        let mut text = format!(
            "[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
admin_users = idempotency
pidfile = {status}
pool_mode = transaction
max_client_conn = 300
default_pool_size = 20
; Clients send it in the first message, and PgBouncer refuses what it does not know.
ignore_startup_parameters = extra_float_digits
"
        );
        for (name, value) in &self.settings {
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }
}
