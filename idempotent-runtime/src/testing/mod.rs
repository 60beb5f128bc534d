//! For tests of services and of stores: a clock that moves by hand, and the suite that every store must pass.

#[doc(hidden)]
pub mod conformance;
mod manual_clock;
mod subject;

#[doc(inline)]
pub use crate::__conformance as conformance;
pub use manual_clock::ManualClock;
pub use subject::{ClockJump, Subject};
