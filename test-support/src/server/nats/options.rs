//! The setup of a NATS server.

/// The options of a NATS server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsOptions {
    is_private: bool,
}

impl NatsOptions {
    /// Creates options without any setting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a server of its own, which a test may stop, pause and kill.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.is_private = true;
        self
    }

    pub(super) fn any_server_will_do(&self) -> bool {
        !self.is_private
    }
}
