//! The engine: takes a call to its answer.

pub(crate) mod admission;
mod background_bounds;
mod builder;
mod busy;
mod call;
mod census;
mod claim;
mod count;
mod duplicate;
mod exit;
mod extensions;
mod finish;
mod flight;
pub(crate) mod followed;
mod inner;
mod instance;
mod keeper;
pub(crate) mod lease;
mod operations;
mod origin;
mod overtaken;
mod owed;
mod owner;
mod purge;
mod record;
mod records;
mod renewals;
mod report;
mod request;
pub(crate) mod retry;
mod run;
mod search;
mod settings;
mod settle;
mod shutdown;
mod store_client;
pub(crate) mod task_state;
mod transaction;
#[cfg(any(feature = "__sql", feature = "testing"))]
mod transaction_attempts;
mod transaction_calls;
mod transaction_end;
mod transaction_first;
#[cfg(any(feature = "__sql", feature = "testing"))]
mod transaction_recorded;
mod unknown_outcome;
mod user_code;
pub(crate) mod verify;
mod view;
mod wait;
mod window;
mod without_lease;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) use admission::{Admission, admit};
pub use builder::Builder;
pub use call::Call;
pub(crate) use count::{count, uncount};
pub use duplicate::DuplicateRun;
pub use extensions::Extensions;
pub use operations::Site;
pub use origin::TraceContext;
pub use purge::PurgeStats;
pub use record::{RecordHandle, Resolution};
pub use records::{RecordSummary, Records};
pub use report::{Report, with_report};
pub(crate) use run::in_its_own_task;
pub use run::{DetachedBody, Run, run, run_detached};
pub use shutdown::ShutdownReport;
pub use transaction::{Begun, InTransaction, begin};
#[cfg(feature = "__sql")]
pub(crate) use transaction_attempts::unknown_by_effect;
#[cfg(any(feature = "__sql", feature = "testing"))]
pub use transaction_attempts::{Attempt, Attempts, unknown_by_key};
#[cfg(feature = "__sql")]
pub use transaction_calls::is_in_body;
#[cfg(any(feature = "__sql", feature = "testing"))]
pub use transaction_calls::{Calls, Lent};
#[cfg(any(feature = "__sql", feature = "testing"))]
pub use transaction_first::FirstResult;
#[cfg(any(feature = "__sql", feature = "testing"))]
pub use transaction_recorded::{First, RecordedFirst, record_first};
pub(crate) use verify::ask;
pub use verify::{Asked, Cleared, NoVerify, Verification, Verified, Verify, verify};
pub use view::{RecordView, Revision};
pub(crate) use without_lease::Unprotected;

pub(crate) use inner::Inner;
use inner::Waiting;
pub(crate) use store_client::StoreClient;

use crate::error::Error;
use crate::key::{IntoKey, Key, KeyHash};
use crate::registry;
use crate::store::{Census, CensusBudget, Scan, Store};

/// The engine: a handle that is cheap to clone. One per store and process is enough. After a
/// `fork`, the child must create a store and an engine of its own: the parent's engine refuses to
/// query the store there.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let engine = Idempotency::new(MemoryStore::new());
/// for _ in 0..2 {
///     let receipt = engine.call("payments.charge", 4711).ttl(Duration::from_secs(86_400)).run(|| async {
///         Ok::<_, Error>("charged once".to_owned())
///     });
///     assert_eq!(receipt.await?, "charged once");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Idempotency {
    pub(crate) inner: Arc<Inner>,
}

