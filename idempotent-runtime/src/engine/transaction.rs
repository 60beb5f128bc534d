//! A call whose claim, effect and record are in the user's own transaction.
//!
//! Neither coalescing nor leases are involved: until the user commits, nothing has happened, and
//! only the database knows whether the commit succeeded. So the way of such a call is one of its
//! own: `take` is what `admission` is elsewhere, and `transaction_end` what `finish` is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::admission::{Judged, in_doubt, judge, new_claim};
use super::busy::Busy;
use super::call::Call;
use super::exit::Exit;
use super::report::Report;
use super::request::{CheckedCall, Request};
use super::task_state::TaskState;
use super::transaction_calls::{Calls, Mark, calls_at};
use super::transaction_first::{FirstResult, begin_with_result};
use super::without_lease::WithoutLease;
use super::{Unprotected, Waiting, wait};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, Source, What};
use crate::outcome::{
    Answer, CallError, Codec, ErrorPolicy, Outcome as _, Reader, StoredValue, Writer, stored,
};
use crate::store::transaction::{
    ClaimAnswer, End, KeepsLock, TransactionConnection as _, savepoint_without_claim,
};
use crate::store::{ClaimOutcome, CrashPolicy, Grant, Record, SqlTransaction, Token};
use crate::watch::engine_waits;

/// The result of [`begin`].
#[expect(
    missing_debug_implementations,
    reason = "a result of any type is in it, and the expansion alone sees it"
)]
pub enum Begun<R, P> {
    /// The result that the call returns.
    Answered(R),
    /// The body must run.
    Mine(InTransaction<R, P>),
}

/// A call whose body may run, and whose record is in the user's transaction.
#[expect(missing_debug_implementations, reason = "the expansion alone sees it")]
#[must_use = "without `finish` there is no result, and the record that is committed is in doubt"]
pub struct InTransaction<R, P> {
    /// An `Err` if the operation is disabled.
    pub(super) claimed: Result<Box<InClaim>, Box<Unclaimed>>,
    pub(super) task_state: TaskState,
    pub(super) writer: Writer<R, P>,
    pub(super) reader: Reader<R>,
}

/// A body without a claim, because its operation is disabled. If it fails, its writes are still
/// undone.
pub(super) struct Unclaimed {
    pub(super) call: CheckedCall,
    pub(super) savepoint: String,
    _unprotected: Unprotected,
}

/// A claim in the transaction.
pub(super) struct InClaim {
    pub(super) call: CheckedCall,
    pub(super) grant: Grant,
    /// `None` once the end of the call has been reported.
    pub(super) exit: Option<Exit>,
    /// The calls that `in_transaction` tracks, if it created the transaction.
    pub(super) calls: Option<(Arc<Calls>, Mark)>,
    /// True once the body has ended, for its [`Context`].
    pub(super) ended: Arc<AtomicBool>,
    #[cfg_attr(
        not(any(feature = "__sql", feature = "testing")),
        expect(dead_code, reason = "only a transaction of the engine's own has a mark")
    )]
    /// True if the store has marked the transaction with the record that it wrote first.
    pub(super) has_marked: bool,
    /// A shutdown waits for the body, and counts it.
    _busy: (Busy, WithoutLease),
}

