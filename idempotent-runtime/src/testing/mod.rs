//! For tests of services and of stores: a clock that moves by hand, and the suite that every store must pass.

mod manual_clock;

pub use manual_clock::ManualClock;
