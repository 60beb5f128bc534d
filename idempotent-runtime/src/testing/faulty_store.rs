//! A store that loses requests and answers, and that keeps them waiting, as told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ManualClock;
use crate::clock::Clock as _;
use crate::key::KeyHash;
use crate::store::{
    Abandon, Capabilities, Changed, Checkpoint, Claim, Claimed, Commit, Facets, Page, Park, Purged,
    Record, Release, Remove, Renewal, Resolve, Scan, Store, StoreError, StoreErrorKind, Token,
    Watch, Written,
};

/// What happens to one request to a [`FaultyStore`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It never arrives.
    LostRequest,
    /// It is applied, and its answer never arrives.
    LostAnswer,
    /// It waits for the gate before it is applied.
    Late(Gate),
    /// It is applied, and its answer waits for the gate.
    LateAnswer(Gate),
    /// It takes this long on this clock.
    Slow(ManualClock, Duration),
    /// It is answered with this error, and not applied.
    Refused(StoreErrorKind),
    /// The store's client breaks.
    Panic,
}

/// Where requests wait until the test lets them go on: closed until it is opened.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Closed>);

#[derive(Debug)]
struct Closed {
    semaphore: Semaphore,
    has_been_reached: AtomicBool,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A gate that is closed.
    pub fn new() -> Self {
        Self(Arc::new(Closed {
            semaphore: Semaphore::new(0),
            has_been_reached: AtomicBool::new(false),
        }))
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.0.semaphore.close();
    }

    /// Whether a request has waited here and is over.
    pub fn is_passed(&self) -> bool {
        self.0.has_been_reached.load(Ordering::Acquire) && Arc::strong_count(&self.0) == 1
    }

    /// Resolves once the gate is open.
    pub async fn wait(&self) {
        self.0.has_been_reached.store(true, Ordering::Release);
        let _ = self.0.semaphore.acquire().await;
    }
}

/// A store whose network a test controls: requests and answers to the store inside are lost, kept
/// waiting or refused.
///
/// Operations are named as the methods of [`Store`]: `"claim"`, `"complete"`, `"renew"`, … Another
/// name panics at once: its faults would never come.
///
/// A test that plans a fault which no request meets has tested something else than it says. So when
/// what [`new`](Self::new) gave is dropped, and faults of [`next`](Self::next) are left, it panics
/// and names them; [`unmet_faults`](Self::unmet_faults) tells of them earlier. Keep it in the test,
/// and give the engine a clone.
///
/// The store inside is any store, `Arc<dyn DynStore>` too. Calls in a transaction of the user's
/// ([`run_in`](crate::Call::run_in), the attribute's `tx`) go past the store to the user's own
/// connection, where no fault would meet them: around a SQL store they are refused as on another
/// database ([`Config`](crate::ErrorKind::Config)). Test them with the SQL store itself.
///
/// ```
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency, store::MemoryStore, testing::{Fault, FaultyStore}};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let store = FaultyStore::new(MemoryStore::new());
/// let engine = Idempotency::new(store.clone());
/// let mut charges = 0;
/// store.next("complete", Fault::LostAnswer); // the result is stored, and nobody hears of it
/// let call = engine.call("payments.charge", 7).ttl(Duration::from_secs(60));
/// call.run(async || { charges += 1; Ok::<_, Error>(charges) }).await?;
/// assert_eq!((charges, store.requests("complete")), (1, 2)); // it was stored again, and had been
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: Arc<S>,
    script: Arc<Mutex<Script>>,
    /// The one that the test made: it says at its end what no request met.
    is_original: bool,
}

impl<S> Clone for FaultyStore<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            script: Arc::clone(&self.script),
            is_original: false,
        }
    }
}

impl<S> Drop for FaultyStore<S> {
    fn drop(&mut self) {
        let unmet = self.unmet();
        if self.is_original && !unmet.is_empty() && !std::thread::panicking() {
            let unmet: Vec<_> =
                unmet.iter().map(|(operation, fault)| format!("{operation}: {fault:?}")).collect();
            panic!(
                "no request met these faults, so the test did not see them: {}",
                unmet.join(", ")
            );
        }
    }
}

#[derive(Debug, Default)]
struct Script {
    /// In the order of the names, which people read.
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    always: HashMap<&'static str, Fault>,
    always_at: HashMap<(&'static str, KeyHash), Fault>,
    requests: HashMap<&'static str, usize>,
    claims: Vec<Claim>,
    renewals_are_unanswered: bool,
}

impl<S: Store> FaultyStore<S> {
    /// Everything goes through to `inner` until the test says otherwise.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), script: Arc::default(), is_original: true }
    }

    /// The next request of this kind meets this fault; several wait for one request each, in order.
    ///
    /// # Panics
    /// When the store has no such operation.
    #[track_caller]
    pub fn next(&self, operation: &'static str, fault: Fault) {
        check_name(operation);
        self.script().faults.entry(operation).or_default().push_back(fault);
    }

    /// All requests of this kind meet this fault, until it is taken back with `None`. There need
    /// not be any.
    ///
    /// # Panics
    /// When the store has no such operation.
    #[track_caller]
    pub fn always(&self, operation: &'static str, fault: Option<Fault>) {
        check_name(operation);
        let mut script = self.script();
        match fault {
            Some(fault) => script.always.insert(operation, fault),
            None => script.always.remove(operation),
        };
    }

