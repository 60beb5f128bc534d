//! A call whose claim, effect and record are in the user's own transaction.
//!
//! Neither coalescing nor leases take part: until the user commits, nothing has happened, and only the database knows
//! whether they did.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::admission::{Judged, judge, new_claim};
use super::call::{Call, Checked, Request};
use super::keeper::Busy;
use super::report::{Observer, Report};
use super::scope::Scope;
use super::{Unprotected, WithoutLease};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::outcome::{
    Answer, CallError, Codec, Ending, ErrorPolicy, Outcome as _, Reader, StoredValue, Writer, stored,
};
use crate::store::transaction::{End, Keep as _};
use crate::store::{Claimed, Commit, CrashPolicy, Grant, Park, Reason, Record, SqlTransaction, State};

tokio::task_local! {
    /// What calls have found or kept in the transaction that the task is in.
    static KEPT: Arc<Kept>;
}

/// What calls have found or kept in a transaction.
#[derive(Default)]
struct Kept {
    record: AtomicBool,
    error: AtomicBool,
}

/// Tells whoever made the transaction that making it again finds the record, if it was committed.
fn note_record() {
    // Without anybody to tell there is nothing to do.
    let _ = KEPT.try_with(|kept| kept.record.store(true, Ordering::Release));
}

/// Tells whoever made the transaction that a call has stored or held an error in it.
fn note_error() {
    let _ = KEPT.try_with(|kept| kept.error.store(true, Ordering::Release));
}

/// What a transaction gave.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) struct Watched<T> {
    pub(crate) output: T,
    /// Whether a call found or kept its record in it.
    pub(crate) has_record: bool,
    /// Whether a call has stored or held an error in it.
    pub(crate) has_error: bool,
}

/// Runs `transaction`, and tells what calls found or kept in it.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) async fn watched<F: Future>(transaction: F) -> Watched<F::Output> {
    let kept = Arc::new(Kept::default());
    let output = KEPT.scope(Arc::clone(&kept), transaction).await;
    let is_set = |flag: &AtomicBool| flag.load(Ordering::Acquire);
    Watched { output, has_record: is_set(&kept.record), has_error: is_set(&kept.error) }
}

/// What [`begin`] found.
#[expect(missing_debug_implementations, reason = "a result of any type is in it, and the expansion alone sees it")]
pub enum Begun<R, P> {
    /// What the call returns.
    Answered(R),
    /// The body is to run.
    Mine(InTransaction<R, P>),
}

/// A call whose body may run, and whose record is in the user's transaction.
#[expect(missing_debug_implementations, reason = "the expansion alone sees it")]
#[must_use = "without `finish` there is no result, and the record that is committed is in doubt"]
pub struct InTransaction<R, P> {
    /// Not where the operation is disabled.
    claimed: Result<Box<InClaim>, Unprotected>,
    scope: Scope,
    writer: Writer<R, P>,
    reader: Reader<R>,
}

/// The claim.
struct InClaim {
    call: Checked,
    grant: Grant,
    observer: Option<Observer>,
    report: Report,
    /// Whether the body is over, for those who ask its [`Context`].
    ended: Arc<AtomicBool>,
    /// A shutdown waits for the body, and counts it.
    _busy: (Busy, WithoutLease),
}

impl Drop for InClaim {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(observer) = self.observer.take() {
            observer.report(self.report.clone());
        }
    }
}

/// Takes the claim of `call` in `transaction`, or answers.
pub async fn begin<R, P, X>(call: Call, codec: Codec<R, P>, transaction: &mut X) -> Begun<R, P>
where
    X: SqlTransaction + ?Sized,
{
    let Codec { writer, reader } = codec;
    let version = call.request.version();
    match seek(call.request, transaction).await {
        Ok(Sought::Found(record)) => {
            note_record();
            Begun::Answered(reader.answer(stored(record, version)))
        }
        Ok(Sought::Run { claimed, scope }) => Begun::Mine(InTransaction { claimed, scope, writer, reader }),
        Err(error) => Begun::Answered(reader.answer(Answer::Refused(error))),
    }
}

enum Sought {
    Found(Arc<Record>),
    Run { claimed: Result<Box<InClaim>, Unprotected>, scope: Scope },
}

