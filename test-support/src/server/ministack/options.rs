//! The setup of MiniStack.

/// The options of MiniStack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MiniStackOptions(());

impl MiniStackOptions {
    /// Creates options without any setting.
    pub fn new() -> Self {
        Self::default()
    }
}
