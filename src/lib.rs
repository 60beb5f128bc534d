#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "http")]
pub use idempotent_runtime::http;
#[cfg(feature = "testing")]
#[doc(inline)]
#[doc = include_str!("testing.md")]
pub use idempotent_runtime::testing;
pub use idempotent_runtime::{
    Builder, Call, Context, Error, ErrorAction, ErrorKind, Idempotency, InCurrentCall, OnConflict,
    OnCrash, OnError, Report, Verdict, WithEngine, with_report,
};
pub use idempotent_runtime::{
    call, clock, edge, error_policy, events, key, record, report, result, step, store, task,
};

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use idempotent_runtime::tx;

/// The name of [`ErrorAction`] in programs that were written for it.
#[doc(hidden)]
pub use idempotent_runtime::ErrorAction as Unstored;

#[doc(hidden)]
pub use idempotent_runtime::private as __private;

#[cfg(feature = "macros")]
#[doc = include_str!("attribute.md")]
pub use idempotent_macros::idempotent;
