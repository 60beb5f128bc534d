//! The rules of the HTTP layer, one test or more for each, over real sockets. A test's name begins with the number of its
//! rule. The layer for clients has no numbers: `sending` and `downstream`.

mod client;
mod concurrency;
mod coverage;
mod crash;
mod downstream;
mod ends;
mod handlers;
mod keys;
mod payload;
mod process;
mod replay;
mod round_trips;
mod scripted;
mod security;
mod sending;
mod time;
mod transfer;
mod world;