    /// All requests of this kind for the record of `key` meet this fault, until it is taken back
    /// with `None`: a row that somebody has locked, for example. There need not be any. What is for
    /// many records at once (`renew`, `scan`, `purge`) goes through.
    ///
    /// # Panics
    /// When the store has no such operation.
    #[track_caller]
    pub fn always_at(&self, operation: &'static str, key: KeyHash, fault: Option<Fault>) {
        check_name(operation);
        let mut script = self.script();
        match fault {
            Some(fault) => script.always_at.insert((operation, key), fault),
            None => script.always_at.remove(&(operation, key)),
        };
    }

    /// The faults of [`next`](Self::next) that no request has met yet, with their operations.
    pub fn unmet_faults(&self) -> Vec<(&'static str, Fault)> {
        self.unmet()
    }

    /// How many requests of this kind were made.
    ///
    /// # Panics
    /// When the store has no such operation.
    #[track_caller]
    pub fn requests(&self, operation: &'static str) -> usize {
        check_name(operation);
        self.script().requests.get(operation).copied().unwrap_or_default()
    }

    /// The claims that were sent, in order, whether or not they arrived.
    pub fn sent_claims(&self) -> Vec<Claim> {
        self.script().claims.clone()
    }

    /// Renewals are applied, and their answers are fewer than they were.
    pub fn leave_renewals_unanswered(&self) {
        self.script().renewals_are_unanswered = true;
    }

    async fn pass<T>(
        &self,
        operation: &'static str,
        key: Option<KeyHash>,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut script = self.script();
            *script.requests.entry(operation).or_default() += 1;
            let next = script.faults.get_mut(operation).and_then(VecDeque::pop_front);
            next.or_else(|| script.always_at.get(&(operation, key?)).cloned())
                .or_else(|| script.always.get(operation).cloned())
        };
        let lost = StoreError::new(StoreErrorKind::Unavailable, operation);
        match fault {
            None => request.await,
            Some(Fault::LostRequest) => Err(lost),
            Some(Fault::LostAnswer) => {
                request.await?;
                Err(lost)
            }
            Some(Fault::Late(gate)) => {
                gate.wait().await;
                request.await
            }
            Some(Fault::LateAnswer(gate)) => {
                let answer = request.await;
                gate.wait().await;
                answer
            }
            Some(Fault::Slow(clock, duration)) => {
                clock.sleep(duration).await;
                request.await
            }
            Some(Fault::Refused(kind)) => Err(StoreError::new(kind, operation)),
            Some(Fault::Panic) => panic!("the store's client breaks at {operation}"),
        }
    }
}

impl<S> FaultyStore<S> {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unmet(&self) -> Vec<(&'static str, Fault)> {
        let script = self.script();
        let faults = script.faults.iter();
        faults
            .flat_map(|(operation, faults)| faults.iter().map(|fault| (*operation, fault.clone())))
            .collect()
    }
}

/// Refuses what is no method of [`Store`].
#[track_caller]
fn check_name(operation: &str) {
    let known = ["claim", "renew"].iter().chain(OPERATIONS);
    assert!(
        known.clone().any(|known| *known == operation),
        "`{operation}` is no operation of a store; they are {}",
        known.copied().collect::<Vec<_>>().join(", ")
    );
}

macro_rules! through {
    ($($method:ident($($argument:ident: $type:ty),*) for $key:expr => $answer:ty;)*) => {
        /// The operations that are only passed on.
        const OPERATIONS: &[&str] = &[$(stringify!($method)),*];

        #[deny(clippy::missing_trait_methods)]
        impl<S: Store> Store for FaultyStore<S> {
            fn name(&self) -> &'static str {
                "faulty"
            }

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            // Not the results at hand: each call is to meet its faults.
            fn facets(&self) -> Facets<'_> {
                let inside = self.inner.facets();
                Facets::none()
                    .with_change_feed(inside.change_feed)
                    .with_transactions(inside.transactions)
            }

            async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
                self.script().claims.push(claim.clone());
                self.pass("claim", Some(claim.key), self.inner.claim(claim)).await
            }

            async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<Written>, StoreError> {
                let mut answers = self.pass("renew", None, self.inner.renew(renewals)).await?;
                if self.script().renewals_are_unanswered {
                    answers.clear();
                }
                Ok(answers)
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    self.pass(stringify!($method), $key, self.inner.$method($($argument),*)).await
                }
            )*
        }
    };
}

through! {
    complete(commit: Commit) for Some(commit.key) => Written;
    release(release: Release) for Some(release.key) => Written;
    abandon(abandon: Abandon) for Some(abandon.key) => Written;
    park(park: Park) for Some(park.key) => Written;
    checkpoint(checkpoint: Checkpoint) for Some(checkpoint.key) => Written;
    fence(key: KeyHash, token: Token) for Some(key) => Option<u64>;
    read(key: KeyHash) for Some(key) => Option<Record>;
    watch(key: KeyHash) for Some(key) => Watch;
    resolve(resolve: Resolve) for Some(resolve.key) => Changed;
    remove(remove: Remove) for Some(remove.key) => Changed;
    scan(scan: Scan) for None => Page;
    purge(limit: usize) for None => Purged;
}
