//! The end of a call in the user's own transaction: what it leaves there.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::request::CheckedCall;
use super::transaction::{InClaim, InTransaction, Unclaimed};
use crate::error::{Error, ErrorKind};
use crate::events::Outcome;
use crate::outcome::{Answer, Ending};
use crate::store::transaction::{End, TransactionConnection as _, is_over};
use crate::store::{Commit, Park, Reason, Record, SqlTransaction, State, StoreError, Token};
use crate::watch::{BodyWatch, engine_waits};

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
    pub(super) fn report_end(&mut self, outcome: Outcome) {
        if let Some(exit) = self.exit.take() {
            exit.end(outcome);
        }
    }

    /// Records for the creator of the transaction that the record has its result.
    #[cfg(any(feature = "__sql", feature = "testing"))]
    pub(super) fn is_recorded(&self) {
        self.leaves(Leaves::Result);
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

impl<R, P> InTransaction<R, P> {
    /// Runs the body with the task's state of the call.
    pub async fn body<F: Future<Output = R>>(&self, body: impl FnOnce() -> F) -> R {
        let watch = BodyWatch::begins(&self.task_state);
        self.task_state.clone().wrap(async move { watch.around(body()).await }).await
    }

    /// Writes the record in the same transaction, as the body's result requires.
    pub async fn finish<X: SqlTransaction + ?Sized>(self, result: R, transaction: &mut X) -> R {
        engine_waits(self.end(result, transaction)).await
    }

    async fn end<X: SqlTransaction + ?Sized>(self, result: R, transaction: &mut X) -> R {
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
        let is_kept = matches!(
            ending,
            Ending::Answer { state: State::Completed, .. }
                | Ending::Reported { state: State::Completed, .. }
        );
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

/// The message of the kind is about a body that leaves a marker. Here it leaves nothing.
const TOO_LARGE: (&str, &str) = (
    "the body ran and its result is larger than the limit",
    "return a smaller result or raise `max_result_size`",
);

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
    call.store_error(error).with_text(happened, advice).rolled_back(true)
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
        Ending::Release | Ending::Dismiss | Ending::NotBegun | Ending::Unknown { .. } => {
            return (End::Undo, None);
        }
        Ending::Hold | Ending::GiveUp => {
            return (End::Hold(Park::own(record.key, record.owner, Reason::Error)), None);
        }
        Ending::Answer { state, body, .. } => (state, body),
        Ending::Reported { state, body, .. } => (state, Ok(body)),
    };
    let limit = call.engine.settings.max_result_size;
    let undone = "what the body wrote is undone";
    let body: Bytes = match body {
        Ok(body) if body.len() <= limit => body,
        Ok(body) => {
            let detail =
                format!("it takes {} bytes and the limit is {limit}; {undone}", body.len());
            let (happened, advice) = TOO_LARGE;
            let error = call.refused(ErrorKind::TooLarge).with_text(happened, advice);
            return (End::Undo, Some(error.with_detail(detail).rolled_back(false)));
        }
        Err(error) => {
            let detail = format!("{error}; {undone}");
            let error = call.refused(ErrorKind::Encode).with_detail(detail).with_source(error);
            return (End::Undo, Some(error.rolled_back(false)));
        }
    };
    let mut commit = Commit::new(record.key, record.owner, body, call.ttl);
    commit.state = state;
    commit.schema = call.version;
    (if state == State::Completed { End::Keep(commit) } else { End::KeepError(commit) }, None)
}
