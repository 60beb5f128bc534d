//! The memory store keeps every rule.

use std::time::Duration;

use idempotency::store::MemoryStore;
use idempotency::testing::{ClockJump, ManualClock, Subject};

struct Memory {
    store: MemoryStore,
    clock: ManualClock,
}

impl Memory {
    fn new() -> Self {
        let clock = ManualClock::new();
        Self { store: MemoryStore::with_clock(clock.clone()), clock }
    }
}

impl Subject for Memory {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.store
    }

    async fn second(&self) -> MemoryStore {
        self.store.clone()
    }

    async fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn jump_clock(&self, jump: ClockJump) -> bool {
        self.clock.jump(jump);
        true
    }
}

idempotency::testing::conformance!(|| async { Memory::new() });
