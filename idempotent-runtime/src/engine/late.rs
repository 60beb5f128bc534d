//! The end of a late owner: another party has decided its call, and provides the answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::duplicate::DuplicateRun;
use super::finish::{Verdict, conclude};
use super::request::Checked;
use super::retry::Budget;
use super::running::Running;
use super::{Waiting, beside, wait};
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, What};
use crate::outcome::{Answer, StoredAnswer, stored};
use crate::store::{CrashPolicy, Record, State, StoreError, Token, Written};

/// Ends a body whose error says that nothing happened. Its caller gets the error at once, unless
/// another caller has taken the call over meanwhile and provided the answer.
///
/// `was_lost`: the lease had expired before the store was first asked. It is checked again here,
/// because an outage may span its end. If it has not expired, `Lost` means that the first try was
/// applied and its answer was lost: the record's present owner came after it.
pub(super) async fn with_own_error(
    mut running: Box<Running>,
    was_lost: bool,
    written: Option<Written>,
) -> Verdict {
    let mut verdict = Verdict::Own;
    if (was_lost || running.lease.is_lost()) && written == Some(Written::Lost) {
        let late = overtaken_without_result(&mut running).await;
        if matches!(late, Verdict::Instead(Answer::Stored(_))) {
            verdict = late;
        }
    }
    conclude_as(running, verdict, Outcome::Released)
}

/// Ends a body whose error may hide an effect, or whose steps had effects. Its caller gets `own`,
/// which says so, as long as the record keeps the next call from running all of it again.
pub(super) async fn with_held_error(
    mut running: Box<Running>,
    own: Verdict,
    was_lost: bool,
    written: Option<Written>,
) -> Verdict {
    if !is_overtaken(&running, was_lost, written) {
        return conclude_as(running, own, Outcome::Held);
    }
    let verdict = match overtaken_without_result(&mut running).await {
        // Another owner is at work: a call that is made now does not run the body.
        Verdict::Instead(Answer::Refused(error)) if error.is_retryable() => own,
        verdict => verdict,
    };
    conclude_as(running, verdict, Outcome::Held)
}

/// Ends a body whose outcome is not known. Its caller gets what the body returned, unless the
/// record was answered, removed or taken over meanwhile: a retry would find no trace of this body,
/// and would run it once more.
pub(super) async fn with_unknown_outcome(
    mut running: Box<Running>,
    was_lost: bool,
    written: Option<Written>,
) -> Verdict {
    let verdict = if is_overtaken(&running, was_lost, written) {
        overtaken_without_result(&mut running).await
    } else {
        Verdict::Own
    };
    conclude_as(running, verdict, Outcome::Held)
}

/// Returns true if the store's answer to the last write of an owner, whose body may have had an
/// effect, means that another party has decided the call.
///
/// `was_lost`: the lease had expired before the store was first asked. An outage may span the end
/// of the lease, so the lease is checked again here. If the first try was applied nevertheless and
/// its answer was lost, it left the record to an operator or to the next caller. An answer is theirs
/// in any case; without one, the owner is counted as a duplicate although it had ended before they
/// began. It cannot tell this from a request that was lost.
pub(super) fn is_overtaken(running: &Running, was_lost: bool, written: Option<Written>) -> bool {
    match written {
        // Removed, whoever did it: there is no trace left that the body ran.
        Some(Written::Gone) => true,
        Some(Written::Lost) => was_lost || running.lease.is_lost(),
        _ => false,
    }
}

/// `own`: how the call ended if no other party decided it.
fn conclude_as(mut running: Box<Running>, verdict: Verdict, own: Outcome) -> Verdict {
    let winner = verdict.winner();
    conclude(&mut running, verdict, winner, own)
}

/// [`overtaken`] for an owner that has no result and waits for no other.
pub(super) async fn overtaken_without_result(running: &mut Running) -> Verdict {
    let token = running.grant.record.owner;
    overtaken(running, token, &Bytes::new(), false).await
}