impl Idempotency {
    /// Creates an engine on `store` with the default settings.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build_valid()
    }

    /// Returns a builder of an engine on `store`.
    pub fn builder(store: impl Store) -> Builder {
        Builder::new(store)
    }

    /// Creates an engine on the store that `url` names, with the default settings: `memory:`,
    /// `redis://…`, `rediss://…`, `postgres://…`, `mysql://…`, `sqlite:…`, or a scheme that was
    /// [registered](crate::store::register_scheme).
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the scheme is unknown, its feature is off, or the
    /// store is configured so that it cannot keep the promise;
    /// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable) if the store does not answer;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if it is too old.
    ///
    /// ```
    /// # use idempotency::{Error, Idempotency};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let engine = Idempotency::connect("memory:").await?;
    /// assert!(Idempotency::connect("gopher://example.com").await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_builder(url).await?.build()
    }

    /// Like [`connect`](Self::connect), but returns a builder for an engine with settings.
    ///
    /// # Errors
    /// The same as for [`connect`](Self::connect).
    pub async fn connect_builder(url: &str) -> Result<Builder, Error> {
        let refused = |error| match registry::store_name(url) {
            Some(store) => Error::from_store(error, store),
            None => Error::from(error),
        };
        Ok(Builder::of(registry::connect(url).await.map_err(refused)?))
    }

    /// Installs this engine for every call in the process that names none and runs in no future
    /// with an engine of its own ([`with_engine`](crate::WithEngine::with_engine)).
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if an engine is already installed.
    pub fn install(self) -> Result<(), Error> {
        task_state::install(self)
    }

    /// Returns the number of panics of [observers](Builder::observer).
    pub fn observer_panics(&self) -> u64 {
        self.inner.observers.panics()
    }

    /// Returns a call of `operation` with `key`. An invalid key is reported when the call runs.
    pub fn call<K: IntoKey>(&self, operation: &str, key: K) -> Call {
        Call::named(self, operation.into(), Key::of(&key))
    }

    /// Returns a handle to the record of a call. For a key with a [`window`](crate::key::window),
    /// it is the record in the current window.
    pub fn record<K: IntoKey>(&self, operation: &str, key: K) -> RecordHandle {
        RecordHandle::of_call(self.inner.clone(), operation, Key::of(&key))
    }

    /// Returns a handle to the record with this name, which also stands for the scope. It is the
    /// [`key`](RecordView::key) of a view, one that [`find`](Self::find) returned, or one parsed
    /// from its 64 hexadecimal digits.
    pub fn record_by_hash(&self, hash: KeyHash) -> RecordHandle {
        RecordHandle::of_hash(self.inner.clone(), hash)
    }

    /// Returns the names of the records that begin with `prefix`: 8 to 64 hexadecimal digits, of
    /// which errors and logs show twelve. Returns at most three, in their order: more than one
    /// means that more digits are needed. A record that cannot be read is found too.
    ///
    /// Tombstones are found too. A search is several requests on Redis, which goes through the names
    /// of all of its keys.
    ///
    /// # Errors
    /// [`InvalidKey`](crate::ErrorKind::InvalidKey) if `prefix` is not 8 to 64 hexadecimal digits.
    /// The store's errors.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("payments.charge", 7).ttl(Duration::from_secs(60));
    /// call.run(|| async { Ok::<_, Error>(()) }).await?;
    ///
    /// // What an error or a line of a log shows.
    /// let shown = engine.record("payments.charge", 7).hash()?.to_string();
    /// let [hash] = engine.find(&shown).await?[..] else { panic!("more digits are needed") };
    /// engine.record_by_hash(hash).forget().await?;
    /// assert!(engine.find(&shown).await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn find(&self, prefix: &str) -> Result<Vec<KeyHash>, Error> {
        search::find(&self.inner, prefix).await
    }

    /// Lists the records that `scan` describes: those of this engine's
    /// [namespace](Builder::namespace), unless it names another one.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, ErrorAction, Idempotency};
    /// # use idempotency::store::{MemoryStore, Only, Scan};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).on_error(ErrorAction::Hold);
    /// let charged: Result<(), Box<dyn std::error::Error + Send + Sync>> =
    ///     call.run(|| async { Err("no answer".into()) }).await;
    /// assert!(charged.is_err());
    ///
    /// let mut scan = Scan::default();
    /// scan.only = Only::InDoubt;
    /// let mut records = engine.records(scan);
    /// while let Some(record) = records.next().await {
    ///     let record = record?;
    ///     println!("{} {:?}, held by {}", record.operation, record.reason, record.holder);
    /// #   assert_eq!(&*record.operation, "payments.charge");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn records(&self, mut scan: Scan) -> Records {
        scan.namespace.get_or_insert_with(|| self.inner.settings.namespace.clone());
        Records::new(self.inner.clone(), scan)
    }

    /// Counts the records of this engine's [namespace](Builder::namespace) by operation and state,
    /// in one pass over the store, for as long as `budget` allows.
    ///
    /// A census looks at every record of the store: make one when a person asks for it or a scrape
    /// is due, for all of them together, and not in each process. One that was stopped by its budget
    /// says how much of the store it has seen. That, and the number of records that cannot be read, are
    /// about the whole store: what it has of other namespaces is counted by
    /// [`Store::census`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency};
    /// # use idempotency::store::{CensusBudget, MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("payments.charge", 7).ttl(Duration::from_secs(60));
    /// call.run(|| async { Ok::<_, Error>(()) }).await?;
    ///
    /// let census = engine.census(CensusBudget::of(Duration::from_secs(5))).await?;
    /// for group in census.groups() {
    ///     println!("{} {:?}: {} records, {} bytes", group.operation, group.state, group.count, group.bytes);
    /// }
    /// if let (false, Some(percent)) = (census.complete, census.percent) {
    ///     println!("of the first {percent} %");
    /// }
    /// # assert_eq!((census.count(), census.in_doubt()), (1, 0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The store's errors, also where a request goes on for [`claim_timeout`](Builder::claim_timeout)
    /// after the end of the budget, and [`Config`](crate::ErrorKind::Config) in a fork of the
    /// process. Running out of the budget is not an error.
    pub async fn census(&self, budget: CensusBudget) -> Result<Census, Error> {
        census::census(&self.inner, budget).await
    }

    /// Switches off the protection of `operation`, for emergencies. Its bodies run at every call,
    /// without a claim and without a record, and every such call is logged as a warning. In a
    /// transaction of the user's, an `Err` still undoes what the body wrote.
    pub fn disable(&self, operation: &str) {
        self.inner.operations.disable(operation);
    }

    /// Switches the protection of `operation` on again.
    pub fn enable(&self, operation: &str) {
        self.inner.operations.enable(operation);
    }

    /// The number of bodies of this engine that finished after their call had been taken over, or
    /// after their record had been removed.
    pub fn duplicates(&self) -> u64 {
        self.inner.duplicates.load(Ordering::Relaxed)
    }

    /// Statistics about the expired records that the background has removed, and whether it keeps
    /// up. All zero where the store's server removes them itself, where
    /// [`background_purge`](Builder::background_purge) is off, and before the first call.
    pub fn purge_stats(&self) -> PurgeStats {
        self.inner.keeper.purge_stats()
    }
}

impl std::fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idempotency")
            .field("store", &self.inner.store.name())
            .field("namespace", &self.inner.settings.namespace)
            .finish_non_exhaustive()
    }
}
