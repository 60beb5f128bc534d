//! The whole suite over each wrapper.

use std::time::Duration;

use idempotency::store::{MemoryStore, SqliteStore, Store};
use idempotency::testing::{ClockJump, ManualClock, Subject};
use tempfile::TempDir;

use crate::counting::Counting;
use crate::delaying::Delaying;
use crate::sealing::Sealing;

/// A wrapper around a store in memory.
struct Memory<W> {
    inner: MemoryStore,
    store: W,
    wrap: fn(MemoryStore) -> W,
    clock: ManualClock,
}

impl<W> Memory<W> {
    fn new(wrap: fn(MemoryStore) -> W) -> Self {
        let clock = ManualClock::new();
        let inner = MemoryStore::with_clock(clock.clone());
        Self { store: wrap(inner.clone()), inner, wrap, clock }
    }
}

impl<W: Store> Subject for Memory<W> {
    type Store = W;

    fn store(&self) -> &W {
        &self.store
    }

    async fn second(&self) -> W {
        (self.wrap)(self.inner.clone())
    }

    async fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn jump_clock(&self, jump: ClockJump) -> bool {
        self.clock.jump(jump);
        true
    }
}

/// A wrapper around a store in a file.
struct File {
    store: Sealing<SqliteStore>,
    clock: ManualClock,
    // Removed after the store's connections.
    directory: TempDir,
}

impl File {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = ManualClock::new();
        Self { store: open(&directory, &clock).await, clock, directory }
    }
}

async fn open(directory: &TempDir, clock: &ManualClock) -> Sealing<SqliteStore> {
    let builder = SqliteStore::builder(directory.path().join("records.db")).clock(clock.clone());
    let builder = builder.response_timeout(Duration::from_secs(20));
    Sealing::new(builder.open().await.expect("the file is made"))
}

impl Subject for File {
    type Store = Sealing<SqliteStore>;

    fn store(&self) -> &Self::Store {
        &self.store
    }

    async fn second(&self) -> Self::Store {
        open(&self.directory, &self.clock).await
    }

    async fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn jump_clock(&self, jump: ClockJump) -> bool {
        self.clock.jump(jump);
        true
    }
}

mod counting {
    idempotency::testing::conformance!(|| async { super::Memory::new(super::Counting::new) });
}

mod delaying {
    idempotency::testing::conformance!(|| async { super::Memory::new(super::Delaying::new) });
}

mod sealing_in_memory {
    idempotency::testing::conformance!(|| async { super::Memory::new(super::Sealing::new) });
}

mod sealing_in_a_file {
    idempotency::testing::conformance!(|| async { super::File::new().await });
}
