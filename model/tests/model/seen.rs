//! The events that happened in a check, so that none passes because nothing can happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Replayed,
    InDoubt,
    Resolved,
    /// A commit arrived after its sender was gone.
    LateCommit,
    /// A commit was refused, because another caller is the owner.
    Overtaken,
    /// The body ran again after its record had expired.
    RanAgain,
}

impl Event {
    pub const ALL: [Self; 6] = [
        Self::Replayed,
        Self::InDoubt,
        Self::Resolved,
        Self::LateCommit,
        Self::Overtaken,
        Self::RanAgain,
    ];
}

/// The events that were seen. Kept outside of the states: there would be many more if each knew its
/// past.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<AtomicU8>);

impl Seen {
    pub fn note(&self, event: Event) {
        self.0.fetch_or(1 << event as u8, Ordering::Relaxed);
    }

    pub fn missing(&self) -> Vec<Event> {
        let bits = self.0.load(Ordering::Relaxed);
        Event::ALL.into_iter().filter(|event| bits & (1 << *event as u8) == 0).collect()
    }
}
