//! Servers, worker processes, faults and checks for the project's own tests. Not published, Unix
//! only.
//!
//! - [`server`]: private servers that end with the test, even if it is killed.
//! - [`worker`]: processes that stop at named points, to be killed exactly there.
//! - [`proxy`]: a connection that delays, cuts, resets and swallows on request.
//! - `consuming`: consumers of a broker, their faults, and how messages end then.
//! - [`effects`]: what happened, counted outside the code under test.
//! - [`history`]: checks that what happened was allowed.
//! - [`packages`]: where the clients in other languages are.
//! - [`random`]: choices that a seed repeats.
//! - [`deadline`]: waiting for a condition without a fixed sleep and with a time limit.
#![cfg(unix)]

#[cfg(feature = "consuming")]
pub mod consuming;
pub mod deadline;
pub mod effects;
mod guard;
pub mod history;
pub mod packages;
mod port;
pub mod proxy;
pub mod random;
mod resp;
pub mod server;
mod stop;
pub mod worker;
