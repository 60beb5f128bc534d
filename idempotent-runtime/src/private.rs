//! The functions that the expansion of `#[idempotent]` calls. Not a public API: it changes without
//! notice.

pub use crate::argument::{Detachable, DetachableCopy, copied};
pub use crate::engine::{
    Asked, Begun, Call, Cleared, DetachedBody, Idempotency, InTransaction, Site, Verification,
    Verified, begin, run, run_detached, verify,
};
pub use crate::fingerprint::Fingerprintable;
pub use crate::first_poll::on_first_poll;
pub use crate::key::{IntoKey, Key};
pub use crate::outcome::{
    CallError, Codec, Decision, ErrorPolicy, Outcome, StoredError, StoredValue, Upgrade,
};
pub use crate::policy::{ErrorAction, OnConflict, OnCrash, OnError};

/// Items for a simulated database.
#[cfg(feature = "testing")]
pub use crate::engine::{
    Attempt, Attempts, Calls, First, FirstResult, Lent, RecordedFirst, record_first, unknown_by_key,
};
#[cfg(feature = "testing")]
pub use crate::store::transaction::{ClaimAnswer, End, TransactionConnection, TransactionFuture};
pub use crate::store::{Loan, SqlTransaction};

use crate::fingerprint::Fingerprint;
use crate::key::FingerprintError;

/// The value of an option whose type is known. A wrong one is a field of the wrong type, where the
/// compiler reports the value alone: of an argument it would also report the call.
#[expect(missing_debug_implementations, reason = "the expansion alone sees it")]
pub struct Given<T> {
    /// The value.
    pub value: T,
}

/// Sets the fingerprint of `call`.
pub fn fingerprinted(call: Call, fingerprint: Result<Fingerprint, FingerprintError>) -> Call {
    call.with_computed_fingerprint(fingerprint)
}

/// Adds a former fingerprint of `call`.
pub fn formerly_fingerprinted(
    call: Call,
    fingerprint: Result<Fingerprint, FingerprintError>,
) -> Call {
    call.with_computed_former_fingerprint(fingerprint)
}

/// Returns a call of the function at `site` on the task's engine, or else on the installed one.
pub fn call(site: &'static Site, key: Key) -> Call {
    Call::at(site, None, key)
}

/// Returns a call of the function at `site` on `engine`.
pub fn call_on(site: &'static Site, engine: &Idempotency, key: Key) -> Call {
    Call::at(site, Some(engine), key)
}

/// Marks `call` as one of a function without a user-defined name. The closure is written inside the
/// function, so its type distinguishes the instances of the function.
pub fn unnamed<W>(call: Call, _in_the_function: W) -> Call {
    call.of_instance::<W>()
}

/// Puts `call` in the scope whose parts `scope` lists.
pub fn scoped(call: Call, scope: Key) -> Call {
    call.in_scope(Some(scope))
}

/// Returns the codec of a function that releases its claim when it fails.
pub fn outcome<R: Outcome>() -> Codec<R> {
    R::codec(ErrorAction::Release)
}
