//! Removing expired records in the background, where the store's server does not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::settings::Settings;
use crate::clock::Clock;
use crate::store::{DynStore, Purged, StoreError};

/// Between two batches of one look: others want the store too.
const PAUSE: Duration = Duration::from_millis(20);

/// What the background has removed so far. Made by
/// [`Idempotency::purging`](crate::Idempotency::purging).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Purging {
    /// How many records this engine has removed.
    pub removed: u64,
    /// How long the oldest record that is still there had been over when this engine looked last;
    /// `None` when none was, or before the first look. A figure that grows over hours says that
    /// purging does not keep up, or fails. After 10 000 records, a store on a server looks for
    /// older ones than it has come to only once in 60 looks.
    pub lag: Option<Duration>,
    /// How many looks of this engine have failed.
    pub failed: u64,
}

/// The background's work, and what it has done.
pub(crate) struct Purge {
    interval: Duration,
    batch: usize,
    done: Mutex<Purging>,
}

impl Purge {
    /// `None` where nothing has to be removed, or not by this engine.
    pub(crate) fn new(store: &dyn DynStore, settings: &Settings) -> Option<Arc<Self>> {
        let is_wanted = settings.background_purge && store.capabilities().needs_purging;
        let (interval, batch) = (settings.purge_interval, settings.purge_batch);
        is_wanted.then(|| Arc::new(Self { interval, batch, done: Mutex::default() }))
    }

    pub(crate) fn done(&self) -> Purging {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again, until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, store: Arc<dyn DynStore>, clock: Arc<dyn Clock>) {
        loop {
            clock.sleep(self.next_look(&*clock)).await;
            while let Ok(true) = self.look(&store).await {
                clock.sleep(PAUSE).await;
            }
        }
    }

    /// Up to a tenth earlier than asked for: processes that start together should not come
    /// together.
    fn next_look(&self, clock: &dyn Clock) -> Duration {
        let share = clock.monotonic().subsec_micros() % 1_000;
        self.interval.saturating_sub(self.interval / 10 * share / 1_000)
    }

    /// Removes one batch. True when there is more. What a batch neither removes nor puts off is in
    /// somebody's hands, and is left for the next look.
    async fn look(&self, store: &Arc<dyn DynStore>) -> Result<bool, StoreError> {
        let answer = store.clone().purge(self.batch).await;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(Purged { removed, lag, put_off }) => {
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
