//! What test programs share: a world on the embedded store, with faults and a clock that moves by
//! hand, and what bodies do in it.

pub mod effects;
pub mod faults;
pub mod ledger;
pub mod world;
