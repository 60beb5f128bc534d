//! A store that loses and delays requests and responses on demand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::ManualClock;
use crate::clock::Clock as _;
use crate::key::KeyHash;
use crate::lock::Mutex;
use crate::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Facets, Operation, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal, Resolve,
    Scan, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
};

/// The fault of one request to a [`FaultyStore`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The request never arrives.
    LostRequest,
    /// The request is applied, but its response never arrives.
    LostAnswer,
    /// The request waits for the gate before it is applied. Then it is applied even if its sender
    /// has given it up, as a message on its way is.
    Late(Gate),
    /// The request is applied, and its response waits for the gate.
    LateAnswer(Gate),
    /// The request waits for this long on this clock before it is applied. Then it is applied even
    /// if its sender has given it up.
    Slow(ManualClock, Duration),
    /// The request fails with this error, and is not applied.
    Refused(StoreErrorKind),
    /// The store's client panics.
    Panic,
}

/// A gate at which requests wait until the test opens it. It is closed at first.
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
    /// Creates a closed gate.
    pub fn new() -> Self {
        Self(Arc::new(Closed {
            semaphore: Semaphore::new(0),
            has_been_reached: AtomicBool::new(false),
        }))
    }

    /// Opens the gate for all requests, now and later.
    pub fn open(&self) {
        self.0.semaphore.close();
    }

    /// Returns true if a request has waited here and has ended.
    pub fn is_passed(&self) -> bool {
        self.0.has_been_reached.load(Ordering::Acquire) && Arc::strong_count(&self.0) == 1
    }

    /// Resolves once the gate is open.
    pub async fn wait(&self) {
        self.0.has_been_reached.store(true, Ordering::Release);
        let _ = self.0.semaphore.acquire().await;
    }
}

/// A store whose network a test controls: requests to the inner store and its responses are lost,
/// delayed or refused.
///
/// An operation that is no method of [`Store`] ([`Operation::Connect`]) panics at once, because its
/// faults would never occur.
///
/// A test that plans a fault which no request meets does not test what it claims. So the instance
/// that [`new`](Self::new) returned panics when it is dropped with faults of [`next`](Self::next)
/// left, and names them. [`unmet_faults`](Self::unmet_faults) returns them earlier. Keep that
/// instance in the test, and pass a clone to the engine.
///
/// The inner store can be any store, including `Arc<dyn DynStore>`. Calls in the user's own
/// transaction ([`run_in`](crate::Call::run_in), the attribute's `tx`) bypass the store and use the
/// user's own connection, where no fault would meet them. Around a SQL store they are therefore
/// refused ([`Config`](crate::ErrorKind::Config)). Test them with the SQL store itself. For the same
/// reason, a repeated call is not answered from the memory of the store inside.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, testing::{Fault, FaultyStore}};
/// # use idempotency::store::{MemoryStore, Operation};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let store = FaultyStore::new(MemoryStore::new());
/// let engine = Idempotency::new(store.clone());
/// let mut charges = 0;
/// store.next(Operation::Complete, Fault::LostAnswer); // the result is stored, but the response is lost
/// let call = engine.call("payments.charge", 7).ttl(Duration::from_secs(60));
/// call.run(async || { charges += 1; Ok::<_, Error>(charges) }).await?;
/// assert_eq!((charges, store.requests(Operation::Complete)), (1, 2)); // the second found it stored
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: Arc<S>,
    script: Arc<Mutex<Script>>,
    /// True for the instance that the test created: it reports unmet faults when it is dropped.
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
    /// Sorted by name, because people read it.
    faults: BTreeMap<Operation, VecDeque<Fault>>,
    always: HashMap<Operation, Fault>,
    always_at: HashMap<(Operation, KeyHash), Fault>,
    requests: HashMap<Operation, usize>,
    claims: Vec<Claim>,
    renewals_are_unanswered: bool,
}

impl<S: Store> FaultyStore<S> {
    /// Creates a store that forwards everything to `inner` until the test plans a fault.
    pub fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), script: Arc::default(), is_original: true }
    }

    /// Plans a fault for the next request of this kind. Several faults are met by one request each,
    /// in order.
    ///
    /// # Panics
    /// If `operation` is not a method of [`Store`].
    #[track_caller]
    pub fn next(&self, operation: Operation, fault: Fault) {
        check_operation(operation);
        self.script().faults.entry(operation).or_default().push_back(fault);
    }

    /// Applies this fault to all requests of this kind, until it is cleared with `None`. No request
    /// has to meet it.
    ///
    /// # Panics
    /// If `operation` is not a method of [`Store`].
    #[track_caller]
    pub fn always(&self, operation: Operation, fault: Option<Fault>) {
        check_operation(operation);
        let mut script = self.script();
        match fault {
            Some(fault) => script.always.insert(operation, fault),
            None => script.always.remove(&operation),
        };
    }

    /// Applies this fault to all requests of this kind for the record of `key`, until it is cleared
    /// with `None`: for example a row that another client has locked. No request has to meet it.
    /// Operations on many records at once (`renew`, `scan`, `purge`) are not affected.
    ///
    /// # Panics
    /// If `operation` is not a method of [`Store`].
    #[track_caller]
    pub fn always_at(&self, operation: Operation, key: KeyHash, fault: Option<Fault>) {
        check_operation(operation);
        let mut script = self.script();
        match fault {
            Some(fault) => script.always_at.insert((operation, key), fault),
            None => script.always_at.remove(&(operation, key)),
        };
    }

    /// Returns the faults of [`next`](Self::next) that no request has met yet, with their
    /// operations.
    pub fn unmet_faults(&self) -> Vec<(Operation, Fault)> {
        self.unmet()
    }

    /// Returns the number of requests of this kind.
    ///
    /// # Panics
    /// If `operation` is not a method of [`Store`].
    #[track_caller]
    pub fn requests(&self, operation: Operation) -> usize {
        check_operation(operation);
        self.script().requests.get(&operation).copied().unwrap_or_default()
    }

    /// Returns the claims that were sent, in order, whether or not they arrived.
    pub fn sent_claims(&self) -> Vec<Claim> {
        self.script().claims.clone()
    }

    /// Applies renewals from now on, but returns an empty list of results.
    pub fn leave_renewals_unanswered(&self) {
        self.script().renewals_are_unanswered = true;
    }

    async fn pass<T: Send + 'static>(
        &self,
        operation: Operation,
        key: Option<KeyHash>,
        request: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut script = self.script();
            *script.requests.entry(operation).or_default() += 1;
            let next = script.faults.get_mut(&operation).and_then(VecDeque::pop_front);
            next.or_else(|| script.always_at.get(&(operation, key?)).cloned())
                .or_else(|| script.always.get(&operation).cloned())
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
                OnItsWay::new(async move {
                    gate.wait().await;
                    request.await
                })
                .await
            }
            Some(Fault::LateAnswer(gate)) => {
                let answer = request.await;
                gate.wait().await;
                answer
            }
            Some(Fault::Slow(clock, duration)) => {
                OnItsWay::new(async move {
                    clock.sleep(duration).await;
                    request.await
                })
                .await
            }
            Some(Fault::Refused(kind)) => Err(StoreError::new(kind, operation)),
            Some(Fault::Panic) => panic!("the store's client breaks at {operation}"),
        }
    }
}

