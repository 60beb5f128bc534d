//! The end of an owner that was overtaken: another party has decided its call, and provides the
//! answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::duplicate::DuplicateRun;
use super::finish::CallerGets;
use super::owner::Owner;
use super::request::CheckedCall;
use super::retry::Budget;
use super::{Waiting, user_code, wait};
use crate::error::ErrorKind;
use crate::events::What;
use crate::outcome::{StoredAnswer, stored};
use crate::store::{CrashPolicy, Record, State, StoreError, Token, WriteOutcome};

/// Returns true if the store's answer to the last write of an owner, whose body may have had an
/// effect, means that another party has decided the call.
///
/// `was_lost`: the lease had expired before the store was first asked. An outage may span the end
/// of the lease, so the lease is checked again here. If the first try was applied nevertheless and
/// its answer was lost, it left the record to an operator or to the next caller. An answer is
/// theirs in any case; without one, the owner is counted as a duplicate although it had ended before they
/// began. It cannot tell this from a request that was lost.
pub(super) fn is_overtaken(owner: &Owner, was_lost: bool, written: Option<WriteOutcome>) -> bool {
    match written {
        // Removed, whoever did it: there is no trace left that the body ran.
        Some(WriteOutcome::Gone) => true,
        Some(WriteOutcome::Lost) => was_lost || owner.lease.is_lost(),
        _ => false,
    }
}

/// The end of an owner whose last write was refused.
pub(super) struct Overtaken {
    pub(super) caller_gets: CallerGets,
    /// True if the record keeps the next call from running the body as if it had not run here.
    pub(super) is_protected: bool,
}

impl Overtaken {
    fn with(caller_gets: CallerGets) -> Self {
        Self { caller_gets, is_protected: false }
    }
}

/// [`overtaken`] for an owner that has no result and waits for no other.
pub(super) async fn without_result(owner: &mut Owner) -> Overtaken {
    overtaken(owner, &Bytes::new(), false).await
}

/// Handles a refused last write: another party decided. Returns the winner's result if there is one
/// or will be one.
pub(super) async fn overtaken(owner: &mut Owner, result: &Bytes, waits: bool) -> Overtaken {
    let (call, token) = (owner.call.clone(), owner.grant.record.owner);
    let found = winner(owner, waits).await;
    if let Ok(Winner::Answered(record)) = &found {
        // An earlier try of this very commit was applied, and its answer came late.
        if record.owner == token {
            let marker = StoredAnswer { record: record.clone(), version: call.version }.marker();
            return Overtaken::with(marker.map_or(CallerGets::Own, CallerGets::refused));
        }
    }
    if let Ok(Winner::OwnDoubt) = &found {
        return Overtaken { caller_gets: CallerGets::Own, is_protected: true };
    }
    // A verification has no effect of its own: only a body can be a duplicate.
    if owner.has_run {
        let record = if let Ok(Winner::Answered(record)) = &found { Some(record) } else { None };
        report_duplicate(&call, result, record).await;
    }
    let is_protected = matches!(found, Ok(Winner::AtWork { is_successor: true } | Winner::InDoubt));
    let superseded = call.refused(ErrorKind::Superseded);
    let (text, source) = match found {
        Ok(Winner::Answered(record)) => {
            return Overtaken::with(CallerGets::Instead(stored(record, call.version)));
        }
        // A retry waits for the successor. It gets its result, or what the policy makes of the
        // attempts of both.
        Ok(Winner::AtWork { is_successor: true }) if owner.has_run => {
            return Overtaken { caller_gets: CallerGets::refused(superseded), is_protected };
        }
        Ok(Winner::AtWork { .. }) => (BESIDE_ANOTHER, None),
        Ok(Winner::InDoubt) => (IN_DOUBT, None),
        Ok(Winner::OwnDoubt | Winner::Nobody) => (WITHOUT_RESULT, None),
        Err(error) => (WITHOUT_WORD, Some(error)),
    };
    // A retry finds no result, and may run the body once more.
    let error = if owner.has_run {
        superseded.with_text(text.0, text.1).would_repeat()
    } else {
        superseded.with_text(ASKED_TOO_LATE.0, ASKED_TOO_LATE.1)
    };
    let error = match source {
        Some(source) => error.with_source(source),
        None => error,
    };
    Overtaken { caller_gets: CallerGets::refused(error), is_protected }
}

