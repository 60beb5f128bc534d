//! What a running body can know and ask: its attempt, its fence, keys for services downstream.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::engine::lease::Lease;
use crate::engine::scope::Scope;
use crate::engine::{Inner, retry};
use crate::error::{CLAIM_LOST, Error, ErrorKind};
use crate::key::{KeyHash, derive, derive_in_step};
use crate::outcome::refused;
use crate::steps::Journal;
use crate::store::{Grant, StoreErrorKind, Token};

/// The running call, seen from inside its body.
///
/// ```
/// # use std::time::Duration;
/// # use idempotent_runtime::{Context, Error, Idempotency, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let charge = engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).run(|| async {
///     let context = Context::current();
///     assert_eq!(context.attempt(), 1);
///     // The same text in every attempt: the provider recognises a repeated charge by it.
///     let provider_key = context.derive_key("provider");
///     Ok::<_, Error>(provider_key)
/// });
/// assert_eq!(charge.await?.len(), 64);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Context(Arc<Parts>);

struct Parts {
    own: Own,
    operation: Arc<str>,
    attempt: u32,
    /// The store's time when the claim was granted, and the monotonic time a little later.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "responses tell it to clients"))]
    granted: (Timestamp, Duration),
    /// The calls around this one whose bodies ran when it began. Not their contexts, which would
    /// have those around them in turn: tasks that go on from one another without end would make a
    /// chain of them.
    around: Vec<Own>,
    #[cfg(feature = "http")]
    unlabelled_requests: crate::http::client::Unlabelled,
}

/// What those have to know of a call that run in its body.
#[derive(Clone)]
struct Own {
    engine: Weak<Inner>,
    key: KeyHash,
    claim: Held,
}

/// What protects the body.
#[derive(Clone)]
enum Held {
    /// With the journal of the body; none while the outside world is asked.
    Claim(Token, Arc<Lease>, Option<Arc<Journal>>),
    /// The row of the record, until the body is over.
    Transaction { fence: u64, ended: Arc<AtomicBool> },
    /// The operation is disabled, or an HTTP layer fails open.
    Nothing { in_transaction: bool, ended: Arc<AtomicBool> },
}

impl Context {
    pub(crate) fn new(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        grant: &Grant,
        lease: Arc<Lease>,
        journal: Option<Arc<Journal>>,
    ) -> Self {
        let claim = Held::Claim(grant.record.owner, lease, journal);
        Self::of_claim(engine, operation, grant, claim)
    }

    /// Of a call whose record is in the user's transaction.
    pub(crate) fn in_transaction(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        grant: &Grant,
        ended: Arc<AtomicBool>,
    ) -> Self {
        let claim = Held::Transaction { fence: grant.record.fence, ended };
        Self::of_claim(engine, operation, grant, claim)
    }

    /// Of a call of a disabled operation, or of a request whose layer fails open.
    pub(crate) fn unprotected(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        key: KeyHash,
        ended: &Arc<AtomicBool>,
        in_transaction: bool,
    ) -> Self {
        let claim = Held::Nothing { in_transaction, ended: Arc::clone(ended) };
        Self::of_parts(engine, operation, key, 0, engine.clock.now(), claim)
    }

    fn of_claim(engine: &Arc<Inner>, operation: &Arc<str>, grant: &Grant, claim: Held) -> Self {
        let record = &grant.record;
        Self::of_parts(engine, operation, record.key, record.attempts, record.read_at, claim)
    }

    fn of_parts(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        key: KeyHash,
        attempt: u32,
        granted: Timestamp,
        claim: Held,
    ) -> Self {
        let granted = (granted, engine.clock.monotonic());
        let around = Scope::current()
            .context()
            .map(|context| context.running().cloned().collect())
            .unwrap_or_default();
        Self(Arc::new(Parts {
            own: Own { engine: Arc::downgrade(engine), key, claim },
            operation: operation.clone(),
            attempt,
            granted,
            around,
            #[cfg(feature = "http")]
            unlabelled_requests: crate::http::client::Unlabelled::default(),
        }))
    }

