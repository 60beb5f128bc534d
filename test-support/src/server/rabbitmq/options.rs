//! The setup of a RabbitMQ broker.

use std::fmt::Write as _;

/// The options of a RabbitMQ broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RabbitMqOptions {
    is_private: bool,
    settings: Vec<(String, String)>,
}

impl RabbitMqOptions {
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

    /// Sets any setting, as in `rabbitmq.conf`. Such a broker is always private.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    pub(super) fn any_server_will_do(&self) -> bool {
        !self.is_private && self.settings.is_empty()
    }

    pub(super) fn configuration(&self, port: u16) -> String {
        let mut text = format!("listeners.tcp.1 = 127.0.0.1:{port}\nlog.file.level = info\n");
        // What the machine has left concerns no test.
        text.push_str("disk_free_limit.absolute = 1MB\n");
        for (name, value) in &self.settings {
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }
}
