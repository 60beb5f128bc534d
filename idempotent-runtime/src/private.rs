//! The functions that the expansion of `#[idempotent]` calls. Not a public API: it changes without
//! notice.

pub use crate::argument::{Detachable, DetachableCopy, assert_detachable, copied};
pub use crate::engine::{
    Asked, Begun, Call, Cleared, InTransaction, Loan, Site, Verified, begin, lend, run,
    run_detached, verify,
};
pub use crate::first_poll::on_first_poll;
pub use crate::key::Key;
pub use crate::outcome::{
    CallError, Codec, Decision, ErrorPolicy, Outcome, StoredError, StoredValue,
};
pub use crate::policy::{ErrorAction, OnConflict, OnCrash, OnError};

/// Items for a simulated database.
#[cfg(feature = "testing")]
pub use crate::engine::{Attempt, Attempts, Calls, Lent, unknown_by_key};
#[cfg(feature = "testing")]
pub use crate::store::transaction::{ClaimAnswer, End, TransactionConnection, TransactionFuture};

use crate::engine::Idempotency;

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

/// The witness that the return type of a guarded function can be stored and replayed. Errors are
/// released.
pub fn outcome<R: Outcome>() -> Codec<R> {
    R::codec(ErrorAction::Release)
}

/// [`outcome`] for `on_error = hold`.
pub fn outcome_holding_errors<R: Outcome>() -> Codec<R> {
    R::codec(ErrorAction::Hold)
}

/// [`outcome`] for `on_error = store`.
pub fn outcome_storing_errors<R: Outcome<Failure: StoredError>>() -> Codec<R, OnError> {
    R::codec(OnError::Store)
}

/// [`outcome`] for a function that decides about each error.
pub fn outcome_classifying_errors<R, P, D>(policy: P) -> Codec<R, P>
where
    R: Outcome,
    P: FnOnce(&R::Failure) -> D,
    D: Decision<R::Failure>,
{
    R::codec(policy)
}
