//! Counts the calls that were polled, and the ends that their engines report.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use idempotency::events::{Event, Interest, Observer, What};

/// The calls of all processes, also of those that died: there the future of a call is dropped.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    polled: AtomicUsize,
    ended: AtomicUsize,
}

impl Ends {
    /// A call is polled from now on.
    pub fn begins(&self) {
        self.0.polled.fetch_add(1, Ordering::Relaxed);
    }

    /// What is not as it should be when all calls are over.
    pub fn wrong(&self) -> Option<String> {
        let polled = self.0.polled.load(Ordering::Relaxed);
        let ended = self.0.ended.load(Ordering::Relaxed);
        (polled != ended).then(|| format!("{polled} calls were polled, and {ended} ends reported"))
    }
}

impl Observer for Ends {
    fn interest(&self) -> Interest {
        Interest::FINISHED
    }

    fn observe(&self, event: &Event<'_>) {
        if let What::Finished { .. } = event.what {
            self.0.ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}
