//! Counts what bodies do to the world, outside of the code under test.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};

use idempotency::store::MemoryStore;
use idempotency::{Idempotency, WithEngine as _};

/// The world that a body changes.
#[derive(Debug, Default)]
pub struct Effects(AtomicUsize);

impl Effects {
    /// Changes the world once. Gives the number of the change, so that a second run would give
    /// another result.
    pub fn happen(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Makes the same call twice on an engine of its own: one effect, and the second answer is the
/// first.
pub async fn once<T, E>(call: impl AsyncFn(&Effects) -> Result<T, E>) -> T
where
    T: PartialEq + Debug,
    E: Debug,
{
    let effects = Effects::default();
    let (first, second) = async { (call(&effects).await.unwrap(), call(&effects).await.unwrap()) }
        .with_engine(&Idempotency::new(MemoryStore::new()))
        .await;
    assert_eq!(first, second, "a replay gives the stored result");
    assert_eq!(effects.count(), 1, "the body ran once");
    first
}
