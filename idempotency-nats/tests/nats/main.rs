//! Streams of a real NATS server: what the adapter answers, what it leaves, and what survives when
//! processes, connections, the server and the store do not.
//!
//! `IDEMPOTENCY_LONG` kills ten times as many workers.

mod answers;
mod configuration;
mod dead_letters;
mod example;
mod fleet;
mod keys;
mod kills;
mod outages;
mod scene;
mod stops;
mod transactions;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../../tests/support/warnings.rs"]
mod warnings;
mod wire;
mod worker;
