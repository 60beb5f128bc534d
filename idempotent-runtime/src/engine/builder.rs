//! The builder of an engine.

#[cfg(feature = "testing")]
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::duplicate::DuplicateRun;
use super::origin::TraceContext;
use super::settings::Settings;
use super::{Idempotency, Inner};
use crate::clock::{Clock, Randomness, SystemClock, SystemRandomness};
use crate::error::Error;
use crate::events::Observer;
use crate::policy::OnConflict;
use crate::store::{DynStore, Store};

/// Builds an [`Idempotency`]. Created by [`Idempotency::builder`].
///
/// ```
/// use std::time::Duration;
/// use idempotency::{Error, Idempotency, OnConflict, store::MemoryStore};
///
/// # fn main() -> Result<(), Error> {
/// let engine = Idempotency::builder(MemoryStore::new())
///     .namespace("shop")
///     .lease(Duration::from_secs(30))
///     .on_conflict(OnConflict::Wait(Duration::from_secs(10)))
///     .build()?;
///
/// // A bad setting is an error here, not in a call.
/// assert!(Idempotency::builder(MemoryStore::new()).lease(Duration::ZERO).build().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "`build` makes the engine"]
pub struct Builder {
    store: Arc<dyn DynStore>,
    clock: Arc<dyn Clock>,
    randomness: Arc<dyn Randomness>,
    settings: Settings,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("store", &DynStore::name(&*self.store))
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(store: impl Store) -> Self {
        Self::of(Arc::new(store))
    }

    pub(super) fn of(store: Arc<dyn DynStore>) -> Self {
        Self {
            store,
            clock: Arc::new(SystemClock::new()),
            randomness: Arc::new(SystemRandomness),
            settings: Settings::default(),
        }
    }