const WITHOUT_RESULT: (&str, &str) = (
    "the body ran here, and its record was removed, answered or given up meanwhile, so no caller \
     has its result",
    "find out what it did before making the call again",
);
const BESIDE_ANOTHER: (&str, &str) = (
    "the body ran here, its record was removed or freed meanwhile, and another caller is running \
     the call as if it were the first",
    "find out what it did before making the call again",
);
const IN_DOUBT: (&str, &str) = (
    "the body ran here, and another caller has run the call meanwhile and left its outcome \
     unknown",
    "find out what it did in both places before making the call again",
);
const WITHOUT_WORD: (&str, &str) = (
    "the body ran here, and the store does not report who owns its call now",
    "find out what it did before making the call again",
);
const ASKED_TOO_LATE: (&str, &str) = (
    "the call was settled in another way while the outside world was asked",
    "retry with the same key",
);

async fn report_duplicate(call: &CheckedCall, result: &Bytes, winner: Option<&Arc<Record>>) {
    tracing::warn!(operation = %call.operation, key = %call.key, winner = winner.is_some(),
        "a body finished after its call had been taken over: its effect may have happened twice");
    call.engine.duplicates.fetch_add(1, Ordering::Relaxed);
    call.tell(What::Duplicate);
    if let Some(hook) = call.engine.settings.on_duplicate.clone() {
        let winner = winner.map(|record| record.body.clone());
        let (operation, key, result) = (call.operation.clone(), call.key, result.clone());
        let duplicate = DuplicateRun { operation, key, result, winner };
        // Called after everything was decided: the hook does not change the outcome.
        user_code::run(move || {
            if catch_unwind(AssertUnwindSafe(|| hook(&duplicate))).is_err() {
                let DuplicateRun { operation, key, .. } = duplicate;
                tracing::error!(%operation, %key, "the hook `on_duplicate` panicked");
            }
        })
        .await;
    }
}

/// The party that decided a call whose owner was refused.
enum Winner {
    /// None: the record is in doubt, and still has its owner.
    OwnDoubt,
    /// It left a result, or an operator's answer.
    Answered(Arc<Record>),
    /// Another owner, whose body runs. `is_successor`: it took the claim over, so the record keeps
    /// that an earlier body ran, whatever this owner says at its end. Otherwise its claim was a
    /// first one, after an operator's answer or a removal: if it releases that, the next call runs
    /// the body.
    AtWork { is_successor: bool },
    /// Another owner, which has left the record in doubt, or is gone: no caller runs the call, and
    /// the next one does not run the body before it has verified the earlier attempts.
    InDoubt,
    /// The record was removed, belongs to another request by now, or is free for the next call to
    /// run.
    Nobody,
}

impl Winner {
    fn of(record: Arc<Record>, token: Token) -> Self {
        // The next call verifies before it runs anything, as it does after a doubt.
        let is_not_rerun = matches!(record.policy, CrashPolicy::Verify | CrashPolicy::Hold);
        match record.state {
            State::Completed | State::Failed => Self::Answered(record),
            // Another caller found the lease expired and put the record in doubt.
            State::InDoubt if record.owner == token => Self::OwnDoubt,
            State::InDoubt => Self::InDoubt,
            State::InProgress if !record.is_orphaned() => {
                Self::AtWork { is_successor: record.taken_over.is_some() }
            }
            State::InProgress if is_not_rerun => Self::InDoubt,
            State::InProgress | State::Released | State::Tombstone => Self::Nobody,
        }
    }
}

/// Finds the owner that took over, and its result. With `waits`, waits for that result as any
/// caller would.
async fn winner(owner: &mut Owner, waits: bool) -> Result<Winner, StoreError> {
    let call = owner.call.clone();
    let engine = &call.engine;
    let token = owner.grant.record.owner;
    let is_own_request = |record: &Record| call.accepts(record.fingerprint);
    let read = async || {
        let record =
            engine.store.read(Budget::of(engine.settings.commit_timeout), call.key).await?;
        Ok::<_, StoreError>(record.filter(is_own_request))
    };
    let Some(record) = read().await? else { return Ok(Winner::Nobody) };
    if !(record.is_running() && waits) {
        return Ok(Winner::of(Arc::new(record), token));
    }
    let (Some(patience), Some(_waiting)) = (owner.patience, Waiting::enter(engine)) else {
        return Ok(Winner::of(Arc::new(record), token));
    };
    owner.note_waiting();
    match wait::for_change(engine, call.key, engine.clock.monotonic().saturating_add(patience))
        .await?
    {
        // Checked again: it may be a different record from the one that was waited for.
        wait::WaitOutcome::Record(record) if is_own_request(&record) => {
            Ok(Winner::of(record, token))
        }
        wait::WaitOutcome::Record(_) | wait::WaitOutcome::Claimable => Ok(Winner::Nobody),
        // Read again: its owner may be another one by now.
        wait::WaitOutcome::OutOfTime => {
            Ok(read().await?.map_or(Winner::Nobody, |record| Winner::of(Arc::new(record), token)))
        }
    }
}
