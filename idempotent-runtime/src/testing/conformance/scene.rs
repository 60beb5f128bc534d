//! A store under test with one record at its centre, and helpers for the cases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::stopwatch::Stopwatch;
use crate::clock::SystemClock;
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;
use crate::store::{
    Abandon, AdminOutcome, Adoption, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome, Commit,
    CrashPolicy, Grant, Park, PurgeOutcome, Reason, Record, Release, Remove, Renewal, Resolve,
    Scan, State, Store, Token, Watch, WriteOutcome,
};
use crate::testing::{ClockJump, Subject};

/// The key that a case is about. Other keys are [`key`] of a number.
pub(super) const KEY: KeyHash = KeyHash::from_bytes([0x77; 32]);
pub(super) const OPERATION: &str = "conformance.case";
pub(super) const NAMESPACE: &str = "conformance";

/// Returns a key; keys are ordered like their numbers.
pub(super) fn key(number: u8) -> KeyHash {
    let mut bytes = [0x11; 32];
    bytes[0] = number;
    KeyHash::from_bytes(bytes)
}

pub(super) fn token(number: u128) -> Token {
    Token::from_bits(number)
}

pub(super) fn fingerprint(version: u8, bits: u128) -> Fingerprint {
    Fingerprint { version, bits }
}

/// The environment of a case.
#[derive(Debug)]
pub struct Scene<S> {
    subject: Arc<S>,
    lease: Duration,
    stopwatch: Arc<Stopwatch<SystemClock>>,
}

impl<S> Clone for Scene<S> {
    fn clone(&self) -> Self {
        Self {
            subject: Arc::clone(&self.subject),
            lease: self.lease,
            stopwatch: Arc::clone(&self.stopwatch),
        }
    }
}

