//! The rules of the HTTP layer, one test or more for each, over real sockets. A test's name begins with the number of its
//! rule.

mod client;
mod concurrency;
mod coverage;
mod crash;
mod ends;
mod handlers;
mod keys;
mod payload;
mod process;
mod replay;
mod security;
mod time;
mod transfer;
mod world;
