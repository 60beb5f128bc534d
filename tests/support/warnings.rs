//! What a test's thread logs as a warning.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

thread_local! {
    static HEARD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The warnings of this thread since it listens.
pub struct Warnings {
    heard_before: usize,
}

impl Warnings {
    /// The listener is one for the whole process. With one for each thread, a thread without any
    /// that comes first to a place that warns would switch that place off for all.
    pub fn listen() -> Self {
        static LISTENER: Once = Once::new();
        LISTENER.call_once(|| {
            tracing::subscriber::set_global_default(Listener).expect("nobody else listens");
        });
        Self { heard_before: HEARD.with_borrow(Vec::len) }
    }

    pub fn mention(&self, part: &str) -> bool {
        self.count(part) > 0
    }

    /// How many mention it.
    pub fn count(&self, part: &str) -> usize {
        HEARD.with_borrow(|heard| {
            heard.iter().skip(self.heard_before).filter(|warning| warning.contains(part)).count()
        })
    }
}

struct Listener;

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, "{value:?} ");
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        HEARD.with_borrow_mut(|heard| heard.push(message));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