    /// The innermost guarded call that runs the current code.
    ///
    /// # Panics
    /// Outside the body of a guarded call, and in a task that the body spawned without
    /// [`in_current_scope`](InCurrentScope::in_current_scope). [`try_current`](Self::try_current)
    /// does not panic.
    #[track_caller]
    pub fn current() -> Self {
        Self::try_current().expect(
            "`Context::current()` is called in the body of a guarded call; spawned futures need `.in_current_scope()`",
        )
    }

    /// The innermost guarded call that runs the current code, `None` outside of one.
    pub fn try_current() -> Option<Self> {
        Scope::current().context().cloned()
    }

    /// How many attempts there were, this one included: 1 in the first. A claim that was given back
    /// before its body began is none; one whose body ended in an error that released it counts only
    /// with [`count_attempts`](crate::Call::count_attempts), and any call of the key without that
    /// forgets the count. Zero where the operation is [disabled](crate::Idempotency::disable), or
    /// where an HTTP layer fails open: nothing is claimed there.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// The name of the record. `Display` shows its first twelve characters.
    pub fn key(&self) -> KeyHash {
        self.0.own.key
    }

    /// The operation's name.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// A number that grows with every claim of this key, also over records that are gone. A
    /// resource that refuses smaller numbers than it has seen is safe from an owner that was paused
    /// and overtaken, which no lease is: the owner that wakes up writes before it looks at the
    /// time.
    ///
    /// A row of a table becomes such a resource with a column for the fence and one condition, so
    /// that its state only moves forward. No row updated: a later owner has written, and this one
    /// stops.
    ///
    /// ```sql
    /// UPDATE orders SET state = ?, fence = ? WHERE id = ? AND fence < ?
    /// ```
    ///
    /// - Ask before the work begins. A fence that is asked for after it names the claim just as
    ///   well, but a call that was overtaken gets [`Superseded`](ErrorKind::Superseded) then and
    ///   has worked for nothing.
    /// - `fence < ?` lets an attempt write once, `fence <= ?` several times. Late owners are
    ///   refused by both.
    /// - Compare fences of one key alone. Those of two keys, or of two operations, say nothing
    ///   about each other, so all writers of a row share one.
    /// - It fits into a signed column of 64 bits.
    /// - In memory and on SQLite the largest fence of the records that are gone is remembered.
    ///   Redis, PostgreSQL and MySQL remember none: the next record of such a key begins at the
    ///   server's time, in microseconds. A server's clock that is set back, or another server that
    ///   takes its place with a clock that is behind, may begin below, and the resource then
    ///   refuses that owner until the time has caught up. So do two processes on MySQL one of which
    ///   claims and releases the key between the read and the write of the other's claim.
    ///
    /// The example `advance_with_fence` runs this, with an owner that is late.
    ///
    /// # Errors
    /// [`Superseded`](ErrorKind::Superseded) when the claim is not this attempt's any more,
    /// [`Unsupported`](ErrorKind::Unsupported) where the operation is disabled or an HTTP layer
    /// fails open, [`NotStored`](ErrorKind::NotStored), which is not retryable here, when the store
    /// does not answer: what the body has done before, the next attempt would do again. The store's
    /// others.
    pub async fn fence(&self) -> Result<u64, Error> {
        let token = match &self.0.own.claim {
            Held::Claim(token, ..) => *token,
            Held::Transaction { fence, .. } => return Ok(*fence),
            Held::Nothing { .. } => {
                let error = self.refused(ErrorKind::Unsupported);
                return Err(error
                    .with_detail("the call runs unprotected, so there is no claim and no fence"));
            }
        };
        let superseded = || self.lost();
        let engine = self.0.own.engine.upgrade().ok_or_else(superseded)?;
        let fence = retry::until(&engine, engine.settings.claim_timeout, || {
            engine.store.clone().fence(self.0.own.key, token)
        });
        fence
            .await
            .map_err(|error| {
                // The kinds and texts of the store's errors are about calls whose body did not run.
                // This one does.
                let (happened, advice) = match error.kind() {
                    StoreErrorKind::Corrupt => (
                        "the record of the running call cannot be read, so its fence is not known",
                        "go on without the fence only if nothing depends on it",
                    ),
                    _ => (
                        "the store did not tell the fence of the running call",
                        "ask again, or go on without it only if nothing depends on it",
                    ),
                };
                let error = engine.store_error(error).may_be_done().would_repeat();
                let error = error.with_text(happened, advice);
                error.of_record(Some(&self.0.operation), &self.0.own.key)
            })?
            .ok_or_else(superseded)
    }

