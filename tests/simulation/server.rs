//! The store of all processes: the memory store, with a witness of every change that it makes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::clock::Clock as _;
use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{
    Abandon, AdminOutcome, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome, Commit,
    CrashPolicy, MemoryStore, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal, Resolve,
    Scan, Store as _, StoreError, Token, Watch, WriteOutcome,
};
use idempotency_test_support::history::{Request, Transition};

use crate::clock::RunClock;
use crate::log::{Entry, Log};
use crate::mutant::Mutant;

pub struct Server {
    store: MemoryStore,
    clock: RunClock,
    log: Arc<Log>,
    mutant: Option<Mutant>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    keys: BTreeMap<KeyHash, Known>,
    grants: BTreeMap<Token, Grant>,
    away_until: Duration,
}

/// What is known of one key.
#[derive(Default)]
struct Known {
    label: String,
    retention: u32,
    /// How often it was taken over in this retention.
    takeovers: u32,
    last: Option<Record>,
}

/// A claim that was granted.
#[derive(Clone, Debug)]
pub struct Grant {
    pub key: String,
    pub retention: u32,
    /// How many owners the retention had, up to this one.
    pub attempt: u32,
    pub is_takeover: bool,
}

/// The memory store answers at once.
fn now<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    answer.now_or_never().expect("the memory store never waits")
}

