//! The identity of steps.

use std::fmt;
use std::sync::Arc;

/// The identity of a step within its call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StepId {
    pub(crate) name: Arc<str>,
    pub(crate) index: u64,
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => f.write_str(&self.name),
            index => write!(f, "{} {index}", self.name),
        }
    }
}
