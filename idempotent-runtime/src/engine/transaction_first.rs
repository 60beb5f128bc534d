//! A call whose record has its result before its body runs.
//!
//! That is possible in a transaction that is the engine's own from its begin to its end: nothing of it
//! is seen before the commit, and if the body fails, the record is rolled back with what the body
//! wrote. It saves the second write of the record, and the savepoints.

use std::time::Duration;

use bytes::Bytes;

use super::request::CheckedCall;
use crate::store::transaction::{ClaimAnswer, End, TransactionConnection as _};
use crate::store::{
    Claim, ClaimOutcome, Commit, Operation, SqlTransaction, State, StoreError, StoreErrorKind,
};

/// The result that a record gets before its body runs.
#[derive(Clone, Debug)]
pub struct FirstResult {
    /// [`State::Completed`] or [`State::Failed`].
    pub state: State,
    /// The encoded result.
    pub body: Bytes,
    /// The retention, in place of the call's.
    pub ttl: Option<Duration>,
}

impl FirstResult {
    fn commit(&self, call: &CheckedCall, claim: &Claim) -> Commit {
        let ttl = self.ttl.map_or(call.ttl, |ttl| ttl.max(call.least_ttl));
        let mut commit = Commit::new(claim.key, claim.token, self.body.clone(), ttl);
        commit.state = self.state;
        commit.schema = call.version;
        commit
    }
}

/// Begins the call in `transaction`, and gives its record the result. Also returns whether the store
/// did that in its own way, which marks the transaction. After an error the transaction is to be
/// rolled back.
pub(super) async fn begin_with_result<X: SqlTransaction + ?Sized>(
    call: &CheckedCall,
    first: &FirstResult,
    claim: &Claim,
    patience: Duration,
    transaction: &mut X,
) -> Result<(ClaimAnswer, bool), StoreError> {
    let (store, result) = (call.engine.store.in_transaction(), first.commit(call, claim));
    let connection = transaction.connection();
    if let Some(answer) = connection.record_first(store, claim, &result, patience).await? {
        return Ok((answer, true));
    }
    let answer = connection.begin(store, claim, patience).await?;
    if matches!(answer.claimed, Some(ClaimOutcome::Granted(_)))
        && !connection.end(store, claim.token, End::Keep(result)).await?
    {
        return Err(StoreError::new(StoreErrorKind::Unavailable, Operation::Transaction)
            .with_detail("its record changed inside the transaction that had claimed it"));
    }
    Ok((answer, false))
}
