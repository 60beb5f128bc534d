//! A model of the protocol, checked in every interleaving.
//!
//! Its store is the crate's own `store::transition`. Around it are callers and their engine, a
//! network that loses, delays and repeats, an operator, and time. Each invariant has a name, and
//! each mistake that was ever made has a mutant for which one of them fails.
//! `docs/design/0011-model.md` says what is left out.

mod actions;
mod calls;
mod check;
mod holds;
mod invariants;
mod mutants;
mod protocol;
mod seen;
mod state;
mod store;
mod time;
mod transaction;
