#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "http")]
pub use idempotent_runtime::http;
#[cfg(feature = "testing")]
#[doc(inline)]
#[doc = include_str!("testing.md")]
pub use idempotent_runtime::testing;
pub use idempotent_runtime::{
    Builder, Call, CallError, Context, Decision, DuplicateRun, Error, ErrorAction, ErrorKind,
    ErrorPolicy, Fingerprint, Idempotency, InCurrentCall, NoVerify, OnConflict, OnCrash, OnError,
    PurgeStats, RecordHandle, RecordView, Report, Resolution, Revision, Run, ShutdownReport, State,
    Step, StepBody, StepOnce, StepRetried, StepRetry, StepRun, StoredValue, Upgrade, Verdict,
    Verify, WithEngine, clock, key, store, task, with_report,
};

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use idempotent_runtime::{OpenTransaction, TransactionDatabase, in_transaction};

#[doc(hidden)]
pub use idempotent_runtime::private as __private;

#[cfg(feature = "macros")]
#[doc = include_str!("attribute.md")]
pub use idempotent_macros::idempotent;