    /// A key for a service downstream: 64 lower-case hexadecimal characters, the same in every
    /// attempt of this call, in every process and release, and another for each `purpose`. It is
    /// made of the [name](Self::key) of the record, and shows nothing of the key. Two services
    /// whose operations and keys have the same names derive the same ones, unless they have
    /// [namespaces](crate::Builder::namespace).
    ///
    /// So has a later call of the same key: one after the `ttl`, or after an error that released
    /// it. A service downstream that knows the earlier one longer takes it for a retry, and answers
    /// as it did then, with a decline too. Where the later call is a new intent, its key says so,
    /// with the date for example, or the purpose does, with the number of the card.
    ///
    /// Inside of a [step](Self::step) of this call it is another for each step too, whichever
    /// `Context` is asked. The question of [`on_crash_verify`](crate::Call::on_crash_verify) is
    /// outside of every step: what it asks about is derived outside of steps as well, and taken
    /// along.
    pub fn derive_key(&self, purpose: &str) -> String {
        match Scope::current().step_of(self) {
            Some(step) => derive_in_step(&self.0.own.key, &step.name, step.index, purpose),
            None => derive(&self.0.own.key, purpose),
        }
    }

    /// Whether the lease is over as far as this process knows: another caller may have taken the
    /// call over. Never in the user's transaction, where there is none.
    pub fn lease_lost(&self) -> bool {
        matches!(&self.0.own.claim, Held::Claim(_, lease, _) if lease.is_lost())
    }

    /// Resolves when the lease is over as far as this process knows. For bodies that can stop.
    pub async fn lease_ended(&self) {
        match &self.0.own.claim {
            Held::Claim(_, lease, _) => lease.ended().await,
            Held::Transaction { .. } | Held::Nothing { .. } => std::future::pending().await,
        }
    }

    /// The body waits for its turn: nothing has happened under the claim yet.
    #[cfg(feature = "http")]
    pub(crate) fn stands_in_line(&self) {
        if let Held::Claim(_, lease, _) = &self.0.own.claim {
            lease.wait();
        }
    }

    /// From now on something may have happened. False when the claim is over: then nothing may.
    #[cfg(feature = "http")]
    pub(crate) fn begins(&self) -> bool {
        match &self.0.own.claim {
            Held::Claim(_, lease, _) => !lease.is_lost() && lease.begin(),
            Held::Transaction { .. } | Held::Nothing { .. } => true,
        }
    }

    /// The store's time, or a little before it.
    #[cfg(feature = "http")]
    pub(crate) fn store_time(&self) -> Option<Timestamp> {
        let (granted, at) = self.0.granted;
        let engine = self.0.own.engine.upgrade()?;
        Some(granted + engine.clock.monotonic().saturating_sub(at))
    }

    /// The requests that this attempt sends to services downstream, and that only their addresses
    /// tell apart.
    #[cfg(feature = "http")]
    pub(crate) fn unlabelled_requests(&self) -> &crate::http::client::Unlabelled {
        &self.0.unlabelled_requests
    }

    /// The error of a body whose claim is another one's.
    fn lost(&self) -> Error {
        self.refused(ErrorKind::Superseded).with_text(CLAIM_LOST.0, CLAIM_LOST.1).would_repeat()
    }

    pub(crate) fn refused(&self, kind: ErrorKind) -> Error {
        refused(kind, &self.0.operation, &self.0.own.key)
    }

