//! A call whose body may run, and whose record has its result already.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Call;
use super::task_state::TaskState;
use super::transaction::{InClaim, Sought, Unclaimed, seek};
use super::transaction_first::FirstResult;
use crate::error::Error;
use crate::events::Outcome;
use crate::store::{Record, SqlTransaction, Token};
use crate::watch::{BodyWatch, engine_waits};

/// The result of [`record_first`].
#[cfg_attr(
    feature = "testing",
    expect(missing_debug_implementations, reason = "the simulation alone sees it")
)]
pub enum First {
    /// There is a record with a result.
    Answered(Arc<Record>),
    /// The body must run.
    Mine(RecordedFirst),
}

/// A call whose body may run. Its record has its result, and is in the transaction.
#[cfg_attr(
    feature = "testing",
    expect(missing_debug_implementations, reason = "the simulation alone sees it")
)]
#[must_use = "its end is to be reported"]
pub struct RecordedFirst {
    /// An `Err` if the operation is disabled: there is no record then.
    claimed: Result<Box<InClaim>, Box<Unclaimed>>,
    task_state: TaskState,
}

/// Begins `call` in `transaction`, which is the engine's own: whoever gets an error, or an error of
/// the body, rolls it back.
///
/// # Errors
/// Those of [`Call::run_in`].
pub async fn record_first<X>(
    call: Call,
    result: &FirstResult,
    transaction: &mut X,
) -> Result<First, Error>
where
    X: SqlTransaction + ?Sized,
{
    match engine_waits(seek(call.request, Some(result), transaction)).await? {
        Sought::Found(record) => Ok(First::Answered(record)),
        Sought::Run { claimed, task_state } => {
            if let Ok(claim) = &claimed {
                claim.is_recorded();
            }
            Ok(First::Mine(RecordedFirst { claimed, task_state }))
        }
    }
}

impl RecordedFirst {
    /// Returns false if the operation is disabled.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.claimed.is_ok()
    }

    /// The owner of the record, if there is one.
    #[cfg_attr(
        not(feature = "__sql"),
        expect(dead_code, reason = "for transactions that are repeated")
    )]
    pub(crate) fn token(&self) -> Option<Token> {
        self.claimed.as_ref().ok().map(|claim| claim.grant.record.owner)
    }

    /// Returns true if the transaction is marked.
    #[must_use]
    pub fn has_marked(&self) -> bool {
        self.claimed.as_ref().is_ok_and(|claim| claim.has_marked)
    }

    /// Runs the body with the task's state of the call.
    pub fn body<B, F>(&self, body: B) -> impl Future<Output = F::Output> + use<B, F>
    where
        B: FnOnce() -> F,
        F: Future,
    {
        let watch = BodyWatch::begins(&self.task_state);
        self.task_state.clone().wrap(async move { watch.around(body()).await })
    }

    /// Marks the body as ended, whatever becomes of the transaction.
    pub fn body_has_ended(&self) {
        if let Ok(claim) = &self.claimed {
            claim.ended.store(true, Ordering::Release);
        }
    }

    /// Reports the end of the call.
    pub fn end(self, outcome: Outcome) {
        if let Ok(mut claim) = self.claimed {
            claim.report_end(outcome);
        }
    }
}