async fn seek<X: SqlTransaction + ?Sized>(request: Request, transaction: &mut X) -> Result<Sought, Error> {
    let scope = Scope::current();
    let call = request.check().inspect_err(|error| scope.report(&Report::of_refusal(error)))?;
    let mut report = Report::new(call.operation.clone(), call.key);
    // Of a call that is refused; told again when more is known.
    scope.report(&report);
    if call.windowed.is_some() {
        let detail = "a transaction sees one record, and a key with a window needs two: use a short `ttl`";
        return Err(call.refused(ErrorKind::Unsupported).with_detail(detail));
    }
    let engine = call.engine.clone();
    if scope.is_shut_out(&engine) {
        return Err(call.refused(ErrorKind::ShuttingDown));
    }
    if engine.operations.is_disabled(&call.operation) {
        let Some(unprotected) = Unprotected::enter(&engine, &scope) else {
            return Err(call.refused(ErrorKind::ShuttingDown));
        };
        tracing::warn!(operation = %call.operation, key = %call.key, "the operation is disabled: the body runs unprotected");
        report.bypassed = true;
        scope.report(&report);
        let scope = scope.of_body(Context::unprotected(&engine, &call.operation, call.key));
        return Ok(Sought::Run { claimed: Err(unprotected), scope });
    }
    if scope.context().is_some_and(|context| context.is_running(&engine, &call.key)) {
        return Err(call.refused(ErrorKind::Reentrant));
    }
    engine.at_home().map_err(|error| error.of_record(Some(&call.operation), &call.key))?;
    // No lease is renewed, but expired records are removed from there.
    if let Err(error) = engine.keeper.start() {
        tracing::warn!(%error, "the background thread could not be started: expired records are not removed");
    }
    let busy = engine.keeper.busy();
    if scope.is_shut_out(&engine) {
        return Err(call.refused(ErrorKind::ShuttingDown));
    }
    let mut claim = new_claim(&call)?;
    // A row that is committed without a result belongs to nobody from the start, and nobody runs it again. Nor is a
    // record taken over of an owner outside: its question is not asked here, and its steps are not known.
    claim.lease = Duration::ZERO;
    claim.policy = CrashPolicy::Hold;
    let patience = call.patience().unwrap_or(Duration::ZERO);
    let claimed = transaction.connection().begin(&*engine.store, &claim, patience).await;
    let claimed = claimed.map_err(|error| engine.store_error(error).of_record(Some(&call.operation), &call.key))?;
    let record = match claimed {
        None => {
            let detail = format!("another transaction has held it for {patience:?}");
            return Err(call.refused(ErrorKind::InProgress).with_detail(detail));
        }
        // Others may have kept it waiting for long.
        Some(Claimed::Mine(_)) if scope.is_shut_out(&engine) => {
            let undone = transaction.connection().end(&*engine.store, claim.token, End::Undo).await;
            let error = call.refused(ErrorKind::ShuttingDown);
            return Err(match undone {
                Ok(_) => error,
                Err(undone) => error.with_source(engine.store_error(undone)),
            });
        }
        Some(Claimed::Mine(grant)) => {
            report.attempt = grant.record.attempts;
            let (ended, body) = (Arc::new(AtomicBool::new(false)), WithoutLease::enter(&engine));
            let context = Context::in_transaction(&engine, &call.operation, &grant, ended.clone());
            let (scope, observer) = (scope.of_body(context), scope.observer().cloned());
            let claimed = Ok(Box::new(InClaim { call, grant, observer, report, ended, _busy: (busy, body) }));
            return Ok(Sought::Run { claimed, scope });
        }
        Some(Claimed::Held(record)) => record,
    };
    report.replayed = record.state.is_answer();
    report.attempt = record.attempts;
    scope.report(&report);
    match judge(&call, &record) {
        Judged::Final => Ok(Sought::Found(Arc::new(record))),
        Judged::Refused(error) => Err(error),
        Judged::Busy => {
            let left = record.lease_until.saturating_duration_since(record.read_at);
            let detail = "a call without `tx` holds it";
            Err(call.refused(ErrorKind::InProgress).with_detail(detail).with_retry_after(left))
        }
    }
}

impl<R, P> InTransaction<R, P> {
    /// Runs the body in the scope of the call.
    pub async fn body<F: Future<Output = R>>(&self, body: impl FnOnce() -> F) -> R {
        self.scope.clone().wrap(async move { body().await }).await
    }

