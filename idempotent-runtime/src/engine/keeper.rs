//! The thread that keeps leases alive and finishes what callers left behind.
//!
//! Renewals run here, on a thread and a Tokio runtime of their own, so that a blocked executor of the user does not
//! lose its leases. So do claims and commits whose caller is gone: they are followed to their answer. And expired records
//! are removed from here. What callers leave behind in memory of this process needs no thread, and is done at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use super::purge::{Purge, Purging};
use crate::clock::Clock;
use crate::key::KeyHash;
use crate::near_cache::NearCache;
use crate::steps::Journal;
use crate::store::{CrashPolicy, DynStore, Renewal, Token, Written};

/// How many leases one request to the store renews at most.
const BATCH: usize = 1000;
/// A renewal that failed is tried again after this share of the lease.
const RETRY_SHARE: u32 = 10;
/// A store may round the time of a request down by this much.
const ROUNDING: Duration = Duration::from_millis(1);

/// Nothing was done under a claim so far.
const WAITING: u8 = 0;
/// The body, or the question about an earlier one, has begun.
const BEGUN: u8 = 1;
/// A shutdown has taken the claim away.
const SHUT_DOWN: u8 = 2;

thread_local! {
    /// Whether leases are renewed from this thread.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the user's, which may take its time: on the thread that renews leases, it keeps none of them waiting.
pub(super) async fn beside(code: impl FnOnce() + Send + 'static) {
    if IS_OURS.get() {
        // It catches its own panics.
        let _ = tokio::task::spawn_blocking(code).await;
    } else {
        code();
    }
}

pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Runs the background somewhere else than on a thread of its own.
pub(super) type Spawn = dyn Fn(Task) + Send + Sync;

/// One claim of this process, from its grant to the end of its commit.
pub(crate) struct Lease {
    pub(crate) key: KeyHash,
    pub(crate) token: Token,
    pub(crate) policy: CrashPolicy,
    length: Duration,
    /// Monotonic time at which the claim was known to be granted.
    granted: Duration,
    /// Monotonic time after which the lease is not renewed any more.
    renew_until: Duration,
    /// Monotonic time before which nobody else can own the claim, in nanoseconds.
    valid_until: AtomicU64,
    /// Monotonic time of the next renewal, in nanoseconds.
    due: AtomicU64,
    lost: AtomicBool,
    /// Wakes those who wait for the end in the order in which they came, as a simulation needs it.
    given_up: Notify,
    stage: AtomicU8,
    /// Whether the body has come to its end.
    body_ended: AtomicBool,
    /// Whether nobody may run the call again, whatever the policy.
    held: AtomicBool,
    /// The steps of the body, for who gives the claim up from elsewhere.
    journal: OnceLock<Weak<Journal>>,
    clock: Arc<dyn Clock>,
}

impl Lease {
    /// The lease of a claim that was sent first at `sent` on the monotonic clock.
    pub(crate) fn new(
        (key, token): (KeyHash, Token),
        policy: CrashPolicy,
        length: Duration,
        sent: Duration,
        max_run: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            key,
            token,
            policy,
            length,
            granted: clock.monotonic(),
            renew_until: sent.saturating_add(max_run),
            valid_until: AtomicU64::new(end_of(sent, length)),
            due: AtomicU64::new(nanos(sent + length / 3)),
            lost: AtomicBool::new(false),
            given_up: Notify::new(),
            stage: AtomicU8::new(WAITING),
            body_ended: AtomicBool::new(false),
            held: AtomicBool::new(false),
            journal: OnceLock::new(),
            clock,
        }
    }

    /// Whether another caller may own the claim by now.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) || nanos(self.clock.monotonic()) >= self.valid_until.load(Ordering::Acquire)
    }

    /// Monotonic time from which the lease is known to have run, at the latest.
    pub(crate) fn known_since(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire)).saturating_sub(self.length)
    }

    /// How long nobody else can own the claim, from when it was known to be granted.
    pub(crate) fn lasts(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire)).saturating_sub(self.granted)
    }

    pub(crate) async fn ended(&self) {
        loop {
            // Before the look: a lease that is given up in between wakes it too.
            let given_up = self.given_up.notified();
            if self.is_lost() {
                return;
            }
            let left = self.valid_until.load(Ordering::Acquire).saturating_sub(nanos(self.clock.monotonic()));
            tokio::select! {
                biased;
                () = given_up => {}
                () = self.clock.sleep(Duration::from_nanos(left)) => {}
            }
        }
    }

    /// From now on another caller may own the claim.
    pub(crate) fn give_up(&self) {
        self.lost.store(true, Ordering::Release);
        self.given_up.notify_waiters();
    }

    /// From now on something may have happened under the claim. False when a shutdown was faster: then nothing may.
    ///
    /// Body and shutdown meet here alone: either the body has begun and its outcome is unknown to the shutdown, or the
    /// shutdown gives the claim back and the body never begins.
    pub(crate) fn begin(&self) -> bool {
        let before = self.stage.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire);
        matches!(before, Ok(_) | Err(BEGUN))
    }

    /// Nothing has happened under the claim yet, though its body is there: it waits for its turn.
    #[cfg(feature = "http")]
    pub(crate) fn wait(&self) {
        // One that a shutdown has taken away stays away.
        let _ = self.stage.compare_exchange(BEGUN, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The shutdown takes the claim away. True when something may have happened under it.
    pub(crate) fn shut_down(&self) -> bool {
        let has_begun = self.stage.swap(SHUT_DOWN, Ordering::AcqRel) == BEGUN;
        self.give_up();
        has_begun
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.stage.load(Ordering::Acquire) == SHUT_DOWN
    }

    pub(crate) fn end_body(&self) {
        self.body_ended.store(true, Ordering::Release);
    }

    /// The body has ended in an error that may hide an effect.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Whether the next caller may run the call again when this owner gives it up.
    pub(crate) fn may_be_taken_over(&self) -> bool {
        self.policy.allows_takeover() && !self.held.load(Ordering::Acquire)
    }

    pub(crate) fn has_body_ended(&self) -> bool {
        self.body_ended.load(Ordering::Acquire)
    }

    /// The body has started, and this is where its steps are known.
    pub(crate) fn has_steps(&self, journal: &Arc<Journal>) {
        // A claim has one body.
        let _ = self.journal.set(Arc::downgrade(journal));
    }

    pub(crate) fn journal(&self) -> Option<Arc<Journal>> {
        self.journal.get()?.upgrade()
    }

    fn renewed(&self, sent: Duration) {
        self.valid_until.store(end_of(sent, self.length), Ordering::Release);
        self.due.store(nanos(sent + self.length / 3), Ordering::Release);
    }

    fn retry_renewal(&self, now: Duration) {
        self.due.store(nanos(now + (self.length / RETRY_SHARE).max(Duration::from_millis(1))), Ordering::Release);
    }

    /// The lease runs out unless somebody gives it back.
    pub(super) fn stop_renewal(&self) {
        self.due.store(u64::MAX, Ordering::Release);
    }

    fn due(&self) -> u64 {
        self.due.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).field("token", &self.token).finish_non_exhaustive()
    }
}

