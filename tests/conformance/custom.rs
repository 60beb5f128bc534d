//! The store that the documentation of `idempotency::store` shows keeps every rule.

use std::sync::Arc;
use std::time::Duration;

use idempotency::testing::{ClockJump, ManualClock, Subject};

#[path = "../../idempotent-runtime/src/store/custom_store.rs"]
#[expect(unreachable_pub, reason = "the documentation shows a store as a library would export it")]
mod custom_store;

use custom_store::CustomStore;

struct Custom {
    store: Arc<CustomStore>,
    clock: ManualClock,
}

impl Custom {
    fn new() -> Self {
        let clock = ManualClock::new();
        Self { store: Arc::new(CustomStore::new(clock.clone())), clock }
    }
}

impl Subject for Custom {
    type Store = Arc<CustomStore>;

    fn store(&self) -> &Arc<CustomStore> {
        &self.store
    }

    async fn second(&self) -> Arc<CustomStore> {
        Arc::clone(&self.store)
    }

    async fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn jump_clock(&self, jump: ClockJump) -> bool {
        self.clock.jump(jump);
        true
    }
}

idempotency::testing::conformance!(|| async { Custom::new() });
