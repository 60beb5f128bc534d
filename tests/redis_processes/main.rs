//! Real processes on a real Redis server: many at once, killed at every point of a call, and stopped beyond their lease.

mod agreement;
mod history;
mod kills;
mod scene;
mod stops;
mod worker;
