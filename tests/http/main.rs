//! The rules of the HTTP layer, one test or more for each, over real sockets. A test's name begins with the number of its
//! rule. The layer for clients has no numbers: `sending` and `downstream`.
//!
//! Beside the rules: a fleet of servers that are killed, requests that never become whole, round trips and memory.
//! `IDEMPOTENCY_LONG` makes fleet and memory ten times as large, `IDEMPOTENCY_SEED` repeats the choices of the fleet.

mod charges;
mod client;
mod concurrency;
mod coverage;
mod crash;
mod downstream;
mod ends;
mod fleet;
mod handlers;
mod hooks;
mod keys;
mod lengths;
mod payload;
mod peers;
mod process;
mod replay;
mod resident_memory;
mod round_trips;
mod scripted;
mod security;
mod sending;
mod time;
mod transfer;
mod unfinished;
mod world;
