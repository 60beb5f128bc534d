//! The inbox: what the broker is answered about each delivery, and the loop that asks.

mod attempts;
mod consumer;
mod deliveries;
#[cfg(feature = "sqlite")]
mod in_transactions;
mod lanes;
mod outages;
mod script;
mod stops;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use support::world;
