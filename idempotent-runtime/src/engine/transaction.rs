//! A call whose claim, effect and record are in the user's own transaction.
//!
//! Neither coalescing nor leases are involved: until the user commits, nothing has happened, and
//! only the database knows whether the commit succeeded.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::admission::{Judged, judge, new_claim};
use super::busy::Busy;
use super::call::Call;
use super::exit::Exit;
use super::report::Report;
use super::request::{CheckedCall, Request};
use super::task_state::TaskState;
use super::transaction_calls::{Calls, Mark, calls_at};
use super::{Unprotected, Waiting, WithoutLease, wait};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, Source, What};
use crate::outcome::{
    Answer, CallError, Codec, Ending, ErrorPolicy, Outcome as _, Reader, StoredValue, Writer,
    stored,
};
use crate::store::transaction::{
    ClaimAnswer, End, KeepsLock, TransactionConnection as _, is_over, savepoint_without_claim,
};
use crate::store::{
    ClaimOutcome, Commit, CrashPolicy, Grant, Park, Reason, Record, SqlTransaction, State,
    StoreError, Token,
};

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
    claimed: Result<Box<InClaim>, Box<Unclaimed>>,
    task_state: TaskState,
    writer: Writer<R, P>,
    reader: Reader<R>,
}

/// A body without a claim, because its operation is disabled. If it fails, its writes are still
/// undone.
struct Unclaimed {
    call: CheckedCall,
    savepoint: String,
    _unprotected: Unprotected,
}

/// A claim in the transaction.
struct InClaim {
    call: CheckedCall,
    grant: Grant,
    /// `None` once the end of the call has been reported.
    exit: Option<Exit>,
    /// The calls that `in_transaction` tracks, if it created the transaction.
    calls: Option<(Arc<Calls>, Mark)>,
    /// True once the body has ended, for its [`Context`].
    ended: Arc<AtomicBool>,
    /// A shutdown waits for the body, and counts it.
    _busy: (Busy, WithoutLease),
}

/// The effect of a call on the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// Its result, and what its body wrote.
    Result,
    /// A stored error, or a record in doubt.
    Error,
    Nothing,
}

impl Leaves {
    const fn of(end: &End) -> Self {
        match end {
            End::Keep(_) => Self::Result,
            End::KeepError(_) | End::Hold(_) => Self::Error,
            End::Undo => Self::Nothing,
        }
    }
}

impl InClaim {
    /// Reports the end of the call.
    fn report_end(&mut self, outcome: Outcome) {
        if let Some(exit) = self.exit.take() {
            exit.end(outcome);
        }
    }

    /// Records for the creator of the transaction what the call has left there.
    fn leaves(&self, leaves: Leaves) {
        let Some((calls, before)) = &self.calls else { return };
        if leaves != Leaves::Result {
            calls.undid(*before);
        }
        if leaves != Leaves::Nothing {
            calls.wrote(self.call.key, leaves == Leaves::Error);
        }
    }
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
    match seek(call.request, transaction).await {
        Ok(Sought::Found(record)) => Begun::Answered(reader.answer(stored(record, version))),
        Ok(Sought::Run { claimed, task_state }) => {
            Begun::Mine(InTransaction { claimed, task_state, writer, reader })
        }
        Err(error) => Begun::Answered(reader.answer(Answer::Refused(error))),
    }
}

enum Sought {
    Found(Arc<Record>),
    Run { claimed: Result<Box<InClaim>, Box<Unclaimed>>, task_state: TaskState },
}

