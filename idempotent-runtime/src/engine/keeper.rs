//! The thread that keeps leases alive and finishes what callers left behind.
//!
//! Renewals run here, on a thread and a Tokio runtime of their own, so that a blocked executor of
//! the user does not lose its leases. Claims and commits whose caller is gone are followed to their
//! answer here, and expired records are removed from here. Work that callers leave behind in this
//! process's memory store needs no thread, and is done at once.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::busy::{Busy, UnderWay};
use super::lease::Lease;
use super::purge::{Purge, PurgeStats};
use super::renewals::Renewals;
use super::store_client::StoreClient;
use super::user_code;
use crate::clock::Clock;
use crate::lock::Mutex;
use crate::near_cache::NearCache;

pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Runs the background elsewhere than on a thread of its own.
pub(super) type Spawn = dyn Fn(Task) + Send + Sync;

/// The thread's handle. The thread starts with the first call that turns to the store, and ends
/// after the engine.
pub(crate) struct Keeper {
    store: StoreClient,
    clock: Arc<dyn Clock>,
    renewals: Arc<Renewals>,
    under_way: Arc<UnderWay>,
    tasks: OnceLock<mpsc::UnboundedSender<Task>>,
    /// The thread's runtime, if it has one of its own.
    runtime: OnceLock<Handle>,
    starting: Mutex<()>,
    purge: Option<Arc<Purge>>,
    near_cache: Option<Arc<NearCache>>,
    spawn: Option<Arc<Spawn>>,
    /// True if the store answers as soon as it is called, and never waits.
    answers_at_once: bool,
}

impl Keeper {
    pub(crate) fn new(
        store: StoreClient,
        clock: Arc<dyn Clock>,
        purge: Option<Arc<Purge>>,
        near_cache: Option<Arc<NearCache>>,
        spawn: Option<Arc<Spawn>>,
        answers_at_once: bool,
    ) -> Self {
        let renewals = Arc::new(Renewals::new(store.clone(), clock.clone()));
        let (tasks, runtime) = (OnceLock::new(), OnceLock::new());
        let starting = Mutex::new(());
        Self {
            store,
            clock,
            renewals,
            under_way: Arc::default(),
            tasks,
            runtime,
            starting,
            purge,
            near_cache,
            spawn,
            answers_at_once,
        }
    }

    /// Starts the thread, once.
    pub(crate) fn start(&self) -> std::io::Result<()> {
        if self.tasks.get().is_some() {
            return Ok(());
        }
        let _starting = self.starting.lock();
        if self.tasks.get().is_some() {
            return Ok(());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let background = self.background(receiver);
        if let Some(spawn) = &self.spawn {
            spawn(Box::pin(background));
        } else {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let _ = self.runtime.set(runtime.handle().clone());
            std::thread::Builder::new().name("idempotency-keeper".into()).spawn(move || {
                user_code::mark_thread_of_renewals();
                runtime.block_on(background);
            })?;
        }
        let _ = self.tasks.set(sender);
        Ok(())
    }

    /// Runs `task` on the thread, whatever happens to the caller.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.send(self.task(task));
    }

    /// Like [`spawn`](Self::spawn), for a task that a shutdown does not wait for.
    pub(super) fn spawn_unawaited(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.send(Box::pin(task));
    }

    /// Finishes what a caller has left behind: `task`, which waits only for the store. It runs on
    /// the thread, unless the store is in this process's memory. Then it is done when this returns,
    /// even in a test that has paused Tokio's clock and so leaves a thread no time.
    pub(crate) fn finish_left_behind(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut task = self.task(task);
        if !self.answers_at_once || !self.is_over_at_once(&mut task) {
            self.send(task);
        }
    }

    /// Polls `task` once, and returns true if it has ended.
    fn is_over_at_once(&self, task: &mut Task) -> bool {
        // A thread that is ending may no longer have access to any runtime.
        if Handle::try_current().is_err() {
            return false;
        }
        // The thread's runtime has timers, for stores that do not answer. A runtime of the caller's
        // may have none.
        let _inside = self.runtime.get().map(Handle::enter);
        // The dropped caller may have used up Tokio's budget for this poll.
        let look = || {
            pin!(tokio::task::unconstrained(task))
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        };
        // A panic ends the task, as on the thread.
        catch_unwind(AssertUnwindSafe(look)).unwrap_or(true)
    }

    fn task(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        let busy = self.busy();
        Box::pin(async move {
            let _busy = busy;
            task.await;
        })
    }

    fn send(&self, task: Task) {
        if let Some(tasks) = self.tasks.get() {
            let _ = tasks.send(task);
        }
    }

    /// Marks that something is under way for which a shutdown waits.
    pub(crate) fn busy(&self) -> Busy {
        Busy::new(&self.under_way)
    }

    /// Statistics about what the background has removed.
    pub(crate) fn purge_stats(&self) -> PurgeStats {
        self.purge.as_ref().map(|purge| purge.done()).unwrap_or_default()
    }

    /// Renews `lease` from now on.
    pub(crate) fn keep(&self, lease: &Arc<Lease>) {
        self.renewals.keep(lease);
    }

    /// Ends the renewals of `lease`.
    pub(crate) fn forget(&self, lease: &Lease) {
        self.renewals.forget(lease);
        self.under_way.notify();
    }

    /// The leases of the claims that this process holds.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        self.renewals.all()
    }

    /// Resolves when no claim is held, none is on its way, and nothing runs in the background.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.under_way.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let none_under_way = || self.under_way.is_none();
            // `under_way` is read on both sides of the leases, because the two cannot be read at
            // once. A claim is held before it stops being under way: one that moves over after the
            // leases were read is seen by the first check. A lease is handed to the background
            // before it is forgotten: one that moves over before the leases were read is seen by
            // the second.
            if none_under_way() && self.renewals.are_none() && none_under_way() {
                return;
            }
            changed.await;
        }
    }

    /// The thread's work. Ends when the engine is gone and the tasks are done.
    fn background(
        &self,
        mut tasks: mpsc::UnboundedReceiver<Task>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (store, clock) = (self.store.clone(), self.clock.clone());
        let renewals = self.renewals.clone();
        let (purge, near_cache) = (self.purge.clone(), self.near_cache.clone());
        async move {
            let renewals = tokio::spawn(renewals.run());
            let mut until_the_end = tokio::task::JoinSet::new();
            if let Some(purge) = purge {
                until_the_end.spawn(purge.run(store.clone(), clock));
            }
            if let Some(near_cache) = near_cache {
                until_the_end.spawn(near_cache.follow(store));
            }
            let mut running = tokio::task::JoinSet::new();
            while let Some(task) = tasks.recv().await {
                running.spawn(task);
                while running.try_join_next().is_some() {}
            }
            until_the_end.abort_all();
            while running.join_next().await.is_some() {}
            renewals.abort();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.renewals.end();
    }
}
