//! The engine and the stores of the crate [`idempotency`](https://docs.rs/idempotency). Depend on
//! that crate, not on this one.
#![warn(clippy::disallowed_methods)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod argument;
mod boot_time;
mod canonical;
#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql"))]
mod certificates;
pub mod clock;
mod context;
mod encoding;
mod engine;
mod error;
mod fingerprint;
mod first_poll;
#[cfg(feature = "http")]
pub mod http;
pub mod key;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "near-cache")]
mod near_cache;
#[cfg(not(feature = "near-cache"))]
#[path = "no_near_cache.rs"]
mod near_cache;
mod outcome;
mod paused;
mod policy;
#[cfg(feature = "postgres")]
mod postgres;
#[doc(hidden)]
pub mod private;
#[cfg(feature = "redis")]
mod redis;
mod registry;
#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod runtime;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod steps;
pub mod store;
pub mod task;
#[cfg(feature = "testing")]
pub mod testing;

pub use context::Context;
pub use engine::{
    Builder, Call, DuplicateRun, Idempotency, NoVerify, PurgeStats, RecordHandle, RecordView,
    Report, Resolution, Revision, Run, ShutdownReport, Verify, with_report,
};
pub use error::{Error, ErrorKind};
pub use fingerprint::Fingerprint;
pub use outcome::{CallError, Decision, ErrorPolicy, StoredValue, Upgrade};
pub use policy::{ErrorAction, OnConflict, OnCrash, OnError, Verdict};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use sql::{OpenTransaction, TransactionDatabase, in_transaction};
pub use steps::{Step, StepBody, StepOnce, StepRetried, StepRetry, StepRun};
pub use store::State;
pub use task::{InCurrentCall, WithEngine};