    /// Whether this is the question about an earlier attempt, and not a body.
    #[cfg(feature = "http")]
    pub(crate) fn is_question(&self) -> bool {
        matches!(self.0.own.claim, Held::Claim(_, _, None))
    }

    /// Whether both are of one attempt.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Where the steps of this attempt are recorded; nowhere where nothing is claimed.
    pub(crate) fn journal(&self) -> Result<(Arc<Inner>, Option<Arc<Journal>>), Error> {
        let journal = match &self.0.own.claim {
            Held::Claim(_, _, Some(journal)) => Some(journal.clone()),
            Held::Claim(_, _, None) => {
                let detail =
                    "the question about an earlier attempt has no steps: only the body does";
                return Err(self.refused(ErrorKind::Unsupported).with_detail(detail));
            }
            Held::Transaction { .. } => {
                let detail = "a call in a transaction has no steps: what it writes is committed at once or not at all";
                return Err(self.refused(ErrorKind::Unsupported).with_detail(detail));
            }
            Held::Nothing { .. } => None,
        };
        let engine = self.0.own.engine.upgrade().ok_or_else(|| self.lost())?;
        Ok((engine, journal))
    }

    /// This call and those around it, as far as their bodies still run.
    fn running(&self) -> impl Iterator<Item = &Own> {
        std::iter::once(&self.0.own).chain(&self.0.around).filter(|own| own.is_running())
    }

    /// Whether the body of this call is known to be over.
    pub(crate) fn is_over(&self) -> bool {
        !self.0.own.is_running()
    }

    /// Whether this body, or one around it, runs in a transaction of `engine`'s store.
    pub(crate) fn is_in_transaction_of(&self, engine: &Inner) -> bool {
        self.running().any(|own| own.is_in_transaction() && own.is_of_store(engine))
    }

    /// Whether a call of `key` in `engine`'s store would wait for this body.
    pub(crate) fn is_running(&self, engine: &Arc<Inner>, key: &KeyHash) -> bool {
        let holds = |own: &Own| !matches!(own.claim, Held::Nothing { .. });
        self.running().any(|own| own.key == *key && holds(own) && own.is_of_store(engine))
    }

    /// Whether the body of this call, or of one around it, is one of `engine`'s and still runs.
    pub(crate) fn is_inside(&self, engine: &Arc<Inner>) -> bool {
        self.running().any(|own| std::ptr::eq(own.engine.as_ptr(), Arc::as_ptr(engine)))
    }
}

impl Own {
    fn is_running(&self) -> bool {
        match &self.claim {
            Held::Claim(_, lease, _) => !lease.has_body_ended(),
            Held::Transaction { ended, .. } | Held::Nothing { ended, .. } => {
                !ended.load(Ordering::Acquire)
            }
        }
    }

    fn is_in_transaction(&self) -> bool {
        matches!(self.claim, Held::Transaction { .. } | Held::Nothing { in_transaction: true, .. })
    }

    fn is_of_store(&self, engine: &Inner) -> bool {
        self.engine.upgrade().is_some_and(|own| Arc::ptr_eq(&own.store, &engine.store))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("operation", &self.0.operation)
            .field("key", &self.0.own.key)
            .field("attempt", &self.0.attempt)
            .finish_non_exhaustive()
    }
}

/// Takes the running call along into another task.
pub trait InCurrentScope: Future + Sized {
    /// The future with the engine and the [`Context`] of the code that calls this, wherever it is
    /// polled.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{Context, Error, Idempotency, InCurrentScope, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("reports.build", 7).ttl(Duration::from_secs(60)).run(|| async {
    ///     let part = tokio::spawn(async { Context::current().attempt() }.in_current_scope());
    ///     Ok::<_, Error>(part.await.unwrap_or_default())
    /// });
    /// assert_eq!(call.await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    fn in_current_scope(self) -> impl Future<Output = Self::Output> + use<Self> {
        Scope::current().wrap(self)
    }
}

impl<F: Future> InCurrentScope for F {}