/// When to stop believing in a lease that was asked for at `sent`, in monotonic nanoseconds: a little before a store that
/// counts whole milliseconds gives it to somebody else.
fn end_of(sent: Duration, length: Duration) -> u64 {
    let whole = Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    nanos(sent.saturating_add(whole.saturating_sub(ROUNDING.min(whole / 10))))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The thread's handle. The thread starts with the first claim and ends after the engine.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    tasks: OnceLock<mpsc::UnboundedSender<Task>>,
    starting: Mutex<()>,
    purge: Option<Arc<Purge>>,
    near_cache: Option<Arc<NearCache>>,
    spawn: Option<Arc<Spawn>>,
    /// The store answers when it is asked, and waits for nothing.
    answers_at_once: bool,
}

struct Shared {
    store: Arc<dyn DynStore>,
    clock: Arc<dyn Clock>,
    leases: Mutex<Leases>,
    earlier: Notify,
    under_way: AtomicUsize,
    idle: Notify,
    renewing: AtomicBool,
}

#[derive(Default)]
struct Leases {
    /// In order, so that a simulation renews in the same order again.
    by_token: BTreeMap<Token, Arc<Lease>>,
    /// When the thread looks next by itself, in monotonic nanoseconds.
    next_look: u64,
}

impl Keeper {
    pub(crate) fn new(
        store: Arc<dyn DynStore>,
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
        let (shared, tasks, starting) = (Arc::new(shared), OnceLock::new(), Mutex::new(()));
        Self { shared, tasks, starting, purge, near_cache, spawn, answers_at_once }
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
        let background = self.shared.clone().keep(receiver, self.purge.clone(), self.near_cache.clone());
        if let Some(spawn) = &self.spawn {
            spawn(Box::pin(background));
        } else {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name("idempotency-keeper".into()).spawn(move || {
                IS_OURS.set(true);
                runtime.block_on(background);
            })?;
        }
        let _ = self.tasks.set(sender);
        Ok(())
    }

