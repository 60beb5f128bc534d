#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "http")]
pub use idempotent_runtime::http;
#[cfg(feature = "inbox")]
pub use idempotent_runtime::inbox;
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

/// Pages about the promises, the stores and the work of operators.
// Only for readers: their examples are configuration and sketches, not programs.
#[cfg(all(doc, not(doctest)))]
#[allow(rustdoc::invalid_rust_codeblocks, reason = "sketches leave out what is not their subject")]
pub mod docs {
    #[doc = include_str!("../docs/guarantees.md")]
    pub mod guarantees {}
    #[doc = include_str!("../docs/transactions.md")]
    pub mod transactions {}
    #[doc = include_str!("../docs/http.md")]
    pub mod http {}
    #[doc = include_str!("../docs/messages.md")]
    pub mod messages {}
    #[doc = include_str!("../docs/rabbitmq.md")]
    pub mod rabbitmq {}
    #[doc = include_str!("../docs/nats.md")]
    pub mod nats {}
    #[doc = include_str!("../docs/kafka.md")]
    pub mod kafka {}
    #[doc = include_str!("../docs/sqs.md")]
    pub mod sqs {}
    #[doc = include_str!("../docs/operators.md")]
    pub mod operators {}
    #[doc = include_str!("../docs/redis.md")]
    pub mod redis {}
    #[doc = include_str!("../docs/postgres.md")]
    pub mod postgres {}
    #[doc = include_str!("../docs/mysql.md")]
    pub mod mysql {}
    #[doc = include_str!("../docs/sqlite.md")]
    pub mod sqlite {}
}

/// The example of the page about messages is a program.
#[cfg(all(doctest, feature = "inbox"))]
#[doc = include_str!("../docs/messages.md")]
struct Messages;
