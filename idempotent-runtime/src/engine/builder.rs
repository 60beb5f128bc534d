//! Building an engine.

#[cfg(feature = "testing")]
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::duplicate::Duplicate;
use super::settings::Settings;
use super::{Idempotency, Inner};
use crate::clock::{Clock, Randomness, SystemClock, SystemRandomness};
use crate::error::Error;
use crate::policy::OnConflict;
use crate::store::{DynStore, Store};

/// Builds an [`Idempotency`]. Made by [`Idempotency::builder`].
///
/// ```
/// use std::time::Duration;
/// use idempotent_runtime::{Idempotency, OnConflict, store::MemoryStore};
///
/// let engine = Idempotency::builder(MemoryStore::new())
///     .namespace("shop")
///     .lease(Duration::from_secs(30))
///     .on_conflict(OnConflict::Wait(Duration::from_secs(10)))
///     .build();
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
        Self {
            store: Arc::new(store),
            clock: Arc::new(SystemClock::new()),
            randomness: Arc::new(SystemRandomness),
            settings: Settings::default(),
        }
    }

    /// Keeps the records of services apart that share a store, and the keys that they
    /// [derive](crate::Context::derive_key) for a service that both of them call: 1 to 64
    /// characters of `a-z 0-9 . _ -`. The default is `"default"`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.settings.namespace = namespace.into();
        self
    }

    /// How long a claim lives without renewal, from a millisecond to 100 years as all times here.
    /// It is renewed three times as often while the body runs. The default is 15 seconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// What a call does when another caller is running it. The default is to wait 30 seconds.
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.settings.on_conflict = on_conflict;
        self
    }

    /// How long the store may take to answer a claim before the call fails with
    /// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable). The default is 5 seconds: more
    /// than twice what the stores wait for one answer (`response_timeout`), so that a lost answer
    /// costs no call.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.settings.claim_timeout = timeout;
        self
    }

    /// How long a caller waits for its result to be stored before it gets
    /// [`NotStored`](crate::ErrorKind::NotStored). The default is 10 seconds.
    pub fn commit_timeout(mut self, timeout: Duration) -> Self {
        self.settings.commit_timeout = timeout;
        self
    }

    /// How long the background goes on storing, and renewing the lease, after `commit_timeout`;
    /// zero tries once more. Then the record is left to its policy, as after a crash. Errors that
    /// the operation holds are held for as long, and claims that nobody uses are given back. The
    /// default is 10 minutes.
    pub fn background_commit(mut self, duration: Duration) -> Self {
        self.settings.background_commit = duration;
        self
    }

    /// After how long the lease of a body that still runs is renewed no more. The default is an
    /// hour.
    pub fn max_run(mut self, duration: Duration) -> Self {
        self.settings.max_run = duration;
        self
    }

    /// How many bytes a key, and a scope, may take. The default is 1 KiB, the most is 64 KiB.
    pub fn max_key_size(mut self, bytes: usize) -> Self {
        self.settings.max_key_size = bytes;
        self
    }

    /// How many bytes a result may take. The default is 256 KiB, the most is 8 MiB.
    pub fn max_result_size(mut self, bytes: usize) -> Self {
        self.settings.max_result_size = bytes;
        self
    }

    /// The longest `ttl` that a call may ask for. The default is 400 days.
    pub fn max_ttl(mut self, duration: Duration) -> Self {
        self.settings.max_ttl = duration;
        self
    }

    /// How long the record of an unfinished call is kept after its lease, and an operator's answer
    /// to it from then on; where the `ttl` of the call is longer, that is how long. The default is
    /// 30 days.
    pub fn in_doubt_retention(mut self, duration: Duration) -> Self {
        self.settings.in_doubt_retention = duration;
        self
    }

    /// How many callers may wait at once before more of them get
    /// [`InProgress`](crate::ErrorKind::InProgress). The default is 10 000.
    pub fn max_waiters(mut self, waiters: usize) -> Self {
        self.settings.max_waiters = waiters;
        self
    }

    /// Whether the engine removes expired records from stores that do not do so themselves
    /// (PostgreSQL, MySQL, SQLite). Where many processes share a store, all of them may, or one.
    /// The default is yes.
    pub fn background_purge(mut self, purge: bool) -> Self {
        self.settings.background_purge = purge;
        self
    }

    /// How long the background waits between two looks for expired records. The default is 60
    /// seconds.
    pub fn purge_interval(mut self, interval: Duration) -> Self {
        self.settings.purge_interval = interval;
        self
    }

    /// How many records one statement of the background removes at most. The default is 1 000, the
    /// most is 100 000.
    pub fn purge_batch(mut self, records: usize) -> Self {
        self.settings.purge_batch = records;
        self
    }

    /// Keeps up to `max_bytes` of completed results in this process, so that a repeated call of a
    /// hot key does not ask the store. None is kept longer than its record. A repeated call with
    /// another fingerprint is refused as ever.
    ///
    /// What is kept can only be wrong about a record that somebody removed, or an operator's answer
    /// that was corrected. [`forget`](crate::RecordHandle::forget) and
    /// [`resolve`](crate::RecordHandle::resolve) through this engine count at once. Through another
    /// process it counts as soon as the store tells, which Redis does within milliseconds, and else
    /// after [`near_cache_ttl`](Self::near_cache_ttl). The default is no near cache.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Error, Idempotency, observe, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let engine = Idempotency::builder(MemoryStore::new()).near_cache(64 * 1024 * 1024).build();
    /// let charge = || engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).run(async || Ok::<_, Error>(1));
    /// charge().await?;
    /// let (replayed, report) = observe(charge()).await;
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

    /// How long after its removal or correction by another process a record may still be replayed
    /// from the [`near_cache`](Self::near_cache), at the most. The default is 5 seconds.
    #[cfg(feature = "near-cache")]
    pub fn near_cache_ttl(mut self, ttl: Duration) -> Self {
        self.settings.near_cache_ttl = ttl;
        self
    }

    /// Is called when a body finishes after its call had been taken over: its effect may have
    /// happened twice. It may take its time: the caller of that body waits for it, and no lease
    /// does.
    pub fn on_duplicate(mut self, hook: impl Fn(&Duplicate) + Send + Sync + 'static) -> Self {
        self.settings.on_duplicate = Some(Arc::new(hook));
        self
    }

    /// Runs the engine's background as a task of the caller's choice instead of on a thread of its
    /// own: `spawn` gets its future at the first call. For simulations, which run everything on one
    /// Tokio runtime with a paused clock, so that a run can be repeated. The background spawns
    /// further tasks where it runs.
    ///
    /// Not for services: a blocked executor loses its leases then, and what callers left behind
    /// ends with their runtime.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// let engine = Idempotency::builder(MemoryStore::new())
    ///     .background(|future| {
    ///         tokio::spawn(future);
    ///     })
    ///     .build();
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

    /// Where the engine takes time from. A store without a clock of its own has to get the same
    /// one.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Where owner tokens come from.
    pub fn randomness(mut self, randomness: impl Randomness) -> Self {
        self.randomness = Arc::new(randomness);
        self
    }

    /// The engine. If a setting is out of its range, every call fails with
    /// [`Config`](crate::ErrorKind::Config) and says which; [`try_build`](Self::try_build) tells at
    /// once.
    pub fn build(self) -> Idempotency {
        let validity = self.settings.validate();
        Idempotency {
            inner: Arc::new(Inner::new(
                self.store,
                self.clock,
                self.randomness,
                self.settings,
                validity,
            )),
        }
    }

    /// The engine.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) when a setting is out of its range.
    pub fn try_build(self) -> Result<Idempotency, Error> {
        self.settings.validate()?;
        Ok(self.build())
    }
}
