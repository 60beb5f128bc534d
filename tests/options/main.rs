//! What each option of the attribute does, seen from outside.

mod arguments;
mod conflicts_and_crashes;
#[path = "../support/effects.rs"]
mod effects;
mod engines;
mod errors;
mod identity;
mod keys;
mod names;
mod questions;
mod scopes_and_fingerprints;
mod times;
mod versions;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use effects::{Effects, once};
use idempotency::record::{RecordHandle, State};
use idempotency::store::{MemoryStore, Store as _};
use idempotency::testing::ManualClock;
use idempotency::{
    Context, Error, ErrorAction, ErrorKind, Idempotency, OnConflict, OnError, WithEngine as _,
    idempotent, with_report,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    user: String,
    tenant: Option<String>,
}

fn order() -> Order {
    Order { id: 7, user: "ada".to_owned(), tenant: Some("eu".to_owned()) }
}

fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

/// The state of the record, if there is one.
async fn state(record: RecordHandle) -> Option<State> {
    record.inspect().await.unwrap().map(|view| view.state)
}
