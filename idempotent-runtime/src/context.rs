//! The view of a running call from inside its body: its attempt, its fence, and keys for downstream
//! services.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::engine::Extensions;
use crate::engine::Inner;
use crate::engine::lease::Lease;
use crate::engine::task_state::TaskState;
use crate::error::{CLAIM_LOST, Error, ErrorKind};
use crate::key::{KeyHash, derive, derive_in_step};
use crate::lock::Mutex;
use crate::outcome::refused;
use crate::steps::Journal;
use crate::store::{CrashPolicy, Grant, StoreErrorKind, Token};
use crate::watch::{body_is_in_line, engine_waits};

/// The running call, seen from inside its body.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Context, Error, Idempotency, store::MemoryStore};
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
    /// True if the next caller asks the outside world about an attempt that breaks off.
    may_be_verified: bool,
    /// The store's time when the claim was granted, and the monotonic time when that was known.
    granted: (Timestamp, Duration),
    /// The enclosing calls whose bodies were running when this one began. Not their contexts, which
    /// hold the calls around them in turn: tasks that endlessly spawn one another would build an
    /// unbounded chain.
    around: Vec<Own>,
    /// The values that edges keep with the attempt.
    extensions: Mutex<Extensions>,
}

/// The part of a call that calls made inside its body need to know.
#[derive(Clone)]
struct Own {
    engine: Weak<Inner>,
    key: KeyHash,
    claim: Held,
}

/// The protection under which a body runs.
#[derive(Clone)]
enum Held {
    /// The claim, its lease, and the body's journal; no journal while the outside world is queried.
    Claim(Token, Arc<Lease>, Option<Arc<Journal>>),
    /// The record's row in the user's transaction, until the body has ended.
    Transaction { fence: u64, ended: Arc<AtomicBool> },
    /// No protection: the operation is disabled, or an HTTP layer fails open.
    Nothing { in_transaction: bool, ended: Arc<AtomicBool> },
}

impl Context {
    pub(crate) fn new(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        grant: &Grant,
        granted_at: Duration,
        lease: Arc<Lease>,
        journal: Option<Arc<Journal>>,
    ) -> Self {
        let claim = Held::Claim(grant.record.owner, lease, journal);
        Self::of_claim(engine, operation, grant, granted_at, claim)
    }

    /// The context of a call whose record is in the user's transaction.
    pub(crate) fn in_transaction(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        grant: &Grant,
        ended: Arc<AtomicBool>,
    ) -> Self {
        let claim = Held::Transaction { fence: grant.record.fence, ended };
        Self::of_claim(engine, operation, grant, engine.clock.monotonic(), claim)
    }

    /// The context of a call of a disabled operation, or of a request whose layer fails open.
    pub(crate) fn unprotected(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        key: KeyHash,
        ended: &Arc<AtomicBool>,
        in_transaction: bool,
    ) -> Self {
        let claim = Held::Nothing { in_transaction, ended: Arc::clone(ended) };
        let now = (engine.clock.now(), engine.clock.monotonic());
        Self::of_parts(engine, operation, key, (0, false), now, claim)
    }

    fn of_claim(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        grant: &Grant,
        granted_at: Duration,
        claim: Held,
    ) -> Self {
        let record = &grant.record;
        let granted = (record.read_at, granted_at);
        let attempt = (record.attempts, record.policy == CrashPolicy::Verify);
        Self::of_parts(engine, operation, record.key, attempt, granted, claim)
    }

    fn of_parts(
        engine: &Arc<Inner>,
        operation: &Arc<str>,
        key: KeyHash,
        (attempt, may_be_verified): (u32, bool),
        granted: (Timestamp, Duration),
        claim: Held,
    ) -> Self {
        let around = TaskState::current()
            .context()
            .map(|context| context.running().cloned().collect())
            .unwrap_or_default();
        Self(Arc::new(Parts {
            own: Own { engine: Arc::downgrade(engine), key, claim },
            operation: operation.clone(),
            attempt,
            may_be_verified,
            granted,
            around,
            extensions: Mutex::default(),
        }))
    }

