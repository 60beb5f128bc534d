//! A store whose every request takes longer, as one far away does.

use std::time::Duration;

use idempotency::store::{Capabilities, Facets, Store, StoreError};

/// Before each request and after it.
const DELAY: Duration = Duration::from_micros(300);

/// Nothing is at hand far away: results are not answered without a request.
#[derive(Clone, Debug)]
pub struct Delaying<S> {
    inner: S,
}

impl<S> Delaying<S> {
    pub fn new(inner: S) -> Self {
        Self { inner }
    }

    async fn around<T: Send>(
        &self,
        _: idempotency::store::Operation,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        tokio::time::sleep(DELAY).await;
        let answer = request.await;
        tokio::time::sleep(DELAY).await;
        answer
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Delaying<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn facets(&self) -> Facets<'_> {
        let inside = self.inner.facets();
        Facets::none().with_change_feed(inside.change_feed).with_transactions(inside.transactions)
    }

    crate::all_around!();
}
