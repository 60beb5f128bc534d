//! A store that counts the requests to the one inside, as one that reports metrics does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use idempotency::store::{Capabilities, Facets, Operation, Store, StoreError};

/// Nothing of what passes concerns it, so all abilities of the store inside hold for it.
#[derive(Clone, Debug)]
pub struct Counting<S> {
    inner: S,
    requests: Arc<Mutex<BTreeMap<Operation, usize>>>,
}

impl<S> Counting<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, requests: Arc::default() }
    }

    pub fn of(&self, operation: Operation) -> usize {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.get(&operation).copied().unwrap_or(0)
    }

    fn count(&self, operation: Operation) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(operation).or_default() += 1;
    }

    async fn around<T: Send>(
        &self,
        operation: Operation,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.count(operation);
        request.await
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Counting<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn facets(&self) -> Facets<'_> {
        self.inner.facets()
    }

    crate::all_around!();
}
