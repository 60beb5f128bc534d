//! The setup of a PostgreSQL server.

/// The options of a private PostgreSQL server. The default accepts up to 300 connections without a
/// password.
///
/// Committed data survives a kill of the server, with any options. By default it does not survive a
/// crash of the machine, which no test needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostgresOptions {
    private: bool,
    durable: bool,
    settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a private server even if `IDEMPOTENCY_POSTGRES_URL` names one: for tests that
    /// pause, stop or restart it, or read its statistics. All other options request a private one
    /// too.
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

    /// Sets any other setting, as in `postgresql.conf`.
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
        let forgetful: &[_] =
            if self.durable { &[] } else { &[("fsync", "off"), ("full_page_writes", "off")] };
        let always = [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("max_connections", "300"),
            // In the data directory instead of the system's shared memory, where a killed server
            // would leave it.
            ("dynamic_shared_memory_type", "mmap"),
        ];
        let own = self.settings.iter().map(|(name, value)| (&**name, &**value));
        always.into_iter().chain(forgetful.iter().copied()).chain(own)
    }
}

#[cfg(test)]
mod tests {
    use super::PostgresOptions;

    #[test]
    fn only_the_default_takes_any_server() {
        let new = PostgresOptions::new;
        assert!(new().any_server_will_do());
        for options in [new().private(), new().durable(), new().setting("work_mem", "1MB")] {
            assert!(!options.any_server_will_do(), "{options:?}");
        }
    }

    #[test]
    fn a_durable_server_waits_for_its_disk_and_settings_of_the_test_come_last() {
        let options = PostgresOptions::new().setting("max_connections", "5");
        let settings: Vec<_> = options.settings().collect();
        assert!(settings.contains(&("fsync", "off")));
        assert_eq!(settings.last(), Some(&("max_connections", "5")));
        assert!(!PostgresOptions::new().durable().settings().any(|(name, _)| name == "fsync"));
    }
}
