//! An engine on a store with faults, and a clock that moves by hand.

use std::sync::Arc;
use std::time::Duration;

use idempotency::edge::{EdgeCall, EdgeResult, End};
use idempotency::key::Key;
use idempotency::record::RecordView;
use idempotency::store::MemoryStore;
use idempotency::testing::{FaultyStore, ManualClock};
use idempotency::{Builder, Error, Idempotency};

use crate::effects::Effects;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const LEASE: Duration = Duration::from_secs(15);

/// How long something may take to happen, in real time.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) clock: ManualClock,
    pub(crate) memory: MemoryStore,
    pub(crate) store: FaultyStore<MemoryStore>,
    pub(crate) engine: Idempotency,
    pub(crate) effects: Arc<Effects>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = ManualClock::new();
        let memory = MemoryStore::with_clock(clock.clone());
        let store = FaultyStore::new(memory.clone());
        let builder = Idempotency::builder(store.clone()).clock(clock.clone()).lease(LEASE);
        let engine = configure(builder).build().expect("the settings are valid");
        Self { clock, memory, store, engine, effects: Arc::default() }
    }

    /// An engine of another process on the same records.
    pub(crate) fn other_process(&self) -> Idempotency {
        Idempotency::builder(self.memory.clone())
            .clock(self.clock.clone())
            .build()
            .expect("the settings are valid")
    }

    pub(crate) fn call(&self) -> EdgeCall {
        call(&self.engine)
    }

    /// A body that changes the world, and returns the number of the change.
    pub(crate) fn effect(&self) -> (usize, End) {
        let number = self.effects.happen();
        (number, EdgeResult::completed(number.to_string()).into())
    }

    pub(crate) async fn record(&self) -> Result<Option<RecordView>, Error> {
        call(&self.other_process()).record().inspect().await
    }
}

/// The call of every test.
pub(crate) fn call(engine: &Idempotency) -> EdgeCall {
    EdgeCall::new(engine, "mail", Key::of("7"), DAY)
}

/// Waits until `condition` is true, for at most a deadline of real time.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Finishes `future` while the time of the world passes.
pub(crate) async fn while_time_passes<F: Future>(world: &World, future: F) -> F::Output {
    let time = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            world.clock.advance(Duration::from_millis(50));
        }
    };
    tokio::select! {
        biased;
        output = future => output,
        () = time => unreachable!("time passes for ever"),
    }
}
