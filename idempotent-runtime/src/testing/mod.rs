//! Tools for tests of services and of stores: repeated, concurrent and cancelled calls, a
//! fault-injecting store, a manual clock, and `conformance!`, the suite that a custom store must
//! pass.

#[doc(hidden)]
pub mod conformance;
mod crashes;
mod faulty_store;
mod manual_clock;
mod retries;
mod subject;

#[doc(inline)]
pub use crate::__conformance as conformance;
pub use crashes::crash_at_every_await;
pub(crate) use crashes::spend_budget;
pub use faulty_store::{Fault, FaultyStore, Gate};
pub use manual_clock::ManualClock;
pub use retries::{assert_runs_once, run_concurrently};
pub use subject::{ClockJump, Subject};
