//! The rules of the HTTP layer, one test or more for each, over real sockets. A test's name begins
//! with the number of its rule. The layer for clients has no numbers: `sending` and `downstream`.
//!
//! Beside the rules: a fleet of servers that are killed, requests that never become whole, round
//! trips and memory. `IDEMPOTENCY_LONG` makes fleet and memory ten times as large,
//! `IDEMPOTENCY_SEED` repeats the choices of the fleet.

mod body_keys;
mod breaks;
mod charges;
mod client;
mod concurrency;
mod coverage;
mod crash;
mod downstream;
mod ends;
mod errors_inside;
mod fleet;
mod framing;
mod handlers;
mod helpers;
mod hooks;
mod keys;
mod layers;
mod lengths;
mod many_headers;
mod memory;
mod passed_on;
mod payload;
mod peers;
mod process;
mod questions;
mod readiness;
mod replay;
mod resident_memory;
mod round_trips;
mod routes;
mod scripted;
mod security;
mod sending;
mod statuses;
mod time;
mod transfer;
mod unfinished;
mod world;
