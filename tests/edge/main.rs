//! Edges: layers outside of the crate that guard calls with the engine.

mod boundary;
mod ends;
mod jobs;
mod mail;
mod outcomes;
mod rooms;
mod scopes;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
mod turns;

use support::{effects, world};
