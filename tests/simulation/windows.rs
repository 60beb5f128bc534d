//! Keys with a window of time: what their records are called in the log.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use idempotency::Idempotency;
use idempotency::clock::{Clock, Sleep, Timestamp};
use idempotency::key::window;
use idempotency::store::MemoryStore;

use crate::plan::Key;
use crate::process::OPERATION;
use crate::server::Server;

/// What stands between the name of a key and the number of a window.
pub const AT: char = '@';

/// An engine that computes the names of records, at any time.
#[derive(Debug, Default)]
pub struct Windows {
    /// Most runs have no window, and an engine with a store takes as long as a part of a run.
    engine: OnceLock<Idempotency>,
    clock: Still,
    named: Mutex<BTreeSet<(u64, u64)>>,
}

impl Windows {
    /// Names the records of `key` in the windows around `now`.
    pub fn name(&self, key: &Key, now: Timestamp, server: &Server) {
        let Some(length) = key.window else { return };
        let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let current = now.as_millis() / millis;
        for number in current.saturating_sub(1)..=current + 1 {
            if self
                .named
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert((key.number, number))
            {
                self.clock.set(Timestamp::from_millis(number * millis));
                let record = self.engine().record(OPERATION, (key.number, window(length)));
                server.label(
                    record.hash().expect("a number and a window are a key"),
                    &label(key, number),
                );
            }
        }
    }

    fn engine(&self) -> &Idempotency {
        self.engine.get_or_init(|| {
            let store = MemoryStore::with_clock(self.clock.clone());
            Idempotency::builder(store)
                .clock(self.clock.clone())
                .background_purge(false)
                .build()
                .unwrap()
        })
    }
}

/// The name of the record of `key` in a window.
pub fn label(key: &Key, number: u64) -> String {
    format!("{}{AT}{number}", key.label())
}

/// The key and the window of a record; `None` if its key has none.
pub fn of_label(label: &str) -> Option<(&str, u64)> {
    let (key, number) = label.split_once(AT)?;
    Some((key, number.parse().ok()?))
}

/// A clock that stands where it was set.
#[derive(Clone, Debug, Default)]
struct Still(Arc<Mutex<Timestamp>>);

impl Still {
    fn set(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Clock for Still {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(std::future::pending())
    }
}