    /// Writes the record as the body's result asks for, in the same transaction.
    pub async fn finish<X: SqlTransaction + ?Sized>(self, result: R, transaction: &mut X) -> R {
        let Self { claimed: Ok(claim), scope, writer, reader } = self else { return result };
        let (result, ending) = scope.enter(|| writer.ending(result));
        let (call, token) = (&claim.call, claim.grant.record.owner);
        let is_kept = matches!(ending, Ending::Answer { state: State::Completed, .. });
        let (end, refused) = end_of(call, &claim.grant.record, ending);
        let leaves_record = !matches!(end, End::Undo);
        let ended = transaction.connection().end(&*call.engine.store, token, end).await;
        claim.ended.store(true, Ordering::Release);
        let error = match (ended, refused) {
            (Ok(true), None) => {
                if leaves_record {
                    note_record();
                }
                if leaves_record && !is_kept {
                    note_error();
                }
                return result;
            }
            // The body's own error comes first: it may be what broke the transaction.
            _ if !is_kept => return result,
            (Ok(true), Some(error)) => return reader.answer(Answer::Refused(error)),
            (Ok(false), _) => call
                .refused(ErrorKind::Superseded)
                .with_detail("its record changed inside the transaction: roll the transaction back"),
            (Err(error), _) => call.engine.store_error(error).of_record(Some(&call.operation), &call.key),
        };
        // The caller gets an error, and finds nothing if it commits all the same.
        if transaction.connection().end(&*call.engine.store, token, End::Undo).await.is_err() {
            tracing::debug!(operation = %call.operation, key = %call.key, "the transaction is broken and will not commit");
        }
        reader.answer(Answer::Refused(error))
    }
}

/// What the transaction is told, and the error for the caller if its result cannot be kept.
fn end_of(call: &Checked, record: &Record, ending: Ending) -> (End, Option<Error>) {
    let (state, body) = match ending {
        // Nothing is asked in a transaction.
        Ending::Release | Ending::Unknown { .. } => return (End::Undo, None),
        #[cfg(feature = "http")]
        Ending::NotBegun => return (End::Undo, None),
        #[cfg(feature = "http")]
        Ending::GiveUp => return (End::Hold(Park::own(record.key, record.owner, Reason::Error)), None),
        Ending::Hold => return (End::Hold(Park::own(record.key, record.owner, Reason::Error)), None),
        Ending::Answer { state, body, .. } => (state, body),
    };
    let limit = call.engine.settings.max_result_size;
    let undone = "what the body wrote is undone";
    let body: Bytes = match body {
        Ok(body) if body.len() <= limit => body,
        Ok(body) => {
            let detail = format!("it takes {} bytes and the limit is {limit}; {undone}", body.len());
            return (End::Undo, Some(call.refused(ErrorKind::TooLarge).with_detail(detail)));
        }
        Err(error) => {
            let detail = format!("{error}; {undone}");
            return (End::Undo, Some(call.refused(ErrorKind::Encode).with_detail(detail).with_source(error)));
        }
    };
    let mut commit = Commit::new(record.key, record.owner, body, call.ttl);
    commit.state = state;
    commit.schema = call.version;
    (if state == State::Completed { End::Keep(commit) } else { End::KeepError(commit) }, None)
}

impl<P> Call<P> {
    /// Makes the call in `transaction`: its claim, what `body` writes and the result are committed together by the
    /// caller, or not at all. Nothing is ever in doubt, and no lease is kept.
    ///
    /// Another call of the same key in another transaction waits until this one is over, for as long as
    /// [`on_conflict`](Self::on_conflict) says, and then replays or runs. An `Err` of the body undoes what it wrote,
    /// whatever the caller does then. Where [`on_error`](Self::on_error) stores or holds it, that is in the transaction as
    /// well: who returns the error before the commit has rolled it back, and the next call runs. If the answer to the commit is lost, make the call again with the same key: it
    /// replays if the commit happened, and runs if not. [`in_transaction`](crate::in_transaction) does all that.
    ///
    /// Effects outside of the database are still made once for each attempt.
    ///
    /// The policy is always [`OnCrash::Hold`](crate::OnCrash::Hold), whatever [`on_crash`](Self::on_crash) says: what a
    /// call outside of a transaction has left behind is in doubt here.
    ///
    /// # Errors
    /// The body's own, and [`Error`] converted into `E`: [`InProgress`](ErrorKind::InProgress) when others were not done
    /// in time, [`StoreUnavailable`](ErrorKind::StoreUnavailable) for deadlocks and serialization failures, after which
    /// the whole transaction is rolled back and made again, [`Config`](ErrorKind::Config) when the transaction is one of
    /// another database than the engine's store.
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