    /// Runs `task` on the thread, whatever becomes of the caller.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.send(self.task(task));
    }

    /// The same for a task for which a shutdown does not wait.
    pub(super) fn spawn_beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.send(Box::pin(task));
    }

    /// Finishes what a caller has left behind: `task`, which waits for the store alone. On the thread, unless the store is
    /// memory of this process: then it is done when this returns, also in a test that has paused Tokio's clock and so
    /// leaves no thread any time.
    pub(crate) fn finish(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut task = self.task(task);
        if !self.answers_at_once || !is_over_at_once(&mut task) {
            self.send(task);
        }
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

    /// Something is under way that a shutdown waits for.
    pub(crate) fn busy(&self) -> Busy {
        // In one order with the engine's word that it closes, so that of a claim and a shutdown one sees the other.
        self.shared.under_way.fetch_add(1, Ordering::SeqCst);
        Busy(self.shared.clone())
    }

    /// What the background has removed.
    pub(crate) fn purging(&self) -> Purging {
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
            // Asked twice: a claim is held before it stops being on its way, and in the background before it is forgotten.
            if none_under_way() && self.shared.leases().by_token.is_empty() && none_under_way() {
                return;
            }
            idle.await;
        }
    }
}

/// Whether `task` needs no more than one look.
fn is_over_at_once(task: &mut Task) -> bool {
    // It has timers, for stores that do not answer.
    if Handle::try_current().is_err() {
        return false;
    }
    // Whoever was dropped may have used up what Tokio allows in one poll.
    let look = || pin!(tokio::task::unconstrained(task)).poll(&mut Context::from_waker(Waker::noop())).is_ready();
    // It is over with its panic, as on the thread.
    catch_unwind(AssertUnwindSafe(look)).unwrap_or(true)
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.renewing.store(false, Ordering::Release);
        self.shared.earlier.notify_one();
    }
}

