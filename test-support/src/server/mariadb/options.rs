//! The setup of a MariaDB server.

/// The options of a private MariaDB server. The default accepts up to 300 connections without a
/// password.
///
/// Committed data survives a kill of the server, with any options. By default it does not survive a
/// crash of the machine, which no test needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MariaDbOptions {
    private: bool,
    durable: bool,
    settings: Vec<(String, String)>,
}

impl MariaDbOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a private server even if `IDEMPOTENCY_MARIADB_URL` names one: for tests that pause,
    /// stop or restart it, or read its statistics. All other options request a private one too.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Puts every commit on disk before it is answered, as in production: for measurements.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Sets any other setting, as in `my.cnf`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Returns true if a server that the environment names would do.
    pub(super) fn any_server_will_do(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the settings of the server.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        // A commit is handed to the operating system, which keeps it when the server is killed.
        let forgetful: &[_] = if self.durable {
            &[]
        } else {
            &[("innodb_flush_log_at_trx_commit", "2"), ("innodb_doublewrite", "0")]
        };
        let always = [
            ("bind_address", "127.0.0.1"),
            ("character_set_server", "utf8mb4"),
            ("max_connections", "300"),
            // The server does not look up the host names of clients.
            ("skip_name_resolve", "1"),
            // From 11.4 on a server creates a certificate for itself, and clients accept it: no
            // proxy could read the traffic.
            ("ssl", "0"),
        ];
        let own = self.settings.iter().map(|(name, value)| (&**name, &**value));
        always.into_iter().chain(forgetful.iter().copied()).chain(own)
    }
}

#[cfg(test)]
mod tests {
    use super::MariaDbOptions;

    #[test]
    fn only_the_default_takes_any_server() {
        let new = MariaDbOptions::new;
        assert!(new().any_server_will_do());
        for options in [new().private(), new().durable(), new().setting("lock_wait_timeout", "1")] {
            assert!(!options.any_server_will_do(), "{options:?}");
        }
    }

    #[test]
    fn a_durable_server_waits_for_its_disk_and_settings_of_the_test_come_last() {
        let options = MariaDbOptions::new().setting("max_connections", "5");
        let settings: Vec<_> = options.settings().collect();
        assert!(settings.contains(&("innodb_flush_log_at_trx_commit", "2")));
        assert_eq!(settings.last(), Some(&("max_connections", "5")));
        assert!(
            !MariaDbOptions::new().durable().settings().any(|(name, _)| name.starts_with("innodb"))
        );
    }
}
