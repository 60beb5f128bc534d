//! Stores with a mistake, as people make them: the suite catches each.

#[path = "broken/flaw.rs"]
mod flaw;
#[path = "broken/store.rs"]
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use flaw::Flaw;
use idempotency::testing::conformance::{Case, cases, run};
use idempotency::testing::{ClockJump, ManualClock, Subject};
use store::{BrokenStore, Shared};

struct Broken {
    flaw: Flaw,
    shared: std::sync::Arc<Shared>,
    store: BrokenStore,
    clock: ManualClock,
}

impl Broken {
    fn new(flaw: Flaw) -> Self {
        let clock = ManualClock::new();
        let shared = Shared::new(clock.clone());
        Self { flaw, store: BrokenStore::new(flaw, &shared), shared, clock }
    }
}

impl Subject for Broken {
    type Store = BrokenStore;

    fn store(&self) -> &BrokenStore {
        &self.store
    }

    async fn second(&self) -> BrokenStore {
        BrokenStore::new(self.flaw, &self.shared)
    }

    async fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn jump_clock(&self, jump: ClockJump) -> bool {
        self.clock.jump(jump);
        true
    }
}

fn passes(flaw: Flaw, case: Case<Broken>) -> bool {
    catch_unwind(AssertUnwindSafe(|| run(|| async { Broken::new(flaw) }, case.1))).is_ok()
}

#[test]
fn a_store_without_a_mistake_passes() {
    let failed: Vec<_> =
        cases().into_iter().filter(|case| !passes(Flaw::None, *case)).map(|case| case.0).collect();
    assert_eq!(failed, [""; 0]);
}

#[test]
fn a_store_that_purges_slowly_passes() {
    let failed: Vec<_> = cases()
        .into_iter()
        .filter(|case| case.0.contains("purge") && !passes(Flaw::PurgesRarely, *case))
        .map(|case| case.0)
        .collect();
    assert_eq!(failed, [""; 0]);
}

#[test]
fn each_mistake_is_caught_by_the_case_that_is_about_it() {
    let cases = cases();
    let mut missed = Vec::new();
    for (flaw, name) in Flaw::ALL {
        let case = cases
            .iter()
            .find(|case| case.0 == name)
            .unwrap_or_else(|| panic!("there is no case {name}"));
        if passes(flaw, *case) {
            missed.push(format!("{flaw:?} passes {name}"));
        } else {
            println!("{flaw:?} is caught by {name}");
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