/// What a shutdown waits for: a claim on its way, or a task in the background.
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
            let pause = Duration::from_nanos(next_look.saturating_sub(nanos(self.clock.monotonic())));
            let sleep = self.clock.sleep(pause);
            if nanos(self.clock.monotonic()) >= next_look {
                // The clock moved between the two questions.
                continue;
            }
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = sleep, if next_look < u64::MAX => {}
            }
        }
    }

    /// The leases to renew now: those that are due, and those that soon will be. Only leases of one length share a
    /// batch, because it waits for the store as long as they can.
    fn due(&self) -> Vec<Vec<Arc<Lease>>> {
        let mut leases = self.leases();
        let now = self.clock.monotonic();
        for lease in leases.by_token.values().filter(|lease| now >= lease.renew_until) {
            lease.stop_renewal();
        }
        let next = |leases: &Leases| leases.by_token.values().map(|lease| lease.due()).min().unwrap_or(u64::MAX);
        let mut due: BTreeMap<Duration, Vec<Arc<Lease>>> = BTreeMap::new();
        if next(&leases) <= nanos(now) {
            let soon = |lease: &&Arc<Lease>| lease.due() <= nanos(now + lease.length / 6);
            for lease in leases.by_token.values().filter(soon) {
                // Until the answer says when the next is due.
                lease.stop_renewal();
                due.entry(lease.length).or_default().push(lease.clone());
            }
        }
        leases.next_look = next(&leases);
        due.values().flat_map(|leases| leases.chunks(BATCH)).map(<[_]>::to_vec).collect()
    }

    /// Renews leases of one length.
    async fn renew(self: Arc<Self>, batch: Vec<Arc<Lease>>) {
        let renewals = batch.iter().map(|lease| Renewal::new(lease.key, lease.token, lease.length)).collect();
        let patience = batch.first().map(|lease| lease.length / 3).unwrap_or_default();
        let sent = self.clock.monotonic();
        // In a task of its own: a store that panics ends nothing but this.
        let mut request = tokio::spawn(self.store.clone().renew(renewals));
        let answer = tokio::select! {
            biased;
            answer = &mut request => match answer {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(panic) => Err(panic.to_string()),
            },
            () = self.clock.sleep(patience) => Err(format!("no answer within {patience:?}")),
        };
        request.abort();
        let (written, error) = answer.map_or_else(|error| (Vec::new(), Some(error)), |written| (written, None));
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
            let error = error.as_deref().unwrap_or("their records could not be reached");
            tracing::warn!(store = self.store.name(), leases = unanswered, error, "leases could not be renewed");
        }
        self.earlier.notify_one();
    }

    fn note(&self, lease: &Lease, written: Written, sent: Duration) {
        if written.is_done() {
            lease.renewed(sent);
        } else {
            lease.stop_renewal();
            // A record that is gone is nobody's: the claim stays valid for what is left of the lease.
            let still_owned = self.leases().by_token.contains_key(&lease.token);
            if written == Written::Lost && still_owned {
                // The own commit answers the same.
                if !lease.has_body_ended() {
                    tracing::warn!(key = %lease.key, "the lease was lost: another caller may have taken the call over");
                }
                lease.give_up();
            }
        }
    }
}

/// A future that goes on in the background when its owner is dropped: a request that was sent is followed to its answer.
pub(crate) struct Followed<T: Send + 'static> {
    future: Option<Following<T>>,
    keeper: Arc<Keeper>,
    afterwards: Option<Afterwards<T>>,
}

/// A request that is on its way.
pub(crate) type Following<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Afterwards<T> = Box<dyn FnOnce(Following<T>) -> Task + Send>;

impl<T: Send + 'static> Followed<T> {
    pub(crate) fn new(keeper: &Arc<Keeper>, future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { future: Some(Box::pin(future)), keeper: keeper.clone(), afterwards: None }
    }

    /// Hands the request to `afterwards` if nobody else is there to take its answer.
    pub(crate) fn and_if_dropped<F>(mut self, afterwards: impl FnOnce(Following<T>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.afterwards = Some(Box::new(move |following| Box::pin(afterwards(following))));
        self
    }
}

impl<T: Send + 'static> Future for Followed<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out while it is polled: one that panics is over, and not handed to the background.
        let Some(mut future) = self.future.take() else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Followed<T> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        let afterwards = self.afterwards.take();
        self.keeper.finish(async move {
            match afterwards {
                Some(afterwards) => afterwards(future).await,
                None => drop(future.await),
            }
        });
    }
}