/// Handles a refused last write: another party decided. Returns the winner's result if there is one
/// or will be one.
pub(super) async fn overtaken(
    running: &mut Running,
    token: Token,
    result: &Bytes,
    waits: bool,
) -> Verdict {
    let call = running.call.clone();
    let found = winner(running, waits).await;
    if let Ok(Winner::Answered(record)) = &found {
        // An earlier try of this very commit was applied, and its answer came late.
        if record.owner == token {
            return StoredAnswer { record: record.clone(), version: call.version }
                .marker()
                .map_or(Verdict::Own, Verdict::refused);
        }
    }
    if let Ok(Winner::Own) = &found {
        return Verdict::Own;
    }
    // A verdict that came too late had no effect.
    if running.has_run {
        let record = if let Ok(Winner::Answered(record)) = &found { Some(record) } else { None };
        report_duplicate(&call, result, record).await;
    }
    let superseded = call.refused(ErrorKind::Superseded);
    // A retry would not find a result, and would run the body once more.
    let would_repeat = |error: Error| {
        if running.has_run {
            error.with_text(WITHOUT_RESULT.0, WITHOUT_RESULT.1).would_repeat()
        } else {
            error.with_text(ASKED_TOO_LATE.0, ASKED_TOO_LATE.1)
        }
    };
    match found {
        Ok(Winner::Answered(record)) => Verdict::Instead(stored(record, call.version)),
        Ok(Winner::AtWork) if running.has_run => Verdict::refused(superseded),
        Ok(Winner::Own | Winner::AtWork | Winner::Nobody) => {
            Verdict::refused(would_repeat(superseded))
        }
        Err(error) if running.has_run => {
            let superseded = superseded.with_text(WITHOUT_WORD.0, WITHOUT_WORD.1).would_repeat();
            Verdict::refused(superseded.with_source(error))
        }
        Err(error) => Verdict::refused(would_repeat(superseded).with_source(error)),
    }
}

const WITHOUT_RESULT: (&str, &str) = (
    "the body ran here, and its record was removed, answered or given up meanwhile, so no caller \
     has its result",
    "find out what it did before making the call again",
);
const WITHOUT_WORD: (&str, &str) = (
    "the body ran here, and the store does not report who owns its call now",
    "find out what it did before making the call again",
);
const ASKED_TOO_LATE: (&str, &str) = (
    "the call was settled in another way while the outside world was asked",
    "retry with the same key",
);

async fn report_duplicate(call: &Checked, result: &Bytes, winner: Option<&Arc<Record>>) {
    tracing::warn!(operation = %call.operation, key = %call.key, winner = winner.is_some(),
        "a body finished after its call had been taken over: its effect may have happened twice");
    call.engine.duplicates.fetch_add(1, Ordering::Relaxed);
    call.tell(What::Duplicate);
    if let Some(hook) = call.engine.settings.on_duplicate.clone() {
        let winner = winner.map(|record| record.body.clone());
        let (operation, key, result) = (call.operation.clone(), call.key, result.clone());
        let duplicate = DuplicateRun { operation, key, result, winner };
        // Called after everything was decided: the hook does not change the outcome.
        beside::beside(move || {
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
    Own,
    /// It left a result, or an operator's answer.
    Answered(Arc<Record>),
    /// Another owner, whose body runs or has left the record in doubt: a call that is made now does
    /// not run the body.
    AtWork,
    /// The record was removed, belongs to another request by now, or is free for the next call to
    /// run.
    Nobody,
}

impl Winner {
    fn of(record: Arc<Record>, token: Token) -> Self {
        // The next call verifies before it runs anything, as it does after a doubt.
        let is_asked_about = matches!(record.policy, CrashPolicy::Verify | CrashPolicy::Hold);
        match record.state {
            State::Completed | State::Failed => Self::Answered(record),
            // An observer found the lease expired and put the record in doubt.
            State::InDoubt if record.owner == token => Self::Own,
            State::InDoubt => Self::AtWork,
            State::InProgress if !record.is_orphaned() || is_asked_about => Self::AtWork,
            State::InProgress | State::Released | State::Tombstone => Self::Nobody,
        }
    }
}

/// Finds the owner that took over, and its result. With `waits`, waits for that result as any
/// caller would.
async fn winner(running: &mut Running, waits: bool) -> Result<Winner, StoreError> {
    let call = running.call.clone();
    let engine = &call.engine;
    let token = running.grant.record.owner;
    let is_own_request = |record: &Record| call.accepts(record.fingerprint);
    let record = engine.store.read(Budget::of(engine.settings.commit_timeout), call.key).await?;
    let Some(record) = record.filter(is_own_request) else { return Ok(Winner::Nobody) };
    if !(record.is_running() && waits) {
        return Ok(Winner::of(Arc::new(record), token));
    }
    let (Some(patience), Some(_waiting)) = (running.patience, Waiting::enter(engine)) else {
        return Ok(Winner::AtWork);
    };
    running.waits();
    match wait::for_change(engine, call.key, engine.clock.monotonic().saturating_add(patience))
        .await?
    {
        // Checked again: it may be a different record from the one that was waited for.
        wait::Changed::Record(record) if is_own_request(&record) => Ok(Winner::of(record, token)),
        wait::Changed::Record(_) | wait::Changed::Claimable => Ok(Winner::Nobody),
        wait::Changed::OutOfTime => Ok(Winner::AtWork),
    }
}