async fn seek<X: SqlTransaction + ?Sized>(
    request: Request,
    transaction: &mut X,
) -> Result<Sought, Error> {
    let task_state = TaskState::current();
    let call = request.check().map_err(|invalid| invalid.refused(&task_state))?;
    let mut exit = Exit::new(&call, &task_state, Report::new(call.operation.clone(), call.key));
    match seek_checked(call, task_state, &mut exit.report, transaction).await {
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
    Box::pin(take(call, task_state, report, transaction)).await
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
        let taken =
            transaction.connection().begin(engine.store.in_transaction(), &claim, patience).await;
        let ClaimAnswer { claimed, has_waited, keeps_lock } =
            taken.map_err(|error| call.store_error(error))?;
        report.waited |= has_waited && deadline.is_some();
        let Some(claimed) = claimed else { return Err(held_by_a_transaction(&call)) };
        let before = calls.as_ref().map(|calls| calls.answered(call.key, &engine.store));
        let record = match claimed {
            // Other transactions may have kept the claim waiting for long.
            ClaimOutcome::Granted(_) if task_state.is_shut_out(&engine) => {
                return Err(too_late(&call, claim.token, transaction).await);
            }
            ClaimOutcome::Granted(grant) => {
                if let Some(calls) = &calls {
                    calls.absent(call.key);
                }
                return Ok(granted(call, grant, &task_state, report, calls.zip(before), busy));
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
    busy: Busy,
) -> Sought {
    report.attempt = grant.record.attempts;
    let (ended, body) = (Arc::new(AtomicBool::new(false)), WithoutLease::enter(&call.engine));
    let context = Context::in_transaction(&call.engine, &call.operation, &grant, ended.clone());
    let task_state = task_state.of_body(context);
    call.tell(What::Claimed {
        attempt: grant.record.attempts,
        fence: grant.record.fence,
        taken_over: grant.taken_over,
    });
    let claim = InClaim { call, grant, exit: None, calls, ended, _busy: (busy, body) };
    Sought::Run { claimed: Ok(Box::new(claim)), task_state }
}

impl<R, P> InTransaction<R, P> {
    /// Runs the body with the task's state of the call.
    pub async fn body<F: Future<Output = R>>(&self, body: impl FnOnce() -> F) -> R {
        self.task_state.clone().wrap(async move { body().await }).await
    }

    /// Writes the record in the same transaction, as the body's result requires.
    pub async fn finish<X: SqlTransaction + ?Sized>(self, result: R, transaction: &mut X) -> R {
        let Self { claimed, task_state, writer, reader } = self;
        let mut claim = match claimed {
            Ok(claim) => claim,
            Err(unclaimed) => {
                let is_error = writer.is_error(&result);
                let ended = unclaimed.end(is_error, transaction).await;
                // The body's own error comes first, as below. Its success is void without the
                // transaction.
                return match ended {
                    Err(error) if !is_error => reader.answer(Answer::Refused(error)),
                    Ok(()) | Err(_) => result,
                };
            }
        };
        let (result, ending) = task_state.enter(|| writer.ending(result));
        let (call, token) = (&claim.call, claim.grant.record.owner);
        let is_kept = matches!(ending, Ending::Answer { state: State::Completed, .. });
        let (end, refused) = end_of(call, &claim.grant.record, ending);
        let leaves = Leaves::of(&end);
        let own = outcome_of(&end);
        let keeps_error = matches!(end, End::KeepError(_));
        let ended =
            transaction.connection().end(call.engine.store.in_transaction(), token, end).await;
        claim.ended.store(true, Ordering::Release);
        let error = match (ended, refused) {
            (Ok(true), None) => {
                claim.leaves(leaves);
                claim.report_end(own);
                return result;
            }
            // The body's own error comes first: it may be what broke the transaction. What it wrote
            // is undone also where its error cannot be stored.
            (ended, _) if !is_kept => {
                claim.leaves(Leaves::Nothing);
                if keeps_error && ended.is_err_and(|error| !is_over(&error)) {
                    undo(call, token, transaction).await;
                }
                claim.report_end(Outcome::Released);
                return result;
            }
            (Ok(true), Some(error)) => {
                claim.leaves(Leaves::Nothing);
                claim.report_end(Outcome::Unkept);
                return reader.answer(Answer::Refused(error));
            }
            (Ok(false), _) => call.refused(ErrorKind::Superseded).with_detail(
                "its record changed inside the transaction: roll the transaction back",
            ),
            (Err(error), _) => broken(call, error, UNWRITTEN),
        };
        let outcome = match error.kind() {
            ErrorKind::Superseded => Outcome::Superseded,
            _ => Outcome::NotStored,
        };
        // Recorded before the wait, in which this may be dropped: the creator of the transaction
        // must not take it for a call that has left its record there.
        claim.leaves(Leaves::Nothing);
        // The caller gets an error, and finds no record if it commits all the same.
        undo(call, token, transaction).await;
        claim.report_end(outcome);
        reader.answer(Answer::Refused(error))
    }
}

/// Returns how the call ends, if the user commits the transaction.
const fn outcome_of(end: &End) -> Outcome {
    match end {
        End::Keep(_) => Outcome::Executed,
        End::KeepError(_) => Outcome::Failed,
        End::Hold(_) => Outcome::Held,
        End::Undo => Outcome::Released,
    }
}

/// Undoes everything since the claim, if the transaction can still do that.
async fn undo<X: SqlTransaction + ?Sized>(call: &CheckedCall, token: Token, transaction: &mut X) {
    if transaction
        .connection()
        .end(call.engine.store.in_transaction(), token, End::Undo)
        .await
        .is_err()
    {
        tracing::debug!(operation = %call.operation, key = %call.key, "the transaction is broken and will not commit");
    }
}

/// The messages of the kinds are about bodies that did not run. This body did.
const UNWRITTEN: (&str, &str) = (
    "the body ran, and its record could not be written into the transaction, so neither is kept",
    "roll the transaction back, and run it again",
);

/// The same message where there is no record.
const BROKEN: &str = "the body ran, and the transaction is broken, so what it wrote is not kept";

/// For a transaction that had ended before the body did: what the body wrote since was committed at
/// once.
const OVER: (&str, &str) = (
    "the body ran, and the transaction had ended before the record could be written: it was \
     undone, or committed by a statement, and part of what the body wrote may be committed",
    "look for it before making the call again",
);

/// Returns the error of a body whose end the transaction did not accept.
fn broken(
    call: &CheckedCall,
    error: StoreError,
    (happened, advice): (&'static str, &'static str),
) -> Error {
    if is_over(&error) {
        let (happened, advice) = OVER;
        let error = call.engine.store_error(error);
        return call
            .refused(ErrorKind::NotStored)
            .with_text(happened, advice)
            .would_repeat()
            .with_source(error);
    }
    call.store_error(error).with_text(happened, advice)
}

impl Unclaimed {
    async fn end<X: SqlTransaction + ?Sized>(
        &self,
        undoes: bool,
        transaction: &mut X,
    ) -> Result<(), Error> {
        transaction.connection().end_savepoint(&self.savepoint, undoes).await.map_err(|error| {
            tracing::warn!(operation = %self.call.operation, key = %self.call.key, %error, "the transaction of an unprotected body is broken");
            broken(&self.call, error, (BROKEN, UNWRITTEN.1))
        })
    }
}

/// Returns how the call ends in the transaction, and the error for the caller if its result cannot
/// be kept.
fn end_of(call: &CheckedCall, record: &Record, ending: Ending) -> (End, Option<Error>) {
    let (state, body) = match ending {
        // There is no verification in a transaction.
        Ending::Release | Ending::NotBegun | Ending::Unknown { .. } => return (End::Undo, None),
        Ending::Hold | Ending::GiveUp => {
            return (End::Hold(Park::own(record.key, record.owner, Reason::Error)), None);
        }
        Ending::Answer { state, body, .. } => (state, body),
    };
    let limit = call.engine.settings.max_result_size;
    let undone = "what the body wrote is undone";
    let body: Bytes = match body {
        Ok(body) if body.len() <= limit => body,
        Ok(body) => {
            let detail =
                format!("it takes {} bytes and the limit is {limit}; {undone}", body.len());
            return (End::Undo, Some(call.refused(ErrorKind::TooLarge).with_detail(detail)));
        }
        Err(error) => {
            let detail = format!("{error}; {undone}");
            return (
                End::Undo,
                Some(call.refused(ErrorKind::Encode).with_detail(detail).with_source(error)),
            );
        }
    };
    let mut commit = Commit::new(record.key, record.owner, body, call.ttl);
    commit.state = state;
    commit.schema = call.version;
    (if state == State::Completed { End::Keep(commit) } else { End::KeepError(commit) }, None)
}

impl<P> Call<P> {
    /// Runs the call in `transaction`: its claim, the writes of `body` and the result are committed
    /// together by the caller, or not at all. Nothing is ever in doubt, and no lease is kept.
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