    /// Returns the innermost guarded call that runs the current code.
    ///
    /// # Panics
    /// Panics outside the body of a guarded call, and in a task that the body spawned without
    /// [`in_current_call`](crate::InCurrentCall::in_current_call).
    /// [`try_current`](Self::try_current) does not panic.
    #[track_caller]
    pub fn current() -> Self {
        Self::try_current().expect(
            "`Context::current()` must be called in the body of a guarded call; spawned futures \
             need `.in_current_call()`",
        )
    }

    /// Returns the innermost guarded call that runs the current code, or `None` outside of one.
    pub fn try_current() -> Option<Self> {
        TaskState::current().context().cloned()
    }

    /// The number of attempts so far, this one included: 1 in the first. A claim that was released
    /// before its body began does not count. A claim whose body ended in an error that released it
    /// counts only with [`count_attempts`](crate::Call::count_attempts), and any call of the key
    /// without that setting forgets the count; after a takeover it counts in any case. Zero where the operation is
    /// [disabled](crate::Idempotency::disable) or an HTTP layer fails open: nothing is claimed
    /// there.
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

    /// A number that grows with every claim of this key, also after earlier records were removed. A
    /// resource that rejects fences lower than the highest it has seen is protected from a paused
    /// owner that resumes after being replaced. A lease alone cannot protect it: the resumed owner
    /// may write before it notices that its lease has expired.
    ///
    /// To make a table's row such a resource, add a column for the fence and one condition, so that
    /// its state only moves forward. If no row was updated, a later owner has written, and this one
    /// stops.
    ///
    /// ```sql
    /// UPDATE orders SET state = ?, fence = ? WHERE id = ? AND fence < ?
    /// ```
    ///
    /// - Request the fence before the work begins. A fence requested afterwards identifies the
    ///   claim just as well, but a call that was overtaken then gets
    ///   [`Superseded`](ErrorKind::Superseded) and has worked for nothing.
    /// - `fence < ?` lets an attempt write once, `fence <= ?` several times. Both reject late
    ///   owners.
    /// - Compare only fences of the same key. Fences of different keys or operations are unrelated,
    ///   so all writers of a row must share one.
    /// - A fence fits into a signed 64-bit column.
    /// - In memory and on SQLite the highest fence of removed records is remembered. Redis,
    ///   PostgreSQL and MySQL do not remember it: the next record of such a key begins at the
    ///   server's time, in microseconds. If a server's clock is set back, or another server with a
    ///   clock that is behind takes its place, the next fence may be lower, and the resource then
    ///   rejects that owner until the time has caught up. The same can happen with two processes on
    ///   MySQL, and on PostgreSQL where a record has just been removed, if one claims and releases the
    ///   key between the read and the write of the other's claim.
    /// - A call in a transaction (`tx`) that is rolled back leaves no fence behind. A call without
    ///   `tx` that waited for it may have a smaller one, and on SQLite so may a call of another
    ///   process that follows within a millisecond. Do not show the fence of a call in a transaction
    ///   to a resource outside its database.
    ///
    /// The example `advance_with_fence` runs this with a late owner.
    ///
    /// # Errors
    /// [`Superseded`](ErrorKind::Superseded) if this attempt no longer holds the claim,
    /// [`Unsupported`](ErrorKind::Unsupported) where the operation is disabled or an HTTP layer
    /// fails open, [`NotStored`](ErrorKind::NotStored), which is not retryable here, if the store
    /// does not answer: the next attempt would repeat what the body has done so far. The store's
    /// other errors.
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
        let fence = engine_waits(engine.store.fence(self.0.own.key, token)).await;
        if let (Held::Claim(_, _, Some(journal)), Err(_) | Ok(None)) = (&self.0.own.claim, &fence) {
            journal.note_cut_short();
        }
        fence
            .map_err(|error| {
                // The kinds and messages of the store's errors are about calls whose body did not
                // run. This one's body does.
                let (happened, advice) = match error.kind() {
                    StoreErrorKind::Corrupt => (
                        "the record of the running call cannot be read, so its fence is not known",
                        "continue without the fence only if nothing depends on it",
                    ),
                    _ => (
                        "the store did not return the fence of the running call",
                        "ask again, or continue without it only if nothing depends on it",
                    ),
                };
                let error = engine.store_error(error).may_be_done().would_repeat();
                let error = error.with_text(happened, advice);
                error.of_record(Some(&self.0.operation), &self.0.own.key)
            })?
            .ok_or_else(superseded)
    }

    /// Returns a key for a downstream service: 64 lower-case hexadecimal characters, the same in
    /// every attempt of this call, in every process and release, and different for each `purpose`.
    /// It is derived from the [name](Self::key) of the record and reveals nothing about the key.
    /// Two services with the same operation and key names derive the same keys, unless they have
    /// [namespaces](crate::Builder::namespace).
    ///
    /// A later call of the same key derives the same keys too: one after the `ttl`, or after an
    /// error that released it. A downstream service that remembers the earlier call for longer
    /// takes the later one for a retry, and answers as it did then, even with a decline. If the
    /// later call is a new intent, express that in its key, with the date for example, or in the
    /// purpose, with the number of the card.
    ///
    /// Inside a [step](Self::step) of this call the key also differs for each step, whichever
    /// `Context` is used. A thread, and a task without
    /// [`in_current_call`](crate::InCurrentCall::in_current_call), are outside of every step, also
    /// if the step waits for them: there all steps would get one key, and a downstream service would
    /// answer all of them as the first. Derive the key before you spawn. The verification of [`on_crash_verify`](crate::Call::on_crash_verify)
    /// runs outside of every step: derive the keys that it needs outside of steps in the body too,
    /// and pass them to the steps. [`derive_key_in_step`](Self::derive_key_in_step) returns those
    /// that a step has derived itself.
    pub fn derive_key(&self, purpose: &str) -> String {
        match TaskState::current().step_of(self) {
            Some(step) => derive_in_step(&self.0.own.key, &step.name, step.index, purpose),
            None => derive(&self.0.own.key, purpose),
        }
    }

    /// Returns the key that [`derive_key`](Self::derive_key) returns inside the
    /// [step](Self::step) of this call with this name and index, wherever it is called. The index
    /// of a step without one is 0.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Context, Error, Idempotency, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("orders.pay", 7).ttl(Duration::from_secs(60)).run(|| async {
    ///     let context = Context::current();
    ///     let charge = || async { Ok::<_, Error>(Context::current().derive_key("psp")) };
    ///     let derived = context.step("charge", charge).await?;
    ///     assert_eq!(derived, context.derive_key_in_step("charge", 0, "psp"));
    ///     Ok::<_, Error>(())
    /// });
    /// call.await
    /// # }
    /// ```
    pub fn derive_key_in_step(&self, step: &str, index: u64, purpose: &str) -> String {
        derive_in_step(&self.0.own.key, step, index, purpose)
    }

    /// The number of the try of the step of this call that runs here.
    pub(crate) fn try_of_step(&self) -> Option<u32> {
        TaskState::current().try_of(self)
    }

    /// Returns true if the claim has ended as far as this process knows, and another caller may have
    /// taken the call over: its lease has expired, a shutdown has taken it, or the call itself has
    /// ended, which tasks that its body has left behind see. Always false in the user's transaction,
    /// where there is no lease.
    pub fn lease_lost(&self) -> bool {
        matches!(&self.0.own.claim, Held::Claim(_, lease, _) if lease.is_lost())
    }

    /// Resolves when [`lease_lost`](Self::lease_lost) becomes true. For bodies that can stop.
    pub async fn lease_ended(&self) {
        match &self.0.own.claim {
            Held::Claim(_, lease, _) => lease.ended().await,
            Held::Transaction { .. } | Held::Nothing { .. } => std::future::pending().await,
        }
    }

    /// The address of the engine, which says whether two calls have the same one.
    #[cfg(feature = "testing")]
    pub(crate) fn engine_ptr(&self) -> *const Inner {
        self.0.own.engine.as_ptr()
    }

    /// Marks the body as waiting for its turn: nothing has happened under the claim yet. A body that
    /// has come to a step has begun, whatever it says.
    pub(crate) fn stands_in_line(&self) {
        body_is_in_line(true);
        if let Held::Claim(_, lease, _) = &self.0.own.claim {
            match lease.journal() {
                Some(journal) => journal.stands_in_line(),
                None => lease.mark_waiting(),
            }
        }
    }

    /// Marks that something may have happened from now on. Returns false if the claim has ended:
    /// then nothing may happen.
    pub(crate) fn begins(&self) -> bool {
        body_is_in_line(false);
        match &self.0.own.claim {
            Held::Claim(_, _, Some(journal)) => journal.begins_turn(),
            // A question has no turn.
            Held::Claim(_, _, None) => false,
            Held::Transaction { .. } | Held::Nothing { .. } => true,
        }
    }

    /// The store's time, or slightly earlier.
    pub(crate) fn store_time(&self) -> Option<Timestamp> {
        let (granted, at) = self.0.granted;
        let engine = self.0.own.engine.upgrade()?;
        Some(granted + engine.clock.monotonic().saturating_sub(at))
    }

    /// The value of type `T` of this attempt, created when it is first requested.
    pub(crate) fn extension<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let extensions = || self.0.extensions.lock();
        let found = extensions().shared();
        found.unwrap_or_else(|| {
            // Created without the lock, which its constructor may need.
            let created = Arc::new(T::default());
            let mut extensions = extensions();
            extensions.shared().unwrap_or_else(|| {
                *extensions = extensions.with(created.clone());
                created
            })
        })
    }

    /// The error of a body whose claim was lost to another owner.
    fn lost(&self) -> Error {
        self.refused(ErrorKind::Superseded).with_text(CLAIM_LOST.0, CLAIM_LOST.1).would_repeat()
    }

    pub(crate) fn refused(&self, kind: ErrorKind) -> Error {
        refused(kind, &self.0.operation, &self.0.own.key)
    }

    /// Returns true if this is the verification of an earlier attempt and not a body.
    pub(crate) fn is_question(&self) -> bool {
        matches!(self.0.own.claim, Held::Claim(_, _, None))
    }

    /// Returns true if the next caller asks the outside world about an attempt that breaks off.
    pub(crate) fn may_be_verified(&self) -> bool {
        self.0.may_be_verified
    }

    /// Returns true if both belong to the same attempt.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The journal that records the steps of this attempt; `None` where nothing is claimed.
    pub(crate) fn journal(&self) -> Result<(Arc<Inner>, Option<Arc<Journal>>), Error> {
        let journal = match &self.0.own.claim {
            Held::Claim(_, _, Some(journal)) => Some(journal.clone()),
            Held::Claim(_, _, None) => {
                let detail =
                    "the verification of an earlier attempt has no steps: only the body does";
                return Err(self.refused(ErrorKind::Unsupported).with_detail(detail));
            }
            Held::Transaction { .. } => {
                self.extension::<RefusedStep>().0.store(true, Ordering::Release);
                let detail = "a call in a transaction has no steps: what it writes is committed as \
                    a whole or not at all";
                return Err(self.refused(ErrorKind::Unsupported).with_detail(detail));
            }
            Held::Nothing { .. } => None,
        };
        let engine = self.0.own.engine.upgrade().ok_or_else(|| self.lost())?;
        Ok((engine, journal))
    }

    /// Returns true if a body in a transaction was refused a step.
    pub(crate) fn was_refused_a_step(&self) -> bool {
        self.extension::<RefusedStep>().0.load(Ordering::Acquire)
    }

    /// This call and the enclosing ones whose bodies still run.
    fn running(&self) -> impl Iterator<Item = &Own> {
        std::iter::once(&self.0.own).chain(&self.0.around).filter(|own| own.is_running())
    }

    /// Returns true if the body of this call is known to have ended.
    pub(crate) fn is_over(&self) -> bool {
        !self.0.own.is_running()
    }

    /// Returns true if this body, or one around it, runs in a transaction of `engine`'s store.
    pub(crate) fn is_in_transaction_of(&self, engine: &Inner) -> bool {
        self.running().any(|own| own.is_in_transaction() && own.is_of_store(engine))
    }

    /// Returns true if a call of `key` in `engine`'s store would wait for this body.
    pub(crate) fn is_running(&self, engine: &Arc<Inner>, key: &KeyHash) -> bool {
        let holds = |own: &Own| !matches!(own.claim, Held::Nothing { .. });
        self.running().any(|own| own.key == *key && holds(own) && own.is_of_store(engine))
    }

    /// Returns true if a body of `engine`, this call's or one around it, still runs.
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
        self.engine.upgrade().is_some_and(|own| own.store.is_same(&engine.store))
    }
}

/// Set where a body in a transaction was refused a step.
#[derive(Debug, Default)]
struct RefusedStep(AtomicBool);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("operation", &self.0.operation)
            .field("key", &self.0.own.key)
            .field("attempt", &self.0.attempt)
            .finish_non_exhaustive()
    }
}