impl Server {
    pub fn new(clock: RunClock, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        let store = MemoryStore::with_clock(clock);
        Self { store, clock, log, mutant, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of `key` in the log.
    pub fn label(&self, key: KeyHash, label: &str) {
        label.clone_into(&mut self.seen().keys.entry(key).or_default().label);
    }

    /// How the log names the record of `key`.
    pub fn name(&self, key: KeyHash) -> String {
        self.seen().keys.get(&key).map(|known| known.label.clone()).unwrap_or_default()
    }

    pub fn stay_away_until(&self, ends: Duration) {
        self.seen().away_until = ends;
    }

    pub fn is_away(&self) -> bool {
        self.clock.monotonic() < self.seen().away_until
    }

    pub fn grant(&self, token: Token) -> Option<Grant> {
        self.seen().grants.get(&token).cloned()
    }

    pub fn retention(&self, key: KeyHash) -> u32 {
        self.record(key);
        self.seen().keys.get(&key).map_or(0, |known| known.retention)
    }

    /// The record as it is now.
    pub fn record(&self, key: KeyHash) -> Option<Record> {
        self.look(&mut self.seen(), key)
    }

    /// Reads the record, and counts a retention that has ended meanwhile.
    fn look(&self, seen: &mut Seen, key: KeyHash) -> Option<Record> {
        let record = now(self.store.read(key)).expect("the memory store reads");
        let known = seen.keys.entry(key).or_default();
        let is_there = |record: &Option<Record>| {
            record.as_ref().is_some_and(|it| it.state != State::Tombstone)
        };
        if is_there(&known.last) && !is_there(&record) {
            known.retention += 1;
            known.takeovers = 0;
        }
        known.last.clone_from(&record);
        record
    }

    /// Applies a request, and notes what it changed.
    fn apply<T>(
        &self,
        from: &str,
        key: KeyHash,
        request: Request,
        apply: impl FnOnce(Option<&Record>) -> T,
    ) -> T {
        let mut seen = self.seen();
        let before = self.look(&mut seen, key);
        let answer = apply(before.as_ref());
        let after = now(self.store.read(key)).expect("the memory store reads");
        let Seen { keys, grants, .. } = &mut *seen;
        let known = keys.entry(key).or_default();
        let transition = Transition {
            at: self.clock.monotonic(),
            from: from.to_owned(),
            key: known.label.clone(),
            retention: known.retention,
            request,
            before,
            after,
        };
        if let Some(token) = transition.granted() {
            let is_takeover = transition.taken_over().is_some();
            known.takeovers += u32::from(is_takeover);
            let (key, retention, attempt) =
                (known.label.clone(), known.retention, known.takeovers + 1);
            grants.insert(token, Grant { key, retention, attempt, is_takeover });
        }
        if matches!(request, Request::Remove { .. }) && transition.has_changed() {
            known.retention += 1;
            known.takeovers = 0;
        }
        known.last.clone_from(&transition.after);
        self.log.write(Entry::Applied(Box::new(transition)));
        answer
    }

    pub fn claim(&self, from: &str, mut claim: Claim) -> Result<ClaimOutcome, StoreError> {
        let request = Request::Claim {
            token: claim.token,
            policy: claim.policy,
            fingerprint: claim.fingerprint,
        };
        self.apply(from, claim.key, request, |before| {
            match self.mutant {
                Some(Mutant::HoldForgotten) => claim.policy = CrashPolicy::Retry,
                Some(Mutant::LeasesHalved) => claim.lease /= 2,
                Some(Mutant::FingerprintsForgotten) => claim.fingerprint = None,
                Some(Mutant::CompletedCallsGranted) => {
                    before
                        .into_iter()
                        .filter(|record| record.state.is_answer())
                        .for_each(|record| self.strike(record));
                }
                Some(Mutant::DoubtsTakenBack) => {
                    let is_own =
                        |it: &&Record| it.owner == claim.token && it.state == State::InDoubt;
                    before.into_iter().filter(is_own).for_each(|record| self.strike(record));
                }
                Some(Mutant::DeadOwnersRenewed) => {
                    before
                        .into_iter()
                        .filter(|record| record.is_orphaned())
                        .for_each(|record| self.revive(record));
                }
                _ => {}
            }
            now(self.store.claim(claim))
        })
    }

    /// For a mutant: the record is gone.
    fn strike(&self, record: &Record) {
        let mut remove = Remove::new(record.key, record.owner);
        remove.force = true;
        let _ = now(self.store.remove(remove));
    }

    /// For a mutant: the lease begins anew.
    fn revive(&self, record: &Record) {
        let _ = now(self.store.renew(vec![Renewal::new(
            record.key,
            record.owner,
            Duration::from_secs(5),
        )]));
    }

    pub fn renew(&self, from: &str, renewals: &[Renewal]) -> Result<Vec<WriteOutcome>, StoreError> {
        let renew = |renewal: &Renewal| {
            let (request, mut renewal) = (Request::Renew { token: renewal.token }, *renewal);
            self.apply(from, renewal.key, request, |_| match self.mutant {
                Some(Mutant::RenewalsForgotten) => Ok(vec![WriteOutcome::Applied]),
                Some(Mutant::LeasesHalved) => {
                    renewal.lease /= 2;
                    now(self.store.renew(vec![renewal]))
                }
                _ => now(self.store.renew(vec![renewal])),
            })
        };
        let written: Result<Vec<_>, _> = renewals.iter().map(renew).collect();
        Ok(written?.concat())
    }

    pub fn complete(&self, from: &str, mut commit: Commit) -> Result<WriteOutcome, StoreError> {
        let request = Request::Complete { token: commit.token };
        self.apply(from, commit.key, request, |before| {
            let other = before.filter(|record| record.owner != commit.token);
            match (self.mutant, other) {
                (Some(Mutant::CommitsUnguarded), Some(other)) => commit.token = other.owner,
                (Some(Mutant::AnswersOverwritten), Some(other)) if other.state.is_answer() => {
                    self.strike(other);
                    let _ = now(self.store.claim(Claim::new(
                        commit.key,
                        commit.token,
                        other.operation.clone(),
                    )));
                }
                _ => {}
            }
            now(self.store.complete(commit))
        })
    }

    pub fn release(&self, from: &str, release: Release) -> Result<WriteOutcome, StoreError> {
        let request = Request::Release { token: release.token };
        self.apply(from, release.key, request, |_| now(self.store.release(release)))
    }

    pub fn abandon(&self, from: &str, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        let request = Request::Abandon { token: abandon.token };
        self.apply(from, abandon.key, request, |_| now(self.store.abandon(abandon)))
    }

    pub fn park(&self, from: &str, park: Park) -> Result<WriteOutcome, StoreError> {
        let request = Request::Park { token: park.token, only_orphaned: park.only_orphaned };
        self.apply(from, park.key, request, |_| now(self.store.park(park)))
    }

    pub fn checkpoint(
        &self,
        from: &str,
        checkpoint: Checkpoint,
    ) -> Result<WriteOutcome, StoreError> {
        let request = Request::Checkpoint { token: checkpoint.token };
        self.apply(from, checkpoint.key, request, |_| now(self.store.checkpoint(checkpoint)))
    }

    pub fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        match self.mutant {
            Some(Mutant::FencesStandStill) => Ok(Some(1)),
            _ => now(self.store.fence(key, token)),
        }
    }

    pub fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        now(self.store.watch(key))
    }

    pub fn resolve(&self, from: &str, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        let request = Request::Resolve { observed: resolve.observed };
        self.apply(from, resolve.key, request, |_| now(self.store.resolve(resolve)))
    }

    pub fn remove(&self, from: &str, remove: Remove) -> Result<AdminOutcome, StoreError> {
        let request = Request::Remove { observed: remove.observed };
        self.apply(from, remove.key, request, |_| now(self.store.remove(remove)))
    }

    pub fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        now(self.store.scan(scan))
    }

    pub fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        now(self.store.census(budget))
    }

    pub fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        // Those that are about to go are seen before they do.
        let mut seen = self.seen();
        let keys: Vec<_> = seen.keys.keys().copied().collect();
        for key in keys {
            self.look(&mut seen, key);
        }
        now(self.store.purge(limit))
    }

    /// How long the oldest expired record has been over.
    pub fn lag(&self) -> Option<Duration> {
        now(self.store.purge(0)).ok()?.lag
    }
}
