//! What the handles of an engine share, and the callers that wait in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::background_bounds::Bounds;
use super::flight::Flights;
use super::keeper::Keeper;
use super::lease::is_early;
use super::operations::Operations;
use super::owed::Owed;
use super::purge::Purge;
use super::settings::Settings;
use super::shutdown::OPEN;
use super::store_client::StoreClient;
use crate::clock::{Clock, Randomness};
use crate::error::Error;
use crate::events::Observers;
use crate::key::KeyHash;
use crate::near_cache::NearCache;
use crate::store::{DynStore, Record, StoreError, Token};

/// The state that all handles of an engine share.
pub(crate) struct Inner {
    pub(crate) store: StoreClient,
    pub(crate) clock: Arc<dyn Clock>,
    pub(super) randomness: Arc<dyn Randomness>,
    pub(crate) settings: Settings,
    /// The ID of the process that created the engine.
    pub(super) home: u32,
    pub(super) flights: Arc<Flights>,
    pub(crate) near_cache: Option<Arc<NearCache>>,
    pub(super) operations: Operations,
    pub(crate) keeper: Arc<Keeper>,
    pub(super) owed: Owed,
    pub(super) bounds: Bounds,
    /// How far a shutdown has come: `OPEN`, `DRAINING` or `CLOSED`.
    pub(super) closing: AtomicU8,
    pub(super) waiters: AtomicUsize,
    /// Bodies that run without a lease, because their record is in a transaction of the user's or
    /// because they have none.
    pub(super) without_lease: AtomicUsize,
    pub(super) duplicates: AtomicU64,
    pub(super) observers: Observers,
}

impl Inner {
    pub(super) fn new(
        store: Arc<dyn DynStore>,
        clock: Arc<dyn Clock>,
        randomness: Arc<dyn Randomness>,
        settings: Settings,
    ) -> Self {
        let near_cache = settings.near_cache(&clock);
        let observers = Observers::new(&settings.namespace, settings.observers.clone());
        let store =
            StoreClient::new(store, clock.clone(), settings.claim_timeout, observers.clone());
        let answers_at_once = store.facets().local_results.is_some();
        Self {
            keeper: Arc::new(Keeper::new(
                store.clone(),
                clock.clone(),
                Purge::new(&store, &settings),
                near_cache.clone(),
                settings.background.clone(),
                answers_at_once,
            )),
            store,
            clock,
            randomness,
            settings,
            home: std::process::id(),
            flights: Arc::default(),
            near_cache,
            operations: Operations::default(),
            owed: Owed::default(),
            bounds: Bounds::default(),
            closing: AtomicU8::new(OPEN),
            waiters: AtomicUsize::new(0),
            without_lease: AtomicUsize::new(0),
            duplicates: AtomicU64::new(0),
            observers,
        }
    }

    /// Rejects requests to the store from a fork of the process. The fork has its parent's
    /// connections, on which the answers of both would be mixed up, and lacks the thread that
    /// renews leases.
    pub(super) fn at_home(&self) -> Result<(), Error> {
        if std::process::id() == self.home {
            return Ok(());
        }
        Err(Error::config(
            "this process was forked from the one that created the engine; create a store and an \
             engine here",
        ))
    }

    /// The result of `key` in a store that can be read at once: what a claim would be answered
    /// with, without its token and its followers.
    pub(super) fn local_result(&self, key: &KeyHash) -> Option<Arc<Record>> {
        self.store.facets().local_results?.local_result(key).map(Arc::new)
    }

    pub(super) fn token(&self) -> std::io::Result<Token> {
        let mut bytes = [0; 16];
        self.randomness.fill(&mut bytes)?;
        Ok(Token::from_bits(u128::from_be_bytes(bytes)))
    }

    /// Returns true if a body whose claim was first sent at `sent` may still start: not if more
    /// than 80 % of its lease has passed.
    pub(super) fn may_start(&self, sent: Duration, lease: Duration) -> bool {
        is_early(&*self.clock, sent, lease)
    }

    pub(crate) fn store_error(&self, error: StoreError) -> Error {
        Error::from_store(error, self.store.name())
    }
}

/// A caller that waits. The number of waiting callers is bounded.
pub(super) struct Waiting(Arc<Inner>);

impl Waiting {
    /// Returns `None` if too many are waiting already.
    pub(super) fn enter(engine: &Arc<Inner>) -> Option<Self> {
        let waiting = Self(engine.clone());
        let before = engine.waiters.fetch_add(1, Ordering::AcqRel);
        (before < engine.settings.max_waiters).then_some(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}