/// Returns the key of one of many records.
pub(super) fn numbered(number: u32) -> KeyHash {
    let mut bytes = [0x33; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    KeyHash::from_bytes(bytes)
}

/// Returns the response of a store that may be busy: a request that it refuses for the moment is
/// sent again.
pub(super) async fn answered<T, F>(request: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, crate::store::StoreError>>,
{
    for _ in 0..100 {
        match request().await {
            Err(error) if error.is_transient() => {}
            answer => return expect(answer),
        }
    }
    expect(request().await)
}

/// The largest number of pages of a list: one that has more does not end.
const PAGES: usize = 1_000;

/// Returns the records that `scan` lists over all its pages, in the order of their keys. Each page
/// begins at the text of a cursor, as in another process.
pub(super) async fn all_pages(store: &impl Store, mut scan: Scan, rule: &str) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for _ in 0..PAGES {
        let page = answered(|| store.scan(scan.clone())).await;
        let most = if scan.limit == 0 { usize::MAX } else { scan.limit };
        assert!(page.records.len() <= most, "{rule}: at most {most} on a page");
        for record in &page.records {
            assert!(record.body.is_empty(), "{rule}: without bodies");
            assert!(scan.includes(record), "{rule}: {record:?} is not what was asked for");
        }
        records.extend(page.records);
        let Some(next) = page.next else {
            if store.capabilities().lists_in_order {
                let in_order = records.is_sorted_by(|one, next| one.key < next.key);
                assert!(in_order, "{rule}: each once, in the order of the keys");
            } else {
                records.sort_by_key(|record| record.key);
                records.dedup_by_key(|record| record.key);
            }
            return records;
        };
        let next = next.to_string().parse();
        scan.after = Some(next.unwrap_or_else(|error| panic!("{rule}: its cursor: {error}")));
    }
    panic!("{rule}: the pages come to an end");
}

/// Unwraps a response. A server can fail a request for reasons of its own; the suite then stops
/// with that error.
fn expect<T>(answer: Result<T, crate::store::StoreError>) -> T {
    answer.unwrap_or_else(|error| panic!("the store failed: {error} ({error:?})"))
}

impl<S: Subject> Scene<S> {
    pub(super) fn new(
        subject: Arc<S>,
        lease: Duration,
        stopwatch: Arc<Stopwatch<SystemClock>>,
    ) -> Self {
        Self { subject, lease, stopwatch }
    }

    /// Declares that the rest of the case does not depend on time: a failure is never the machine's
    /// fault.
    pub(super) fn is_timeless(&self) {
        self.stopwatch.is_timeless();
    }

    /// Lets `duration` pass.
    pub(super) async fn advance(&self, duration: Duration) {
        self.stopwatch.expects(duration);
        self.subject.advance(duration).await;
    }

    pub(super) fn store(&self) -> &S::Store {
        self.subject.store()
    }

    /// Returns another handle on the same records.
    pub(super) async fn second(&self) -> S::Store {
        self.subject.second().await
    }

    /// Returns the duration of `count` leases.
    pub(super) fn leases(&self, count: u32) -> Duration {
        self.lease * count
    }

    /// Lets this number of leases pass.
    pub(super) async fn pass(&self, leases: u32) {
        self.advance(self.leases(leases)).await;
    }

    /// Lets the record of `KEY` expire.
    pub(super) async fn pass_expiry(&self) {
        let record = self.record().await;
        self.advance(record.expires.saturating_duration_since(record.read_at) + self.leases(1))
            .await;
    }

    /// Sets the store's clock and returns true if that was possible. It must be possible for an
    /// injected clock.
    pub(super) fn jump(&self, jump: ClockJump) -> bool {
        let jumped = self.subject.jump_clock(jump);
        let injected = self.store().capabilities().clock == crate::store::StoreClock::Injected;
        assert!(jumped || !injected, "a store with an injected clock needs `Subject::jump_clock`");
        jumped
    }

    /// Returns a claim by caller number `caller`: policy hold, one lease, kept for 16 more, and a
    /// holder of its own.
    pub(super) fn claim_by(&self, caller: u128) -> Claim {
        let mut claim = Claim::new(KEY, token(caller), OPERATION.into());
        claim.lease = self.leases(1);
        claim.linger = self.leases(16);
        claim.namespace = NAMESPACE.into();
        claim.holder = format!("conformance/{caller}").into();
        claim
    }

    pub(super) fn claim_under(&self, caller: u128, policy: CrashPolicy) -> Claim {
        Claim { policy, ..self.claim_by(caller) }
    }

    /// Returns a result of caller number `caller`, kept for 16 leases.
    pub(super) fn commit_by(&self, caller: u128, body: &'static str) -> Commit {
        Commit::new(KEY, token(caller), Bytes::from_static(body.as_bytes()), self.leases(16))
    }

    /// Returns a result that allows a vanished record to be re-created, for as long as a case
    /// takes.
    pub(super) fn adopting_commit(&self, claim: &Claim, grant: &Grant) -> Commit {
        let mut adoption = Adoption::new(claim.clone(), grant);
        adoption.ends = adoption.ends + self.leases(256);
        let mut commit =
            Commit::new(KEY, claim.token, Bytes::from_static(b"adopted"), self.leases(16));
        commit.adopt = Some(Arc::new(adoption));
        commit
    }

    pub(super) async fn claim(&self, claim: &Claim) -> ClaimOutcome {
        expect(self.store().claim(claim.clone()).await)
    }

    #[track_caller]
    pub(super) fn granted(claimed: ClaimOutcome, rule: &str) -> Grant {
        match claimed {
            ClaimOutcome::Granted(grant) => grant,
            ClaimOutcome::Existing(record) => {
                panic!("{rule}\nthe claim was refused by {record:#?}")
            }
        }
    }

    #[track_caller]
    pub(super) fn refused(claimed: ClaimOutcome, rule: &str) -> Record {
        match claimed {
            ClaimOutcome::Existing(record) => record,
            ClaimOutcome::Granted(grant) => panic!("{rule}\nthe claim was granted with {grant:#?}"),
        }
    }

    /// Asserts that the claim is granted.
    pub(super) async fn mine(&self, claim: &Claim, rule: &str) -> Grant {
        Self::granted(self.claim(claim).await, rule)
    }

    /// Asserts that the claim is refused.
    pub(super) async fn held(&self, claim: &Claim, rule: &str) -> Record {
        Self::refused(self.claim(claim).await, rule)
    }

    /// Makes caller 1 the owner of `KEY` under `policy`.
    pub(super) async fn running(&self, policy: CrashPolicy) -> Grant {
        self.mine(&self.claim_under(1, policy), "T1: a claim of no record is granted").await
    }

    /// Makes caller 1 the owner of `KEY` under `policy`, and lets its lease expire.
    pub(super) async fn orphaned(&self, policy: CrashPolicy) -> Grant {
        let grant = self.running(policy).await;
        self.pass(2).await;
        grant
    }

    /// Lets caller 1 mark `KEY` as in doubt.
    pub(super) async fn in_doubt(&self, policy: CrashPolicy) -> Record {
        self.running(policy).await;
        let parked = self.park(Park::own(KEY, token(1), Reason::Error)).await;
        assert_eq!(parked, WriteOutcome::Applied, "T6b: an owner parks its own record");
        self.record().await
    }

    /// Lets caller 1 store the result `first`.
    pub(super) async fn completed(&self, state: State) -> Record {
        self.running(CrashPolicy::Retry).await;
        let commit = Commit { state, ..self.commit_by(1, "first") };
        assert_eq!(
            self.complete(commit).await,
            WriteOutcome::Applied,
            "T8: an owner stores its result"
        );
        self.record().await
    }

    /// Lets caller 1 release `KEY` and keep its attempts.
    pub(super) async fn released(&self) -> Record {
        self.running(CrashPolicy::Retry).await;
        let release = Release { keep_attempts: true, ..Release::new(KEY, token(1)) };
        assert_eq!(
            self.release(release).await,
            WriteOutcome::Applied,
            "T10: an owner releases its claim"
        );
        self.record().await
    }

    /// Removes caller 1's record, which leaves a tombstone for `leases`.
    pub(super) async fn buried(&self, leases: u32) -> Record {
        let record = self.completed(State::Completed).await;
        let remove = Remove { tombstone: self.leases(leases), ..Remove::new(KEY, record.owner) };
        assert_eq!(
            self.remove(remove).await,
            AdminOutcome::Applied,
            "T14: a finished record is removed"
        );
        self.record().await
    }

    pub(super) async fn read(&self) -> Option<Record> {
        self.read_key(KEY).await
    }

    pub(super) async fn read_key(&self, key: KeyHash) -> Option<Record> {
        expect(self.store().read(key).await)
    }

    pub(super) async fn record(&self) -> Record {
        self.read().await.expect("the record must be there")
    }

    /// Asserts that the record is unchanged, except for the time at which it was read. A store that
    /// computes its times from the remaining time may be off by less than a lease.
    pub(super) async fn unchanged(&self, before: &Record, rule: &str) {
        let after = self.record().await;
        for (before, after) in
            [(before.expires, after.expires), (before.lease_until, after.lease_until)]
        {
            let difference = before.max(after).saturating_duration_since(before.min(after));
            assert!(
                difference < self.leases(1),
                "{rule}: the record's times must not change ({before:?}, {after:?})"
            );
        }
        let after = Record {
            read_at: before.read_at,
            expires: before.expires,
            lease_until: before.lease_until,
            ..after
        };
        assert_eq!(after, *before, "{rule}: the record must not change");
    }

    /// Returns the time for which the record is kept after it was read.
    pub(super) fn kept(record: &Record) -> Duration {
        record.expires.saturating_duration_since(record.read_at)
    }

    /// Asserts that the record is kept for about this long, or longer.
    pub(super) fn kept_for(&self, record: &Record, at_least: Duration, rule: &str) {
        let kept = Self::kept(record) + self.leases(1);
        assert!(
            kept > at_least,
            "{rule}: the record is kept for {:?}, not for {at_least:?}",
            Self::kept(record)
        );
    }

    pub(super) async fn renew(&self, caller: u128, lease: Duration) -> WriteOutcome {
        let answers = self.renew_all(vec![Renewal::new(KEY, token(caller), lease)]).await;
        assert_eq!(answers.len(), 1, "T7: one answer for each renewal");
        answers[0]
    }

    pub(super) async fn renew_all(&self, renewals: Vec<Renewal>) -> Vec<WriteOutcome> {
        expect(self.store().renew(renewals).await)
    }

    pub(super) async fn complete(&self, commit: Commit) -> WriteOutcome {
        expect(self.store().complete(commit).await)
    }

    pub(super) async fn release(&self, release: Release) -> WriteOutcome {
        expect(self.store().release(release).await)
    }

    /// Lets the owner release its claim, and removes what it took over.
    pub(super) async fn cleared(&self, owner: Token, rule: &str) {
        assert_eq!(self.release(Release::new(KEY, owner)).await, WriteOutcome::Applied, "{rule}");
        if self.read().await.is_some() {
            assert_eq!(self.remove(Remove::new(KEY, owner)).await, AdminOutcome::Applied, "{rule}");
        }
    }

    pub(super) async fn abandon(&self, caller: u128, reason: Reason) -> WriteOutcome {
        expect(self.store().abandon(Abandon::new(KEY, token(caller), reason)).await)
    }

    pub(super) async fn park(&self, park: Park) -> WriteOutcome {
        expect(self.store().park(park).await)
    }

    pub(super) async fn checkpoint(
        &self,
        caller: u128,
        sequence: u32,
        body: &'static str,
    ) -> WriteOutcome {
        let body = Bytes::from_static(body.as_bytes());
        expect(self.store().checkpoint(Checkpoint::new(KEY, token(caller), sequence, body)).await)
    }

    pub(super) async fn fence(&self, caller: u128) -> Option<u64> {
        expect(self.store().fence(KEY, token(caller)).await)
    }

    pub(super) async fn resolve(&self, resolve: Resolve) -> AdminOutcome {
        expect(self.store().resolve(resolve).await)
    }

    pub(super) async fn remove(&self, remove: Remove) -> AdminOutcome {
        expect(self.store().remove(remove).await)
    }

    /// Returns the records that `scan` lists, in the order of their keys.
    pub(super) async fn list(&self, scan: Scan, rule: &str) -> Vec<Record> {
        all_pages(self.store(), scan, rule).await
    }

    /// Returns a census that nothing has stopped.
    pub(super) async fn census(&self, rule: &str) -> Census {
        let census =
            answered(|| self.store().census(CensusBudget::of(Duration::from_secs(3_600)))).await;
        assert!(census.complete, "{rule}: an hour is enough: {census:?}");
        census
    }

    /// Purges with this limit.
    pub(super) async fn purge_at_most(&self, limit: usize) -> PurgeOutcome {
        answered(|| self.store().purge(limit)).await
    }

    pub(super) async fn purge(&self) {
        expect(self.store().purge(10_000).await);
    }

    pub(super) async fn watch(&self) -> Watch {
        expect(self.store().watch(KEY).await)
    }

    /// Sends every write that only an owner may do, and returns the results with names for a
    /// failure. None of them changes anything if it is refused.
    pub(super) async fn owner_writes(&self, caller: u128) -> [(&'static str, WriteOutcome); 6] {
        [
            ("complete", self.complete(self.commit_by(caller, "stale")).await),
            ("renew", self.renew(caller, self.leases(8)).await),
            ("checkpoint", self.checkpoint(caller, 0, "stale").await),
            ("abandon", self.abandon(caller, Reason::Dropped).await),
            ("park", self.park(Park::own(KEY, token(caller), Reason::Dropped)).await),
            ("release", self.release(Release::new(KEY, token(caller))).await),
        ]
    }

    /// Asserts that every write of caller number `caller` returns `expected`.
    pub(super) async fn refuses_owner(&self, caller: u128, expected: WriteOutcome, rule: &str) {
        for (write, written) in self.owner_writes(caller).await {
            assert_eq!(written, expected, "{rule} ({write})");
        }
        assert_eq!(self.fence(caller).await, None, "{rule} (fence)");
    }
}
