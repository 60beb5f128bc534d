//! Removes expired records in the background, where the store's server does not.

use std::sync::Arc;
use std::time::Duration;

use super::settings::Settings;
use super::store_client::StoreClient;
use crate::clock::Clock;
use crate::events::What;
use crate::lock::Mutex;
use crate::store::{PurgeOutcome, StoreError};

/// The pause between two batches of one sweep: others use the store too.
const PAUSE: Duration = Duration::from_millis(20);

/// Statistics of the background purge. Returned by
/// [`Idempotency::purge_stats`](crate::Idempotency::purge_stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeStats {
    /// The number of records that this engine has removed.
    pub removed: u64,
    /// The time by which the oldest expired record was overdue at this engine's last sweep; `None`
    /// if there was none, or before the first sweep. A value that grows over hours means that
    /// purging does not keep up, or fails. After 10 000 records, a store on a server checks for
    /// records older than those it has reached only once in 60 sweeps.
    pub lag: Option<Duration>,
    /// The number of this engine's sweeps that have failed.
    pub failed: u64,
}

/// The background's task, and its statistics.
pub(crate) struct Purge {
    interval: Duration,
    batch: usize,
    done: Mutex<PurgeStats>,
}

impl Purge {
    /// Returns `None` if nothing has to be removed, or not by this engine.
    pub(crate) fn new(store: &StoreClient, settings: &Settings) -> Option<Arc<Self>> {
        let is_wanted = settings.background_purge && store.capabilities().needs_purging;
        let (interval, batch) = (settings.purge_interval, settings.purge_batch);
        is_wanted.then(|| Arc::new(Self { interval, batch, done: Mutex::default() }))
    }

    pub(crate) fn done(&self) -> PurgeStats {
        *self.done.lock()
    }

    /// Sweeps again and again, until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, store: StoreClient, clock: Arc<dyn Clock>) {
        loop {
            clock.sleep(self.next_round(&*clock)).await;
            while let Ok(true) = self.look(&store).await {
                clock.sleep(PAUSE).await;
            }
        }
    }

    /// The time until the next sweep, up to a tenth shorter than configured: processes that start
    /// together should not sweep together.
    fn next_round(&self, clock: &dyn Clock) -> Duration {
        let share = clock.monotonic().subsec_micros() % 1_000;
        self.interval.saturating_sub(self.interval / 10 * share / 1_000)
    }

    /// Removes one batch. Returns true if there is more. Records that a batch neither removes nor
    /// puts off are locked by others, and are left for the next sweep.
    async fn look(&self, store: &StoreClient) -> Result<bool, StoreError> {
        let answer = store.purge(self.batch).await;
        tell(store, &answer);
        let mut done = self.done.lock();
        match answer {
            Ok(PurgeOutcome { removed, lag, put_off }) => {
                done.removed += removed as u64;
                done.lag = lag;
                tracing::debug!(
                    store = store.name(),
                    removed,
                    ?lag,
                    "expired records were removed"
                );
                Ok(removed >= self.batch || lag.is_some() && removed + put_off > 0)
            }
            Err(error) => {
                done.failed += 1;
                tracing::warn!(store = store.name(), %error, "expired records could not be removed");
                Err(error)
            }
        }
    }
}

/// Reports a batch, before the statistics are locked.
fn tell(store: &StoreClient, answer: &Result<PurgeOutcome, StoreError>) {
    let what = match answer {
        Ok(PurgeOutcome { removed, lag, .. }) => {
            What::Purged { store: store.name(), removed: *removed as u64, lag: *lag }
        }
        Err(_) => What::PurgeFailed,
    };
    store.observers().tell(None, None, what);
}