    /// Sets the namespace: 1 to 64 characters of `a-z 0-9 . _ -`. It separates the records of
    /// services that share a store, and the keys that they [derive](crate::Context::derive_key) for
    /// a service that both of them call. The default is `"default"`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.settings.namespace = namespace.into().into();
        self
    }

    /// Sets the name of this process on the records of its claims: 1 to 64 bytes without control
    /// characters, such as the name of its pod. It shows operators whose logs to read when a
    /// call is in doubt, see [`RecordView::holder`](crate::record::RecordView::holder), and is never
    /// compared.
    /// The default is the host name and the process ID, such as `shop-6c9f/1234`.
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.settings.instance = instance.into().into();
        self
    }

    /// Sets where the trace of a call is taken from. Each claim writes it on its record, where
    /// operators find it as [`RecordView::trace`](crate::record::RecordView::trace). A text that is longer
    /// than 64 bytes or has control characters is left out. By default, records have no trace.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let traceparent = || Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    /// let engine = Idempotency::builder(MemoryStore::new()).trace_context(traceparent).build()?;
    /// engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).run(async || Ok::<_, Error>(1)).await?;
    /// let view = engine.record("payments.charge", 7).inspect().await?;
    /// assert_eq!(view.and_then(|view| view.trace), traceparent());
    /// # Ok(())
    /// # }
    /// ```
    pub fn trace_context(mut self, context: impl TraceContext) -> Self {
        self.settings.trace_context = Some(Arc::new(context));
        self
    }

    /// Sets the time that a claim lives without renewal, from a millisecond to 100 years like all
    /// durations here. While the body runs, it is renewed at every third of that time. The default
    /// is 15 seconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets the behaviour of a call that another caller is running. The default is to wait 30
    /// seconds.
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.settings.on_conflict = on_conflict;
        self
    }

    /// Sets the time that the store may take to answer a claim before the call fails with
    /// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable). The default is 5 seconds: more
    /// than twice the time that the stores wait for one answer (`response_timeout`), so that a lost
    /// answer does not fail a call. It also bounds each try of the other requests of calls and
    /// operators.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.settings.claim_timeout = timeout;
        self
    }

    /// Sets the time that a caller waits for its result to be stored before it gets
    /// [`NotStored`](crate::ErrorKind::NotStored). The default is 10 seconds.
    pub fn commit_timeout(mut self, timeout: Duration) -> Self {
        self.settings.commit_timeout = timeout;
        self
    }

    /// Sets the time for which the background continues to store, and to renew the lease, after
    /// `commit_timeout`; with zero it tries once more. Then the record is left to its policy, as
    /// after a crash. For the same time, the background tries to hold errors that the operation
    /// holds, and to release claims whose release has failed, of which it tries none again with
    /// zero. The default is 10 minutes.
    pub fn background_commit(mut self, duration: Duration) -> Self {
        self.settings.background_commit = duration;
        self
    }

    /// Sets the longest time for which the lease of a running body is renewed, under
    /// [`on_crash_verify`](crate::Call::on_crash_verify) with its delay and its question. The default
    /// is an hour.
    pub fn max_run(mut self, duration: Duration) -> Self {
        self.settings.max_run = duration;
        self
    }

    /// Sets the maximum size in bytes of a key, and of a scope. The default is 1 KiB, the limit is
    /// 64 KiB.
    pub fn max_key_size(mut self, bytes: usize) -> Self {
        self.settings.max_key_size = bytes;
        self
    }

    /// Sets the maximum size in bytes of a result. The default is 256 KiB, the limit is 8 MiB.
    pub fn max_result_size(mut self, bytes: usize) -> Self {
        self.settings.max_result_size = bytes;
        self
    }

    /// Sets the longest `ttl` that a call may request. The default is 400 days.
    pub fn max_ttl(mut self, duration: Duration) -> Self {
        self.settings.max_ttl = duration;
        self
    }

    /// Sets the time for which the record of an unfinished call is kept after its lease, and an
    /// operator's answer to it from then on. If the `ttl` of the call is longer, the `ttl` applies.
    /// The default is 30 days.
    pub fn in_doubt_retention(mut self, duration: Duration) -> Self {
        self.settings.in_doubt_retention = duration;
        self
    }

    /// Sets the number of callers that may wait at once. Beyond it, callers get
    /// [`InProgress`](crate::ErrorKind::InProgress). The default is 10 000.
    pub fn max_waiters(mut self, waiters: usize) -> Self {
        self.settings.max_waiters = waiters;
        self
    }

    /// Sets whether the engine removes expired records from stores that do not do so themselves
    /// (PostgreSQL, MySQL, SQLite). If many processes share a store, all of them may do it, or one.
    /// The default is `true`.
    pub fn background_purge(mut self, purge: bool) -> Self {
        self.settings.background_purge = purge;
        self
    }

    /// Sets the interval at which the background looks for expired records. The default is 60
    /// seconds.
    pub fn purge_interval(mut self, interval: Duration) -> Self {
        self.settings.purge_interval = interval;
        self
    }

    /// Sets the maximum number of records that one statement of the background removes. The default
    /// is 1 000, the limit is 100 000.
    pub fn purge_batch(mut self, records: usize) -> Self {
        self.settings.purge_batch = records;
        self
    }

    /// Keeps up to `max_bytes` of completed results in this process, so that a repeated call of a
    /// hot key does not query the store. No result is kept longer than its record. A repeated call
    /// with another fingerprint is still rejected.
    ///
    /// A cached result can only be wrong if its record was removed, or if an operator's answer was
    /// corrected. [`forget`](crate::record::RecordHandle::forget) and
    /// [`resolve`](crate::record::RecordHandle::resolve) through this engine take effect at once.
    /// Through another process they take effect as soon as the store pushes the change, which Redis
    /// does within milliseconds, and otherwise after [`near_cache_ttl`](Self::near_cache_ttl). By
    /// default there is no near cache.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, with_report, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let engine = Idempotency::builder(MemoryStore::new()).near_cache(64 * 1024 * 1024).build()?;
    /// let charge = || engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).run(async || Ok::<_, Error>(1));
    /// charge().await?;
    /// let (replayed, report) = with_report(charge()).await;
    /// assert_eq!(replayed?, 1);
    /// assert!(report.is_some_and(|report| report.near_cached));
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "near-cache")]
    pub fn near_cache(mut self, max_bytes: u64) -> Self {
        self.settings.near_cache = Some(max_bytes);
        self
    }

    /// Sets the longest time for which a record may still be replayed from the
    /// [`near_cache`](Self::near_cache) after another process has removed or corrected it. The
    /// default is 5 seconds.
    #[cfg(feature = "near-cache")]
    pub fn near_cache_ttl(mut self, ttl: Duration) -> Self {
        self.settings.near_cache_ttl = ttl;
        self
    }

    /// Sets a hook that is called when a body finishes after its call had been taken over, or after
    /// its record had been removed: its effect may have happened twice. The hook may take its time:
    /// the caller of that body waits for it, if it does not have its answer yet, and no lease does.
    pub fn on_duplicate(mut self, hook: impl Fn(&DuplicateRun) + Send + Sync + 'static) -> Self {
        self.settings.on_duplicate = Some(Arc::new(hook));
        self
    }

    /// Runs the engine's background as a task of the caller's choice instead of on a thread of its
    /// own. `spawn` gets its future at the first call. For simulations, which run everything on one
    /// Tokio runtime with a paused clock, so that a run can be repeated. The background spawns
    /// further tasks where it runs.
    ///
    /// Not for services: a blocked executor then loses its leases, and work that callers left
    /// behind ends with their runtime.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let engine = Idempotency::builder(MemoryStore::new())
    ///     .background(|future| {
    ///         tokio::spawn(future);
    ///     })
    ///     .build()?;
    /// let call = engine.call("payments.charge", 7).ttl(Duration::from_secs(60));
    /// assert_eq!(call.run(|| async { Ok::<_, Error>(1) }).await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "testing")]
    pub fn background(
        mut self,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) -> Self {
        self.settings.background = Some(Arc::new(spawn));
        self
    }

    /// Sets the engine's source of time. A store without a clock of its own must get the same one.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Adds an observer of what happens in the engine. There can be any number of them.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.settings.observers.push(Arc::new(observer));
        self
    }

    /// Sets the source of owner tokens.
    pub fn randomness(mut self, randomness: impl Randomness) -> Self {
        self.randomness = Arc::new(randomness);
        self
    }

    /// Builds the engine.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if a setting is out of range. The error names the
    /// setting.
    pub fn build(self) -> Result<Idempotency, Error> {
        self.settings.validate()?;
        Ok(self.build_valid())
    }

    /// Builds the engine from settings that are known to be valid, as the default ones are.
    pub(super) fn build_valid(self) -> Idempotency {
        let inner = Inner::new(self.store, self.clock, self.randomness, self.settings);
        Idempotency { inner: Arc::new(inner) }
    }
}