impl<S> FaultyStore<S> {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock()
    }

    fn unmet(&self) -> Vec<(Operation, Fault)> {
        let script = self.script();
        let faults = script.faults.iter();
        faults
            .flat_map(|(operation, faults)| faults.iter().map(|fault| (*operation, fault.clone())))
            .collect()
    }
}

/// A request that was sent: it arrives even if its sender has given it up.
struct OnItsWay<T: Send + 'static> {
    /// `None` once it has arrived.
    request: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    /// The runtime of its sender. Without one it does not go on.
    runtime: Option<Handle>,
}

impl<T: Send + 'static> OnItsWay<T> {
    fn new(request: impl Future<Output = T> + Send + 'static) -> Self {
        Self { request: Some(Box::pin(request)), runtime: Handle::try_current().ok() }
    }
}

impl<T: Send + 'static> Future for OnItsWay<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out while it is polled: one that panics does not go on.
        let Some(mut request) = self.request.take() else { return Poll::Pending };
        let polled = request.as_mut().poll(cx);
        if polled.is_pending() {
            self.request = Some(request);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for OnItsWay<T> {
    fn drop(&mut self) {
        if let (Some(request), Some(runtime)) = (self.request.take(), &self.runtime) {
            runtime.spawn(request);
        }
    }
}

/// Panics if no request to the store inside is of this kind.
#[track_caller]
fn check_operation(operation: Operation) {
    assert!(
        OPERATIONS.contains(&operation),
        "`{operation}` is not a request to a store; the requests are {}",
        OPERATIONS.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
}

macro_rules! through {
    ($($operation:ident $method:ident($($argument:ident: $type:ty),*) for $key:expr => $answer:ty;)*) => {
        /// The operations that faults can meet.
        const OPERATIONS: &[Operation] =
            &[Operation::Claim, Operation::Renew, $(Operation::$operation),*];

        #[deny(clippy::missing_trait_methods)]
        impl<S: Store> Store for FaultyStore<S> {
            fn name(&self) -> &'static str {
                "faulty"
            }

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            // Not the local results and transactions: no fault would meet a call there.
            fn facets(&self) -> Facets<'_> {
                Facets::none().with_change_feed(self.inner.facets().change_feed)
            }

            async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
                self.script().claims.push(claim.clone());
                let (key, inner) = (claim.key, Arc::clone(&self.inner));
                self.pass(Operation::Claim, Some(key), async move { inner.claim(claim).await }).await
            }

            async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
                let inner = Arc::clone(&self.inner);
                let request = async move { inner.renew(renewals).await };
                let mut answers = self.pass(Operation::Renew, None, request).await?;
                if self.script().renewals_are_unanswered {
                    answers.clear();
                }
                Ok(answers)
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    let (key, inner) = ($key, Arc::clone(&self.inner));
                    let request = async move { inner.$method($($argument),*).await };
                    self.pass(Operation::$operation, key, request).await
                }
            )*
        }
    };
}

through! {
    Complete complete(commit: Commit) for Some(commit.key) => WriteOutcome;
    Release release(release: Release) for Some(release.key) => WriteOutcome;
    Abandon abandon(abandon: Abandon) for Some(abandon.key) => WriteOutcome;
    Park park(park: Park) for Some(park.key) => WriteOutcome;
    Checkpoint checkpoint(checkpoint: Checkpoint) for Some(checkpoint.key) => WriteOutcome;
    Fence fence(key: KeyHash, token: Token) for Some(key) => Option<u64>;
    Read read(key: KeyHash) for Some(key) => Option<Record>;
    Watch watch(key: KeyHash) for Some(key) => Watch;
    Resolve resolve(resolve: Resolve) for Some(resolve.key) => AdminOutcome;
    Remove remove(remove: Remove) for Some(remove.key) => AdminOutcome;
    Scan scan(scan: Scan) for None => Page;
    Census census(budget: CensusBudget) for None => Census;
    Purge purge(limit: usize) for None => PurgeOutcome;
}
