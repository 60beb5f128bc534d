//! The thread that keeps leases alive and finishes what callers left behind.
//!
//! Renewals run here, on a thread and a Tokio runtime of their own, so that a blocked executor of
//! the user does not lose its leases. Claims and commits whose caller is gone are followed to their
//! answer here, and expired records are removed from here. Work that callers leave behind in this
//! process's memory store needs no thread, and is done at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use super::client::StoreClient;
use super::lease::{Lease, nanos};
use super::purge::{Purge, PurgeStats};
use crate::clock::Clock;
use crate::events::What;
use crate::near_cache::NearCache;
use crate::store::{Renewal, Token, Written};

/// The maximum number of leases that one request to the store renews.
const BATCH: usize = 1000;

thread_local! {
    /// True on the thread that renews leases.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Runs user code, which may take its time. On the thread that renews leases, it does not delay any
/// of them.
pub(super) async fn beside(code: impl FnOnce() + Send + 'static) {
    if IS_OURS.get() {
        // The code catches its own panics.
        let _ = tokio::task::spawn_blocking(code).await;
    } else {
        code();
    }
}

pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Runs the background elsewhere than on a thread of its own.
pub(super) type Spawn = dyn Fn(Task) + Send + Sync;

/// The thread's handle. The thread starts with the first claim and ends after the engine.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
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

struct Shared {
    store: StoreClient,
    clock: Arc<dyn Clock>,
    leases: Mutex<Leases>,
    earlier: Notify,
    under_way: AtomicUsize,
    idle: Notify,
    renewing: AtomicBool,
}

#[derive(Default)]
struct Leases {
    /// Sorted, so that a simulation renews in the same order again.
    by_token: BTreeMap<Token, Arc<Lease>>,
    /// The time of the thread's next scheduled look, in monotonic nanoseconds.
    next_look: u64,
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
        let leases = Mutex::new(Leases { by_token: BTreeMap::new(), next_look: u64::MAX });
        let shared = Shared {
            store,
            clock,
            leases,
            earlier: Notify::new(),
            under_way: AtomicUsize::new(0),
            idle: Notify::new(),
            renewing: AtomicBool::new(true),
        };
        let (shared, tasks, runtime) = (Arc::new(shared), OnceLock::new(), OnceLock::new());
        let starting = Mutex::new(());
        Self { shared, tasks, runtime, starting, purge, near_cache, spawn, answers_at_once }
    }

    /// Starts the thread, once.
    pub(crate) fn start(&self) -> std::io::Result<()> {
        if self.tasks.get().is_some() {
            return Ok(());
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tasks.get().is_some() {
            return Ok(());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let background =
            self.shared.clone().keep(receiver, self.purge.clone(), self.near_cache.clone());
        if let Some(spawn) = &self.spawn {
            spawn(Box::pin(background));
        } else {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let _ = self.runtime.set(runtime.handle().clone());
            std::thread::Builder::new().name("idempotency-keeper".into()).spawn(move || {
                IS_OURS.set(true);
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
    pub(super) fn spawn_beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.send(Box::pin(task));
    }

    /// Finishes what a caller has left behind: `task`, which waits only for the store. It runs on
    /// the thread, unless the store is in this process's memory. Then it is done when this returns,
    /// even in a test that has paused Tokio's clock and so leaves a thread no time.
    pub(crate) fn finish(&self, task: impl Future<Output = ()> + Send + 'static) {
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
        // Sequentially consistent, like the engine's `closing` flag. A claim increments this and
        // then reads the flag, and a shutdown sets the flag and then reads this, so at least one of
        // them sees the other.
        self.shared.under_way.fetch_add(1, Ordering::SeqCst);
        Busy(self.shared.clone())
    }

    /// Statistics about what the background has removed.
    pub(crate) fn purge_stats(&self) -> PurgeStats {
        self.purge.as_ref().map(|purge| purge.done()).unwrap_or_default()
    }

    /// Renews `lease` from now on.
    pub(crate) fn keep(&self, lease: &Arc<Lease>) {
        let mut leases = self.shared.leases();
        leases.by_token.insert(lease.token, lease.clone());
        if lease.due() < leases.next_look {
            self.shared.earlier.notify_one();
        }
    }

    /// Ends the renewals of `lease`.
    pub(crate) fn forget(&self, lease: &Lease) {
        self.shared.leases().by_token.remove(&lease.token);
        self.shared.idle.notify_waiters();
    }

    /// The claims that this process holds.
    pub(crate) fn held(&self) -> Vec<Arc<Lease>> {
        self.shared.leases().by_token.values().cloned().collect()
    }

    /// Resolves when no claim is held, none is on its way, and nothing runs in the background.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            let none_under_way = || self.shared.under_way.load(Ordering::SeqCst) == 0;
            // `under_way` is read on both sides of the leases, because the two cannot be read at
            // once. A claim is held before it stops being under way: one that moves over after the
            // leases were read is seen by the first check. A lease is handed to the background
            // before it is forgotten: one that moves over before the leases were read is seen by
            // the second.
            if none_under_way() && self.shared.leases().by_token.is_empty() && none_under_way() {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.renewing.store(false, Ordering::Release);
        self.shared.earlier.notify_one();
    }
}

/// Something for which a shutdown waits: a claim on its way, or a task in the background.
pub(crate) struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        self.0.idle.notify_waiters();
    }
}

impl Shared {
    fn leases(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until the engine is gone and the tasks are done.
    async fn keep(
        self: Arc<Self>,
        mut tasks: mpsc::UnboundedReceiver<Task>,
        purge: Option<Arc<Purge>>,
        near_cache: Option<Arc<NearCache>>,
    ) {
        let renewals = tokio::spawn(self.clone().renew_while_needed());
        let mut until_the_end = tokio::task::JoinSet::new();
        if let Some(purge) = purge {
            until_the_end.spawn(purge.run(self.store.clone(), self.clock.clone()));
        }
        if let Some(near_cache) = near_cache {
            until_the_end.spawn(near_cache.follow(self.store.clone()));
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

    async fn renew_while_needed(self: Arc<Self>) {
        while self.renewing.load(Ordering::Acquire) {
            for batch in self.due() {
                tokio::spawn(self.clone().renew(batch));
            }
            let next_look = self.leases().next_look;
            let pause =
                Duration::from_nanos(next_look.saturating_sub(nanos(self.clock.monotonic())));
            let sleep = self.clock.sleep(pause);
            if nanos(self.clock.monotonic()) >= next_look {
                // The clock has moved since `pause` was computed, so the sleep would be late.
                continue;
            }
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = sleep, if next_look < u64::MAX => {}
            }
        }
    }

    /// Returns the leases to renew now: those that are due, and those that will be soon. Only
    /// leases of the same length share a batch, because the batch waits for the store for as long
    /// as they allow.
    fn due(&self) -> Vec<Vec<Arc<Lease>>> {
        let mut leases = self.leases();
        let now = self.clock.monotonic();
        for lease in leases.by_token.values().filter(|lease| lease.is_renewed_no_more(now)) {
            lease.stop_renewal();
        }
        let next = |leases: &Leases| {
            leases.by_token.values().map(|lease| lease.due()).min().unwrap_or(u64::MAX)
        };
        let mut due: BTreeMap<Duration, Vec<Arc<Lease>>> = BTreeMap::new();
        if next(&leases) <= nanos(now) {
            let soon = |lease: &&Arc<Lease>| lease.due() <= nanos(now + lease.length() / 6);
            for lease in leases.by_token.values().filter(soon) {
                // Until the answer determines when the next renewal is due.
                lease.stop_renewal();
                due.entry(lease.length()).or_default().push(lease.clone());
            }
        }
        leases.next_look = next(&leases);
        due.values().flat_map(|leases| leases.chunks(BATCH)).map(<[_]>::to_vec).collect()
    }

    /// Renews leases that have the same length.
    async fn renew(self: Arc<Self>, batch: Vec<Arc<Lease>>) {
        let renewals = batch
            .iter()
            .map(|lease| Renewal::new(lease.key, lease.token, lease.length()))
            .collect();
        let patience = batch.first().map(|lease| lease.length() / 3).unwrap_or_default();
        let sent = self.clock.monotonic();
        let (written, error) = match self.store.renew(patience, renewals).await {
            Ok(written) => (written, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let answers = written.into_iter().chain(std::iter::repeat(Written::Unanswered));
        let mut unanswered = 0;
        for (lease, written) in batch.iter().zip(answers) {
            if written == Written::Unanswered {
                unanswered += 1;
                lease.retry_renewal(self.clock.monotonic());
            } else {
                self.note(lease, written, sent);
            }
        }
        if unanswered > 0 {
            let error = error.map_or_else(
                || "their records could not be reached".to_owned(),
                |error| error.to_string(),
            );
            tracing::warn!(
                store = self.store.name(),
                leases = unanswered,
                error,
                "leases could not be renewed"
            );
        }
        let leases = batch.len();
        self.store.observers().tell(None, None, What::Renewed { leases, unanswered });
        self.earlier.notify_one();
    }

    fn note(&self, lease: &Lease, written: Written, sent: Duration) {
        if written.is_done() {
            lease.renewed(sent);
        } else {
            lease.stop_renewal();
            // A record that is gone has no owner: the claim stays valid for the rest of the lease.
            let still_owned = self.leases().by_token.contains_key(&lease.token);
            if written == Written::Lost && still_owned {
                // The owner's own commit gets the same answer.
                if !lease.has_body_ended() {
                    tracing::warn!(key = %lease.key, "the lease was lost: another caller may have taken the call over");
                    self.store.observers().tell(None, Some(&lease.key), What::LeaseLost);
                }
                lease.give_up();
            }
        }
    }
}
