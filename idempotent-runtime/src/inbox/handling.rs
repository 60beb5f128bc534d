//! The manner in which a consumer handles its messages.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::consumer::Question;
use super::delivery::Delivery;
use super::failures::FailurePolicy;
use super::handled::Handled;
use super::inbox::{Inbox, Seen};

/// The manner in which the messages of type `M` are handled.
pub(super) trait Handling<M, P>: Send + Sync + 'static {
    /// The error of the handler.
    type Error: fmt::Debug + Send + 'static;
    /// What is kept for all tries of one delivery.
    type Kept: Default + Send + Sync;
    /// True if a message in doubt may have no record.
    const FORGETS_DOUBTS: bool;

    /// Handles `message` once.
    fn handle(
        &self,
        inbox: &Inbox<P>,
        message: &Arc<M>,
        delivery: Delivery<'_>,
        seen: &Seen,
        kept: &Self::Kept,
    ) -> impl Future<Output = Handled<Self::Error>> + Send;

    /// Returns true if it is known what became of a handler that has panicked.
    fn survives_panics(&self) -> bool;
}

/// Handlers whose messages have a record of their own, with a question about those that broke off.
pub(super) struct Recorded<M, H> {
    pub(super) handler: H,
    pub(super) question: Option<Question<M>>,
}

impl<M, P, H, F, E> Handling<M, P> for Recorded<M, H>
where
    M: Send + Sync + 'static,
    P: FailurePolicy<E> + Send + Sync + 'static,
    H: Fn(Arc<M>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: fmt::Debug + Send + 'static,
{
    type Error = E;
    type Kept = ();
    const FORGETS_DOUBTS: bool = false;

    async fn handle(
        &self,
        inbox: &Inbox<P>,
        message: &Arc<M>,
        delivery: Delivery<'_>,
        seen: &Seen,
        (): &(),
    ) -> Handled<E> {
        let handler = || (self.handler)(message.clone());
        match &self.question {
            None => inbox.handle_seen(delivery, handler, seen).await,
            Some(question) => {
                let question = |attempt| question(message.clone(), attempt);
                inbox.handle_verifying_seen(delivery, question, handler, seen).await
            }
        }
    }

    fn survives_panics(&self) -> bool {
        self.question.is_some()
    }
}

/// Handlers whose messages have their record in one transaction with what the handler writes.
#[cfg(feature = "__sql")]
pub(super) struct InTransaction<DB: sqlx::Database, H> {
    pub(super) pool: sqlx::Pool<DB>,
    pub(super) handler: H,
}

#[cfg(feature = "__sql")]
impl<M, P, DB, H, F, E> Handling<M, P> for InTransaction<DB, H>
where
    M: Send + Sync + 'static,
    P: FailurePolicy<E> + Send + Sync + 'static,
    DB: crate::tx::TransactionDatabase,
    H: Fn(crate::tx::OpenTransaction<DB>, Arc<M>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    type Error = E;
    type Kept = super::in_transaction::Counted;
    const FORGETS_DOUBTS: bool = true;

    async fn handle(
        &self,
        inbox: &Inbox<P>,
        message: &Arc<M>,
        delivery: Delivery<'_>,
        seen: &Seen,
        counted: &Self::Kept,
    ) -> Handled<E> {
        let handler = |transaction| (self.handler)(transaction, message.clone());
        inbox.handle_in_seen(&self.pool, delivery, handler, seen, counted).await
    }

    fn survives_panics(&self) -> bool {
        true
    }
}
