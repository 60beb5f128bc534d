//! What is special about the SQLite store.

mod fences;
mod files;
mod formats;
mod given;
mod helpers;
mod late_retries;
mod migrations;
mod purging;
mod renewals;
mod runtimes;
mod statements;
mod steps;
mod world;
