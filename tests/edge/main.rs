//! Edges: layers outside of the crate that guard calls with the engine.

mod boundary;
#[path = "../effects/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod effects;
mod ends;
mod jobs;
mod outcomes;
mod rooms;
mod scopes;
mod turns;
mod world;
