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
pub mod edge;
mod encoding;
mod engine;
mod error;
pub mod events;
mod fingerprint;
mod first_poll;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "inbox")]
pub mod inbox;
pub mod key;
mod lock;
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
#[cfg(feature = "__external")]
mod runtime;
#[cfg(feature = "__sql")]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod steps;
pub mod store;
pub mod task;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "memory", feature = "__external"))]
mod waiters;
#[cfg(feature = "testing")]
mod watch;
#[cfg(not(feature = "testing"))]
#[path = "no_watch.rs"]
mod watch;

pub use context::Context;
pub use engine::{Builder, Call, Idempotency, Report, with_report};
pub use error::{Error, ErrorKind};
pub use policy::{ErrorAction, OnConflict, OnCrash, OnError, Verdict};
pub use task::{InCurrentCall, WithEngine};

/// The types of a call that is being made, and what `detach` and `verify` require.
pub mod call {
    pub use crate::argument::{Detachable, DetachableCopy};
    pub use crate::engine::{DetachedBody, NoVerify, Run, Verification, Verify, verify};
}

/// What may decide about the `Err` of a body, beside [`OnError`].
pub mod error_policy {
    pub use crate::outcome::{Decision, ErrorPolicy};
}

/// Records, as operators see and resolve them.
pub mod record {
    pub use crate::engine::{
        RecordHandle, RecordSummary, RecordView, Records, Resolution, Revision, TraceContext,
    };
    pub use crate::steps::{StepOutcome, StepView};
    pub use crate::store::{Reason, State};
}

/// Reports of an engine about its background, its shutdown and its duplicate runs.
pub mod report {
    pub use crate::engine::{DuplicateRun, PurgeStats, ShutdownReport};
}

/// What a guarded function may return.
pub mod result {
    pub use crate::outcome::{CallError, Outcome, StoredError, StoredValue, Upgrade};
}

/// Steps of a body, which [`Context::step`](crate::Context::step) creates.
pub mod step {
    pub use crate::steps::{Step, StepBody, StepOnce, StepRetried, StepRetry, StepRun};
}

/// Calls in a transaction of the user's.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub mod tx {
    pub use crate::sql::{OpenTransaction, TransactionDatabase, in_transaction};
    pub use crate::store::SqlTransaction;
}
