//! The hook for results that came too late.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::key::KeyHash;

/// A body that finished here after another caller had taken the call over, or after its record had
/// been removed: its effect may have happened twice. Passed to the hook that [`Builder::on_duplicate`](super::Builder::on_duplicate)
/// sets. `Debug` shows the sizes of the results instead of their contents.
#[derive(Clone)]
#[non_exhaustive]
pub struct DuplicateRun {
    /// The operation's name.
    pub operation: Arc<str>,
    /// The name of the record.
    pub key: KeyHash,
    /// The encoded result of the body that came too late. It is not stored anywhere. Empty if the
    /// body ended in an error that is not a result.
    pub result: Bytes,
    /// The encoded result that all callers get, if it is known.
    pub winner: Option<Bytes>,
}

impl fmt::Debug for DuplicateRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DuplicateRun")
            .field("operation", &self.operation)
            .field("key", &self.key)
            .field("result", &format_args!("{} bytes", self.result.len()))
            .field("winner", &self.winner.as_ref().map(|winner| format!("{} bytes", winner.len())))
            .finish()
    }
}

pub(crate) type DuplicateHook = dyn Fn(&DuplicateRun) + Send + Sync;
