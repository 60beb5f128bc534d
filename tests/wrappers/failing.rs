//! A store that fails by itself when a call in a transaction ends, as one does whose key service is
//! away.

use std::time::Duration;

use idempotency::store::transaction::{
    AnyConnection, ClaimAnswer, End, TransactionFuture, Transactions,
};
use idempotency::store::{Capabilities, Claim, Facets, Store, StoreError, StoreErrorKind, Token};

/// The failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An error of the store inside is the source of one of its own.
    Translates,
    /// The error of a body cannot be stored.
    StoresNoErrors,
}

#[derive(Clone, Debug)]
pub struct Failing<S> {
    inner: S,
    failure: Failure,
}

impl<S: Store> Failing<S> {
    pub fn new(inner: S, failure: Failure) -> Self {
        Self { inner, failure }
    }

    fn inside(&self) -> &dyn Transactions {
        self.inner.facets().transactions.expect("it is said only of such a store")
    }

    async fn around<T: Send>(
        &self,
        _: idempotency::store::Operation,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        request.await
    }
}

impl<S: Store> Transactions for Failing<S> {
    fn begin<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer> {
        self.inside().begin(connection, claim, patience)
    }

    fn end<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool> {
        Box::pin(async move {
            if self.failure == Failure::StoresNoErrors && matches!(end, End::KeepError(_)) {
                return Err(StoreError::new(
                    StoreErrorKind::Refused,
                    idempotency::store::Operation::Transaction,
                ));
            }
            let ended = self.inside().end(connection, token, end).await;
            ended.map_err(|error| {
                StoreError::new(error.kind(), error.operation()).with_source(error)
            })
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Failing<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none().with_transactions(Some(self))
    }

    crate::all_around!();
}