impl Drop for InClaim {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// Acquires the claim of `call` in `transaction`, or answers.
pub async fn begin<R, P, X>(call: Call, codec: Codec<R, P>, transaction: &mut X) -> Begun<R, P>
where
    X: SqlTransaction + ?Sized,
{
    let Codec { writer, reader } = codec;
    let version = call.request.version();
    match engine_waits(seek(call.request, None, transaction)).await {
        Ok(Sought::Found(record)) => Begun::Answered(reader.answer(stored(record, version))),
        Ok(Sought::Run { claimed, task_state }) => {
            Begun::Mine(InTransaction { claimed, task_state, writer, reader })
        }
        Err(error) => Begun::Answered(reader.answer(Answer::Refused(error))),
    }
}

pub(super) enum Sought {
    Found(Arc<Record>),
    Run { claimed: Result<Box<InClaim>, Box<Unclaimed>>, task_state: TaskState },
}

/// `first` is the result that the record gets before the body runs.
pub(super) async fn seek<X: SqlTransaction + ?Sized>(
    request: Request,
    first: Option<&FirstResult>,
    transaction: &mut X,
) -> Result<Sought, Error> {
    let task_state = TaskState::current();
    let call = request.check().map_err(|invalid| invalid.refused(&task_state))?;
    let mut exit = Exit::new(&call, &task_state, Report::new(call.operation.clone(), call.key));
    match seek_checked(call, first, task_state, &mut exit.report, transaction).await {
        Ok(Sought::Found(record)) => {
            exit.end(Outcome::Replayed(Source::Store));
            Ok(Sought::Found(record))
        }
        Ok(Sought::Run { claimed: Ok(mut claim), task_state }) => {
            claim.exit = Some(exit);
            Ok(Sought::Run { claimed: Ok(claim), task_state })
        }
        Ok(unclaimed) => {
            exit.end(Outcome::Bypassed);
            Ok(unclaimed)
        }
        Err(error) => {
            exit.end(Outcome::Refused(error.kind()));
            Err(error)
        }
    }
}

async fn seek_checked<X: SqlTransaction + ?Sized>(
    call: CheckedCall,
    first: Option<&FirstResult>,
    task_state: TaskState,
    report: &mut Report,
    transaction: &mut X,
) -> Result<Sought, Error> {
    if call.windowed.is_some() {
        let detail =
            "a transaction sees one record, and a key with a window needs two: use a short `ttl`";
        return Err(call.refused(ErrorKind::Unsupported).with_detail(detail));
    }
    let engine = call.engine.clone();
    if task_state.is_shut_out(&engine) {
        return Err(call.refused(ErrorKind::ShuttingDown));
    }
    if engine.operations.is_disabled(&call.operation) {
        return Box::pin(bypass(call, task_state, transaction)).await;
    }
    if task_state.context().is_some_and(|context| context.is_running(&engine, &call.key)) {
        return Err(call.refused(ErrorKind::Reentrant));
    }
    engine.at_home().map_err(|error| error.of_record(Some(&call.operation), &call.key))?;
    // No lease is renewed there, but expired records are removed.
    if let Err(error) = engine.keeper.start() {
        tracing::warn!(%error, "the background thread could not be started: expired records are not removed");
    }
    // Boxed: it loops, and the rest of the call does not carry its state along.
    Box::pin(take(call, first, task_state, report, transaction)).await
}

/// Lets the body run without a claim.
async fn bypass<X: SqlTransaction + ?Sized>(
    call: CheckedCall,
    task_state: TaskState,
    transaction: &mut X,
) -> Result<Sought, Error> {
    let Some(unprotected) = Unprotected::enter(&call.engine, &task_state) else {
        return Err(call.refused(ErrorKind::ShuttingDown));
    };
    tracing::warn!(operation = %call.operation, key = %call.key, "the operation is disabled: the body runs unprotected");
    if let Some(calls) = calls_at(transaction.connection().place()) {
        calls.unrecorded(&call.engine.store);
    }
    let savepoint = savepoint_without_claim();
    transaction
        .connection()
        .set_savepoint(&savepoint)
        .await
        .map_err(|error| call.store_error(error))?;
    let task_state =
        task_state.of_body(unprotected.context_in_transaction(&call.operation, call.key));
    let unclaimed = Unclaimed { call, savepoint, _unprotected: unprotected };
    Ok(Sought::Run { claimed: Err(Box::new(unclaimed)), task_state })
}

/// The number of times that a transaction reads an outside call whose end it does not see.
const UNSEEN_READS: usize = 3;

/// Acquires the claim, or finds the record that holds it. The database waits for other
/// transactions, in the statement that meets them. Calls without a transaction are waited for
/// between the reads.
async fn take<X: SqlTransaction + ?Sized>(
    call: CheckedCall,
    first: Option<&FirstResult>,
    task_state: TaskState,
    report: &mut Report,
    transaction: &mut X,
) -> Result<Sought, Error> {
    let engine = call.engine.clone();
    let calls = calls_at(transaction.connection().place());
    let deadline =
        call.patience().map(|patience| engine.clock.monotonic().saturating_add(patience));
    let (mut seen, mut looks) = (None, 0);
    loop {
        let busy = engine.keeper.busy();
        if task_state.is_shut_out(&engine) {
            return Err(call.refused(ErrorKind::ShuttingDown));
        }
        let mut claim = new_claim(&call)?;
        // A row that is committed without a result has no owner from the start, and no call runs it
        // again. Nor is a record taken over from an owner outside: it cannot be verified here, and
        // its steps are not known.
        claim.lease = Duration::ZERO;
        claim.policy = CrashPolicy::Hold;
        let patience = deadline
            .map_or(Duration::ZERO, |deadline| deadline.saturating_sub(engine.clock.monotonic()));
        let taken = if let Some(first) = first {
            begin_with_result(&call, first, &claim, patience, transaction).await
        } else {
            let store = engine.store.in_transaction();
            let begun = transaction.connection().begin(store, &claim, patience).await;
            begun.map(|answer| (answer, false))
        };
        let (answer, has_marked) = taken.map_err(|error| call.store_error(error))?;
        let ClaimAnswer { claimed, has_waited, keeps_lock } = answer;
        report.waited |= has_waited && deadline.is_some();
        let Some(claimed) = claimed else { return Err(held_by_a_transaction(&call)) };
        let before = calls.as_ref().map(|calls| calls.answered(call.key, &engine.store));
        let record = match claimed {
            ClaimOutcome::Granted(grant) => {
                // Counted before the check, so that a shutdown either counts the body or keeps it
                // from starting. Other transactions may have kept the claim waiting for long.
                let counted = WithoutLease::enter(&engine);
                if task_state.is_shut_out(&engine) {
                    drop(counted);
                    return Err(too_late(&call, claim.token, transaction).await);
                }
                let busy = (busy, counted);
                if let Some(calls) = &calls {
                    calls.absent(call.key);
                }
                let calls = calls.zip(before);
                return Ok(granted(call, grant, &task_state, report, calls, busy, has_marked));
            }
            ClaimOutcome::Existing(record) => record,
        };
        drop(busy);
        report.attempt = record.attempts;
        match judge(&call, &record) {
            Judged::Final => {
                if let Some(calls) = calls {
                    calls.found(call.key);
                }
                return Ok(Sought::Found(Arc::new(record)));
            }
            Judged::Refused(error) => return Err(error),
            // Left by this very call before its fingerprint changed: no claim of another fingerprint
            // has put it in doubt.
            Judged::NoAnswerYet if record.is_orphaned() => return Err(in_doubt(&call, &record)),
            Judged::NoAnswerYet => {}
        }
        // Its owner could not finish it: this transaction holds the only writer.
        let deadline = deadline.filter(|_| !engine.store.capabilities().single_writer);
        let Some(deadline) = deadline else {
            return Err(held_outside(&call, &record, HELD_OUTSIDE));
        };
        // Its owner could neither finish nor renew its lease for as long as this waits.
        if keeps_lock {
            return Err(held_outside(&call, &record, LOCKED).with_source(KeepsLock));
        }
        looks = if seen.replace(record.owner) == Some(record.owner) { looks + 1 } else { 1 };
        if looks > UNSEEN_READS {
            return Err(held_outside(&call, &record, UNSEEN));
        }
        report.waited = true;
        Box::pin(outside_is_over(&call, &record, deadline)).await?;
    }
}

const HELD_OUTSIDE: &str = "a call without `tx` holds it";
const UNSEEN: &str = "a call without `tx` held it, and this transaction does not see its end, \
    because it sees the database as it was before: roll it back, and begin it again";

const LOCKED: &str = "a call without `tx` holds it, and cannot end before this transaction does, \
    which has locked its record: roll it back, and begin it again";

fn held_by_a_transaction(call: &CheckedCall) -> Error {
    let detail = match call.patience() {
        Some(patience) => format!("another transaction has held it for longer than {patience:?}"),
        None => "another transaction holds it".to_owned(),
    };
    call.refused(ErrorKind::InProgress).with_detail(detail)
}

fn held_outside(call: &CheckedCall, record: &Record, detail: &str) -> Error {
    let left = record.lease_until.saturating_duration_since(record.read_at);
    call.refused(ErrorKind::InProgress).with_detail(detail).with_retry_after(left)
}

/// Waits until the outside call that left `record` has ended, or fails at the deadline.
async fn outside_is_over(
    call: &CheckedCall,
    record: &Record,
    deadline: Duration,
) -> Result<(), Error> {
    let engine = &call.engine;
    let in_progress = || held_outside(call, record, HELD_OUTSIDE);
    let _waiting = Waiting::enter(engine).ok_or_else(in_progress)?;
    match wait::for_change(engine, call.key, deadline).await {
        Ok(wait::WaitOutcome::OutOfTime) => Err(in_progress()),
        Ok(wait::WaitOutcome::Record(_) | wait::WaitOutcome::Claimable) => Ok(()),
        // The store was queried for no longer than this caller waits.
        Err(_) if engine.clock.monotonic() >= deadline => Err(in_progress()),
        Err(error) => Err(call.store_error(error).after_another(true)),
    }
}

/// Releases the claim: the engine was shut down while the claim was waited for.
async fn too_late<X: SqlTransaction + ?Sized>(
    call: &CheckedCall,
    token: Token,
    transaction: &mut X,
) -> Error {
    let engine = &call.engine;
    let error = call.refused(ErrorKind::ShuttingDown);
    match transaction.connection().end(engine.store.in_transaction(), token, End::Undo).await {
        Ok(_) => error,
        Err(undone) => error.with_source(engine.store_error(undone)),
    }
}

fn granted(
    call: CheckedCall,
    grant: Grant,
    task_state: &TaskState,
    report: &mut Report,
    calls: Option<(Arc<Calls>, Mark)>,
    busy: (Busy, WithoutLease),
    has_marked: bool,
) -> Sought {
    report.attempt = grant.record.attempts;
    let ended = Arc::new(AtomicBool::new(false));
    let context = Context::in_transaction(&call.engine, &call.operation, &grant, ended.clone());
    let task_state = task_state.of_body(context);
    call.tell(What::Claimed {
        attempt: grant.record.attempts,
        fence: grant.record.fence,
        taken_over: grant.taken_over,
    });
    let claim = InClaim { call, grant, exit: None, calls, ended, has_marked, _busy: busy };
    Sought::Run { claimed: Ok(Box::new(claim)), task_state }
}

impl<P> Call<P> {
    /// Runs the call in `transaction`: its claim, the writes of `body` and the result are committed
    /// together by the caller, or not at all. No lease is kept, and nothing is in doubt unless
    /// [`on_error`](Self::on_error) holds an error that the caller commits.
    ///
    /// Another call of the same key in another transaction waits until this one has ended, for as
    /// long as [`on_conflict`](Self::on_conflict) allows, and then replays or runs. This call waits
    /// in the same way for a call that has the key without a transaction, and keeps its own
    /// transaction open meanwhile. It does not wait on SQLite, where that call needs the writer to
    /// finish, nor on MySQL if the transaction has locked that call's record.
    ///
    /// An `Err` of the body undoes what it wrote, whatever the caller does then. If
    /// [`on_error`](Self::on_error) stores or holds it, that is in the transaction as well: a
    /// caller that returns the error before the commit has rolled it back, and the next call runs.
    /// If the answer to the commit is lost, make the call again with the same key: it replays if
    /// the commit happened, and runs if not. [`in_transaction`](crate::tx::in_transaction) does all
    /// that.
    ///
    /// Effects outside of the database still happen once for each attempt.
    ///
    /// The policy is always [`OnCrash::Hold`](crate::OnCrash::Hold), whatever
    /// [`on_crash`](Self::on_crash) says: a record that a call outside of a transaction has left
    /// behind is in doubt here.
    ///
    /// # Errors
    /// The body's own, and [`Error`] converted into `E`:
    ///
    /// - [`InProgress`](ErrorKind::InProgress) if others did not finish in time.
    /// - [`StoreUnavailable`](ErrorKind::StoreUnavailable) for deadlocks and serialization
    ///   failures, after which the whole transaction is rolled back and run again.
    /// - [`NotStored`](ErrorKind::NotStored), which is not retryable here, if the transaction had
    ///   ended before the body did: by an error after which the body continued, by a statement that
    ///   ends it, or by a nested transaction whose `begin` failed or was dropped. Part of what the
    ///   body wrote may be committed.
    /// - [`Config`](ErrorKind::Config) if the transaction belongs to another database than the
    ///   engine's store.
    pub async fn run_in<X, T, E, B>(self, transaction: &mut X, body: B) -> Result<T, E>
    where
        X: SqlTransaction + ?Sized,
        B: AsyncFnOnce(&mut X::Connection) -> Result<T, E>,
        T: StoredValue,
        E: CallError,
        P: ErrorPolicy<E>,
    {
        let (call, policy, _) = self.parts();
        match begin(call, Result::<T, E>::codec(policy), transaction).await {
            Begun::Answered(result) => result,
            Begun::Mine(claim) => {
                let result = claim.body(|| body(transaction.connection())).await;
                claim.finish(result, transaction).await
            }
        }
    }
}
