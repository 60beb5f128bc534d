//! The engine on a real Redis, with faults between them. Effects are lines in a file outside of the code under test.

mod costs;
mod faults;
mod outages;
mod setup;
mod waiters;
