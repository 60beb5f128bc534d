//! A store that loses requests and answers, and that keeps them waiting, as told.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ManualClock;
use crate::clock::Clock as _;
use crate::key::KeyHash;
use crate::store::{
    Abandon, Capabilities, Changed, Checkpoint, Claim, Claimed, Commit, Page, Park, Purged, Record, Release, Remove,
    Renewal, Resolve, Scan, Store, StoreError, StoreErrorKind, Token, Watch, Written,
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
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A gate that is closed.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.0.close();
    }

    /// Whether the request that waited here is over.
    pub fn is_passed(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Resolves once the gate is open.
    pub async fn wait(&self) {
        let _ = self.0.acquire().await;
    }
}

/// A store whose network a test controls: requests and answers to the store inside are lost, kept waiting or refused.
///
/// Operations are named as the methods of [`Store`]: `"claim"`, `"complete"`, `"renew"`, …
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
}

impl<S> Clone for FaultyStore<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), script: Arc::clone(&self.script) }
    }
}

#[derive(Debug, Default)]
struct Script {
    faults: HashMap<&'static str, VecDeque<Fault>>,
    always: HashMap<&'static str, Fault>,
    requests: HashMap<&'static str, usize>,
    claims: Vec<Claim>,
    renewals_are_unanswered: bool,
}

impl<S: Store> FaultyStore<S> {
    /// Everything goes through to `inner` until the test says otherwise.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), script: Arc::default() }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request of this kind meets this fault.
    pub fn next(&self, operation: &'static str, fault: Fault) {
        self.script().faults.entry(operation).or_default().push_back(fault);
    }

    /// All requests of this kind meet this fault, until it is taken back with `None`.
    pub fn always(&self, operation: &'static str, fault: Option<Fault>) {
        let mut script = self.script();
        match fault {
            Some(fault) => script.always.insert(operation, fault),
            None => script.always.remove(operation),
        };
    }

    /// How many requests of this kind were made.
    pub fn requests(&self, operation: &'static str) -> usize {
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
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut script = self.script();
            *script.requests.entry(operation).or_default() += 1;
            let next = script.faults.get_mut(operation).and_then(VecDeque::pop_front);
            next.or_else(|| script.always.get(operation).cloned())
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

macro_rules! through {
    ($($method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[deny(clippy::missing_trait_methods)]
        impl<S: Store> Store for FaultyStore<S> {
            fn name(&self) -> &'static str {
                "faulty"
            }

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
                self.script().claims.push(claim.clone());
                self.pass("claim", self.inner.claim(claim)).await
            }

            async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<Written>, StoreError> {
                let mut answers = self.pass("renew", self.inner.renew(renewals)).await?;
                if self.script().renewals_are_unanswered {
                    answers.clear();
                }
                Ok(answers)
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    self.pass(stringify!($method), self.inner.$method($($argument),*)).await
                }
            )*
        }
    };
}

through! {
    complete(commit: Commit) -> Written;
    release(release: Release) -> Written;
    abandon(abandon: Abandon) -> Written;
    park(park: Park) -> Written;
    checkpoint(checkpoint: Checkpoint) -> Written;
    fence(key: KeyHash, token: Token) -> Option<u64>;
    read(key: KeyHash) -> Option<Record>;
    watch(key: KeyHash) -> Watch;
    resolve(resolve: Resolve) -> Changed;
    remove(remove: Remove) -> Changed;
    scan(scan: Scan) -> Page;
    purge(limit: usize) -> Purged;
}
