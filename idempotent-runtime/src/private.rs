//! What the expansion of `#[idempotent]` calls. Not for people: it changes without notice.

pub use crate::engine::{Call, Site, run, run_detached};
pub use crate::key::Key;
pub use crate::outcome::{CallError, Codec, Decision, ErrorPolicy, Outcome, StoredValue};

use crate::engine::Idempotency;

/// A call of the function at `site` on the task's engine, else the installed one.
pub fn call(site: &'static Site, key: Key) -> Call {
    Call::at(site, None, key)
}

/// A call of the function at `site` on `engine`.
pub fn call_on(site: &'static Site, engine: &Idempotency, key: Key) -> Call {
    Call::at(site, Some(engine), key)
}

/// The witness: the return type of a guarded function can be stored and replayed.
pub fn outcome<R: Outcome>() -> Codec<R> {
    R::codec()
}
