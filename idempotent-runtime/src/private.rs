//! What the expansion of `#[idempotent]` calls. Not for people: it changes without notice.

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
pub use crate::policy::{OnConflict, OnCrash, OnError, Unstored};

/// For a simulated database.
#[cfg(feature = "testing")]
pub use crate::store::transaction::{ClaimAnswer, End, TransactionConnection, TransactionFuture};

use crate::engine::Idempotency;

/// A call of the function at `site` on the task's engine, else the installed one.
pub fn call(site: &'static Site, key: Key) -> Call {
    Call::at(site, None, key)
}

/// A call of the function at `site` on `engine`.
pub fn call_on(site: &'static Site, engine: &Idempotency, key: Key) -> Call {
    Call::at(site, Some(engine), key)
}

/// `call` of a function without a name of the user's. The closure stands in the function, so that
/// its type tells the instances of the function apart.
pub fn unnamed<W>(call: Call, _in_the_function: W) -> Call {
    call.of_instance::<W>()
}

/// `call` in the scope that `scope` gives part by part.
pub fn scoped(call: Call, scope: Key) -> Call {
    call.in_scope(Some(scope))
}

/// The witness: the return type of a guarded function can be stored and replayed. Errors are
/// released.
pub fn outcome<R: Outcome>() -> Codec<R> {
    R::codec(Unstored::Release)
}

/// [`outcome`] for `on_error = hold`.
pub fn outcome_holding_errors<R: Outcome>() -> Codec<R> {
    R::codec(Unstored::Hold)
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
