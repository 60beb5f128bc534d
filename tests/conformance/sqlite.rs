//! The SQLite store keeps every rule, on a file.

use std::time::Duration;

use idempotency::store::SqliteStore;
use idempotency::testing::{ClockJump, ManualClock, Subject};
use tempfile::TempDir;

struct Sqlite {
    store: SqliteStore,
    clock: ManualClock,
    // Removed after the store's connections.
    directory: TempDir,
}

impl Sqlite {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = ManualClock::new();
        Self { store: open(&directory, &clock).await, clock, directory }
    }
}

async fn open(directory: &TempDir, clock: &ManualClock) -> SqliteStore {
    let builder = SqliteStore::builder(directory.path().join("records.db")).clock(clock.clone());
    builder.response_timeout(Duration::from_secs(20)).open().await.expect("the file is made")
}

impl Subject for Sqlite {
    type Store = SqliteStore;

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    async fn second(&self) -> SqliteStore {
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

idempotency::testing::conformance!(|| async { Sqlite::new().await });
