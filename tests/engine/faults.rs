//! A store that loses requests and answers, and that keeps them waiting, as told.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::key::KeyHash;
use idempotency::store::{
    Abandon, Capabilities, Changed, Checkpoint, Claim, Claimed, Commit, MemoryStore, Page, Park, Purged, Record,
    Release, Remove, Renewal, Resolve, Scan, Store, StoreError, StoreErrorKind, Token, Watch, Written,
};
use idempotency::testing::ManualClock;
use tokio::sync::Semaphore;

/// What happens to one request.
#[derive(Clone, Debug)]
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

/// Closed until it is opened.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub fn open(&self) {
        self.0.close();
    }

    /// Whether the request that waited here is over.
    pub fn is_passed(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub async fn wait(&self) {
        let _ = self.0.acquire().await;
    }
}

#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: MemoryStore,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    faults: HashMap<&'static str, VecDeque<Fault>>,
    always: HashMap<&'static str, Fault>,
    requests: HashMap<&'static str, usize>,
    claims: Vec<Claim>,
    renewals_are_unanswered: bool,
}

impl FaultyStore {
    pub fn new(inner: MemoryStore) -> Self {
        Self { inner, script: Arc::default() }
    }

    /// The next request of this kind meets this fault.
    pub fn next(&self, operation: &'static str, fault: Fault) {
        self.script.lock().unwrap().faults.entry(operation).or_default().push_back(fault);
    }

    /// All requests of this kind meet this fault, until it is taken back with `None`.
    pub fn always(&self, operation: &'static str, fault: Option<Fault>) {
        let mut script = self.script.lock().unwrap();
        match fault {
            Some(fault) => script.always.insert(operation, fault),
            None => script.always.remove(operation),
        };
    }

    /// How many requests of this kind were made.
    pub fn requests(&self, operation: &'static str) -> usize {
        self.script.lock().unwrap().requests.get(operation).copied().unwrap_or_default()
    }

    /// The claims that were sent, in order, whether or not they arrived.
    pub fn sent_claims(&self) -> Vec<Claim> {
        self.script.lock().unwrap().claims.clone()
    }

    /// Renewals are applied, and their answers are fewer than they were.
    pub fn leave_renewals_unanswered(&self) {
        self.script.lock().unwrap().renewals_are_unanswered = true;
    }

    async fn pass<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut script = self.script.lock().unwrap();
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
        impl Store for FaultyStore {
            fn name(&self) -> &'static str {
                "faulty"
            }

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
                self.script.lock().unwrap().claims.push(claim.clone());
                self.pass("claim", self.inner.claim(claim)).await
            }

            async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<Written>, StoreError> {
                let mut answers = self.pass("renew", self.inner.renew(renewals)).await?;
                if self.script.lock().unwrap().renewals_are_unanswered {
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
