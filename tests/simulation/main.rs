//! A simulation: several processes with the real engine on one store, each behind a link that
//! loses, delays, repeats and reorders, with crashes, stalls and operators, on a clock that is not
//! real. One seed decides everything, and a run can be repeated: see
//! `docs/design/0013-simulation.md`.
//!
//! `IDEMPOTENCY_SEED` runs one seed and prints what happened in it, `IDEMPOTENCY_LONG` a million of
//! them.

mod body;
mod clock;
mod ends;
mod happened;
mod inbox;
mod life;
mod link;
mod liveness;
mod log;
mod mutant;
mod mutants;
mod operator;
mod outside;
mod plan;
mod process;
mod rules;
mod run;
mod seeds;
mod server;
mod transactions;
mod windows;
mod world;
