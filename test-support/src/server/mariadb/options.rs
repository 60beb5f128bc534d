//! How a MariaDB server is set up.

/// What a private MariaDB server is started with. The default takes up to 300 connections without a
/// password.
///
/// What it has committed survives its being killed, with any options. By default it does not
/// survive the end of the machine, which no test waits for.
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

    /// A private server also where `IDEMPOTENCY_MARIADB_URL` names one: for tests that pause, stop
    /// or restart it, or read its statistics. All other options ask for a private one too.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Every commit is on disk before it is answered, as in production: for measurements.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Any other setting, as in `my.cnf`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Whether a server of somebody else would do.
    pub(super) fn any_server_will_do(&self) -> bool {
        *self == Self::default()
    }

    /// The settings of the server.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        // A commit is given to the system, which keeps it when the server is killed.
        let forgetful: &[_] = if self.durable {
            &[]
        } else {
            &[("innodb_flush_log_at_trx_commit", "2"), ("innodb_doublewrite", "0")]
        };
        let always = [
            ("bind_address", "127.0.0.1"),
            ("character_set_server", "utf8mb4"),
            ("max_connections", "300"),
            // Nobody asks the name service for the name of a client.
            ("skip_name_resolve", "1"),
            // From 11.4 on a server makes a certificate for itself, and clients take it: no proxy
            // could read along.
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
