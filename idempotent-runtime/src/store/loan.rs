//! The user's transaction, borrowed for one phase of a call: before the body, or after it.

use std::fmt;
use std::time::Duration;

use super::transaction::{ClaimAnswer, End, TransactionConnection, TransactionFuture};
use super::{Claim, Commit, DynStore, SqlTransaction, Token};

/// A transaction whose type is erased. The expansion requires the bound once, on what the user
/// wrote, so a mistake is a single error; and the phases are compiled once, not for each type of
/// transaction.
pub struct Loan<'a>(&'a mut dyn TransactionConnection);

impl<'a> Loan<'a> {
    /// Borrows the transaction on `connection` for one phase.
    pub(crate) fn of(connection: &'a mut dyn TransactionConnection) -> Self {
        Self(connection)
    }
}

#[diagnostic::do_not_recommend]
impl SqlTransaction for Loan<'_> {
    type Connection = Self;

    fn connection(&mut self) -> &mut Self {
        self
    }
}

impl TransactionConnection for Loan<'_> {
    fn place(&self) -> usize {
        self.0.place()
    }

    fn begin<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer> {
        self.0.begin(store, claim, patience)
    }

    fn record_first<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        result: &'a Commit,
        patience: Duration,
    ) -> TransactionFuture<'a, Option<ClaimAnswer>> {
        self.0.record_first(store, claim, result, patience)
    }

    fn end<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool> {
        self.0.end(store, token, end)
    }

    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> TransactionFuture<'a, ()> {
        self.0.set_savepoint(name)
    }

    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> TransactionFuture<'a, ()> {
        self.0.end_savepoint(name, undoes)
    }
}

impl fmt::Debug for Loan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loan")
    }
}
