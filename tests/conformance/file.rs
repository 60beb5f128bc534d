//! The store of the example `custom_store` keeps every rule.

use std::sync::Arc;
use std::time::Duration;

use idempotency::testing::{ClockJump, ManualClock, Subject};
use tempfile::TempDir;

#[path = "../../examples/custom_store/directory.rs"]
mod directory;
#[path = "../../examples/custom_store/file_store.rs"]
mod file_store;

use file_store::FileStore;

struct Files {
    store: Arc<FileStore>,
    clock: ManualClock,
    _directory: TempDir,
}

impl Files {
    fn new() -> Self {
        let (clock, directory) = (ManualClock::new(), tempfile::tempdir().expect("a directory"));
        let store =
            FileStore::open(directory.path(), clock.clone()).expect("the directory can be used");
        Self { store: Arc::new(store), clock, _directory: directory }
    }
}

impl Subject for Files {
    type Store = Arc<FileStore>;

    fn store(&self) -> &Arc<FileStore> {
        &self.store
    }

    async fn second(&self) -> Arc<FileStore> {
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

idempotency::testing::conformance!(|| async { Files::new() });
