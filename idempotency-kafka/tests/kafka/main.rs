//! Topics of Kafka: what the adapter stores, what it leaves, and what survives when processes,
//! connections, brokers and the store do not.
//!
//! The broker is that of librdkafka's own tests, which is on a real port: it has groups, and fails on
//! request. `IDEMPOTENCY_KAFKA_URL` names another one for the tests that need no faults of it.
//! `IDEMPOTENCY_LONG` kills ten times as many workers. What takes minutes is below `minutes`, and runs in
//! the long version of the test command.

mod cluster;
mod configuration;
mod dead_letters;
mod example;
mod keys;
mod lanes;
mod long;
mod minutes;
mod scene;
mod transactions;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../../tests/support/warnings.rs"]
mod warnings;
mod wire;
mod worker;
