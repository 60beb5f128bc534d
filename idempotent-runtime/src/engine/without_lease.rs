//! Bodies that run without a lease, which a shutdown waits for and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Inner;
use super::busy::Busy;
use super::scope::Scope;
use crate::context::Context;
use crate::key::KeyHash;

/// A body that runs without a lease. A shutdown counts it.
pub(super) struct WithoutLease(Arc<Inner>);

impl WithoutLease {
    pub(super) fn enter(engine: &Arc<Inner>) -> Self {
        engine.without_lease.fetch_add(1, Ordering::SeqCst);
        Self(engine.clone())
    }
}

impl Drop for WithoutLease {
    fn drop(&mut self) {
        self.0.without_lease.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A body that runs without any protection, until it has ended. A shutdown waits for it and counts
/// it.
pub(crate) struct Unprotected {
    ended: Arc<AtomicBool>,
    // In this order: a body that is no longer busy is no longer counted either.
    counted: WithoutLease,
    _busy: Busy,
}

impl Unprotected {
    /// Returns `None` if `engine` is closing and accepts no new calls from `scope`.
    pub(crate) fn enter(engine: &Arc<Inner>, scope: &Scope) -> Option<Self> {
        // In this order: a shutdown that begins after the check waits for everything that is busy.
        let busy = engine.keeper.busy();
        let counted = WithoutLease::enter(engine);
        (!scope.is_shut_out(engine)).then(|| Self { ended: Arc::default(), counted, _busy: busy })
    }

    /// Creates the context of the body.
    pub(crate) fn context(&self, operation: &Arc<str>, key: KeyHash) -> Context {
        Context::unprotected(&self.counted.0, operation, key, &self.ended, false)
    }

    /// Creates the context of a body that has the user's transaction.
    pub(super) fn context_in_transaction(&self, operation: &Arc<str>, key: KeyHash) -> Context {
        Context::unprotected(&self.counted.0, operation, key, &self.ended, true)
    }
}

impl Drop for Unprotected {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}
