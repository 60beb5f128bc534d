//! A store in memory that works as one behind a network does: others come in between wherever it
//! waits. It is right but for its flaw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use idempotency::clock::{Clock, Timestamp};
use idempotency::key::{Fingerprint, KeyHash};
use idempotency::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, CensusGroup, Checkpoint, Claim,
    ClaimOutcome, Commit, CrashPolicy, Cursor, Facets, Grant, LocalResults, Only, Page, Park,
    PurgeOutcome, Record, Release, Remove, Renewal, Resolve, Scan, State, Store, StoreError, Token,
    Watch, WriteOutcome, transition,
};
use idempotency::testing::ManualClock;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::flaw::Flaw;

/// What all handles share: the server.
#[derive(Debug)]
pub struct Shared {
    records: Mutex<BTreeMap<KeyHash, Record>>,
    /// What was there before the last write.
    behind: Mutex<BTreeMap<KeyHash, Option<Record>>>,
    lock: tokio::sync::Mutex<()>,
    last_fence: AtomicU64,
    changed: Arc<Notify>,
    clock: ManualClock,
}

impl Shared {
    pub fn new(clock: ManualClock) -> Arc<Self> {
        Arc::new(Self {
            records: Mutex::default(),
            behind: Mutex::default(),
            lock: tokio::sync::Mutex::default(),
            last_fence: AtomicU64::new(0),
            changed: Arc::default(),
            clock,
        })
    }
}

/// One handle.
#[derive(Debug)]
pub struct BrokenStore {
    flaw: Flaw,
    shared: Arc<Shared>,
    lock: tokio::sync::Mutex<()>,
    changed: Arc<Notify>,
    remembered: Mutex<BTreeMap<KeyHash, Option<Record>>>,
    fences: AtomicU64,
    purges: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_body(record: &Record, body: &Bytes) -> Record {
    let mut record = record.clone();
    record.body = body.clone();
    record
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Claim,
    Owner,
    Operator,
    Reader,
}

impl BrokenStore {
    pub fn new(flaw: Flaw, shared: &Arc<Shared>) -> Self {
        Self {
            flaw,
            shared: Arc::clone(shared),
            lock: tokio::sync::Mutex::default(),
            changed: Arc::default(),
            remembered: Mutex::default(),
            fences: AtomicU64::new(0),
            purges: AtomicU64::new(0),
        }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    /// What keeps others away from reading to writing.
    async fn guard(&self, by: By) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let is_locked = match self.flaw {
            Flaw::LockOfOneHandle => return Some(self.lock.lock().await),
            Flaw::NothingAtomic => false,
            Flaw::ClaimsAtomicOnly => by == By::Claim,
            Flaw::WritesAtomicOnly => by != By::Claim,
            Flaw::OperatorsNotAtomic => by != By::Operator,
            // One reads while another writes.
            Flaw::StateBeforeBody | Flaw::BodyBeforeState => by != By::Reader,
            _ => true,
        };
        if is_locked { Some(self.shared.lock.lock().await) } else { None }
    }

    fn key(&self, key: KeyHash) -> KeyHash {
        let mut bytes = *key.as_bytes();
        if self.has(Flaw::KeysOf128Bits) {
            bytes[16..].fill(0);
        }
        KeyHash::from_bytes(bytes)
    }

    fn token(&self, token: Token) -> Token {
        let bits = token.bits();
        Token::from_bits(match self.flaw {
            Flaw::TokensOf64Bits => bits & u128::from(u64::MAX),
            Flaw::TokensOfUpperHalf if bits > u128::from(u64::MAX) => bits >> 64 << 64,
            Flaw::TokensOf8Bits => bits & 0xff,
            _ => bits,
        })
    }

    fn time(&self, time: Duration) -> Duration {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let most = u64::from(u32::MAX);
        Duration::from_millis(match self.flaw {
            Flaw::TimesSaturate => millis.min(most),
            Flaw::TimesWrap => millis & most,
            Flaw::TimesOf31BitsSaturate => millis.min(most >> 1),
            Flaw::TimesOfWholeSeconds => millis / 1_000 * 1_000,
            _ => millis,
        })
    }

    fn body(&self, body: &Bytes) -> Bytes {
        match self.flaw {
            Flaw::BodiesOf2Mebibytes => body.slice(..body.len().min(2 << 20)),
            Flaw::BodiesOf64Kibibytes => body.slice(..body.len().min(64 << 10)),
            Flaw::BodiesOfText => String::from_utf8_lossy(body).into_owned().into(),
            Flaw::BodiesEndAtZero => {
                body.slice(..body.iter().position(|byte| *byte == 0).unwrap_or(body.len()))
            }
            _ => body.clone(),
        }
    }

    fn find(&self, key: KeyHash, by: By) -> Option<Record> {
        if by == By::Reader && self.has(Flaw::ReadsRemembered) {
            let read = locked(&self.shared.records).get(&key).cloned();
            return locked(&self.remembered).entry(key).or_insert(read).clone();
        }
        if by == By::Reader
            && self.has(Flaw::ReadsOneWriteBehind)
            && let Some(before) = locked(&self.shared.behind).get(&key)
        {
            return before.clone();
        }
        locked(&self.shared.records).get(&key).cloned()
    }

    fn put(&self, key: KeyHash, record: Option<Record>) {
        let mut records = locked(&self.shared.records);
        let before = records.get(&key).cloned();
        locked(&self.shared.behind).insert(key, before);
        let most = match self.flaw {
            Flaw::TwentyRecords => 20,
            Flaw::FiveThousandRecords => 5_000,
            _ => usize::MAX,
        };
        match record {
            Some(record) => {
                if records.len() >= most && !records.contains_key(&key) {
                    records.pop_first();
                }
                records.insert(key, record);
            }
            None => drop(records.remove(&key)),
        }
    }

    /// Reads, decides and writes, with a way to the server before each.
    async fn change<R>(
        &self,
        by: By,
        key: KeyHash,
        decide: impl FnOnce(&mut Option<Record>, Timestamp) -> R,
    ) -> R {
        let key = self.key(key);
        let _guard = self.guard(by).await;
        yield_now().await;
        let now = self.shared.clock.now();
        let before = self.find(key, by);
        yield_now().await;
        let mut slot = before.clone();
        let answer = decide(&mut slot, now);
        if slot == before {
            return answer;
        }
        if let Some(record) = &mut slot {
            self.spoil(record);
        }
        let half = match (self.flaw, &before, &slot) {
            (Flaw::StateBeforeBody, Some(before), Some(after)) => {
                Some(with_body(after, &before.body))
            }
            (Flaw::BodyBeforeState, Some(before), Some(after)) => {
                Some(with_body(before, &after.body))
            }
            _ => None,
        };
        if half.is_some() {
            self.put(key, half);
            yield_now().await;
        }
        self.put(key, slot);
        if self.has(Flaw::WakesOneHandle) {
            self.changed.notify_waiters();
        } else {
            self.shared.changed.notify_waiters();
        }
        answer
    }

    /// What of a record the store cannot keep.
    fn spoil(&self, record: &mut Record) {
        match self.flaw {
            Flaw::NamesOf64Characters => {
                record.operation = record.operation.chars().take(64).collect::<String>().into();
            }
            Flaw::NamesOfAscii => {
                record.operation =
                    record.operation.chars().filter(char::is_ascii).collect::<String>().into();
            }
            Flaw::TracesDropped => record.trace = None,
            Flaw::HoldersDropped => record.holder = "".into(),
            Flaw::HoldersOf32Characters => {
                record.holder = record.holder.chars().take(32).collect::<String>().into();
            }
            Flaw::AttemptsOf8Bits => record.attempts &= 0xff,
            Flaw::CheckpointsOf8Bits => record.checkpoints &= 0xff,
            Flaw::SchemasOf16Bits => record.schema &= 0xffff,
            Flaw::FingerprintsOf64Bits => {
                record.fingerprint = record.fingerprint.map(|fingerprint| Fingerprint {
                    bits: fingerprint.bits & u128::from(u64::MAX),
                    ..fingerprint
                });
            }
            Flaw::FingerprintsWithoutVersion => {
                record.fingerprint =
                    record.fingerprint.map(|fingerprint| Fingerprint { version: 1, ..fingerprint });
            }
            _ => {}
        }
    }

    fn claimed(&self, claim: Claim) -> Claim {
        let mut claim = claim;
        claim.token = self.token(claim.token);
        claim.key = self.key(claim.key);
        (claim.lease, claim.linger) = (self.time(claim.lease), self.time(claim.linger));
        (claim.after_expiry, claim.ttl) = (self.time(claim.after_expiry), self.time(claim.ttl));
        claim.fingerprint = claim.fingerprint.map(|fingerprint| match self.flaw {
            Flaw::FingerprintsOf64Bits => {
                Fingerprint { bits: fingerprint.bits & u128::from(u64::MAX), ..fingerprint }
            }
            Flaw::FingerprintsWithoutVersion => Fingerprint { version: 1, ..fingerprint },
            _ => fingerprint,
        });
        claim
    }

    /// What a claim is told about when a result expires.
    fn told(&self, mut claimed: ClaimOutcome, tell_expiry: bool) -> ClaimOutcome {
        if let (true, ClaimOutcome::Existing(record)) = (tell_expiry, &mut claimed)
            && record.state.is_answer()
        {
            match self.flaw {
                Flaw::ExpiriesUntold => record.expires = Timestamp::default(),
                Flaw::ExpiriesOfTombstones => record.expires = record.expires + record.after_expiry,
                Flaw::ExpiriesOfTheLinger => record.expires = record.lease_until + record.linger,
                _ => {}
            }
        }
        claimed
    }

    /// What the census counts a record as.
    fn group(&self, record: &Record) -> CensusGroup {
        let mut group = CensusGroup::of(record);
        match self.flaw {
            Flaw::CensusesOverlookOrphans => group.in_doubt = record.state == State::InDoubt,
            Flaw::CensusesOfTrimmedNames => group.operation = group.operation.trim().into(),
            Flaw::CensusesOfOneNamespace => group.namespace = "".into(),
            Flaw::CensusesOfNow => group.oldest = record.read_at,
            Flaw::CensusesWithoutSizes => group.bytes = 0,
            _ => {}
        }
        group
    }

    fn keys(&self) -> Vec<KeyHash> {
        locked(&self.shared.records).keys().copied().collect()
    }
}

impl LocalResults for BrokenStore {
    fn local_result(&self, key: &KeyHash) -> Option<Record> {
        let record = locked(&self.shared.records).get(key).cloned();
        let result = record.filter(|record| record.state.is_answer());
        let mut remembered = locked(&self.remembered);
        let known = remembered.entry(*key).or_default();
        *known = known.take().or(result);
        known.clone()
    }
}

impl Store for BrokenStore {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::in_process();
        capabilities.needs_purging = true;
        capabilities
    }

    fn facets(&self) -> Facets<'_> {
        let remembers = self.has(Flaw::LocalResultsRemembered);
        Facets::none().with_local_results(remembers.then_some(self as &dyn LocalResults))
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        let claim = self.claimed(claim);
        let claimed = self
            .change(By::Claim, claim.key, |slot, now| {
                if let Some(record) = slot {
                    if self.has(Flaw::ClaimsNotRepeatable) && record.owner == claim.token {
                        return ClaimOutcome::Existing(record.clone());
                    }
                    if self.has(Flaw::HoldForgotten) && record.policy == CrashPolicy::Hold {
                        record.policy = CrashPolicy::Retry;
                    }
                    if self.has(Flaw::HoldOfAnotherRequest)
                        && record.state == State::InProgress
                        && record.lease_until <= now
                        && claim.policy == CrashPolicy::Hold
                    {
                        record.state = State::InDoubt;
                    }
                    if self.has(Flaw::FingerprintsForgotten) {
                        record.fingerprint = claim.fingerprint;
                    }
                }
                let last_fence = match self.flaw {
                    Flaw::FencesOfTheClock => 0,
                    _ => self.shared.last_fence.load(Ordering::SeqCst),
                };
                let holder = slot.as_ref().map(|record| record.holder.clone());
                let claimed = transition::claim_above(slot, &claim, now, last_fence);
                if let (
                    ClaimOutcome::Granted(Grant { taken_over: Some(_), .. }),
                    Some(record),
                    Some(first),
                ) = (&claimed, slot.as_mut(), holder)
                {
                    match self.flaw {
                        Flaw::HoldersOfTheFirstClaim => record.holder = first,
                        Flaw::NamespacesOfTheTaker => record.namespace = claim.namespace.clone(),
                        _ => {}
                    }
                }
                if let ClaimOutcome::Granted(grant) = &claimed {
                    self.shared.last_fence.fetch_max(grant.record.fence, Ordering::SeqCst);
                }
                let fence = match self.flaw {
                    Flaw::FencesOfOneHandle => Some(self.fences.fetch_add(1, Ordering::SeqCst) + 1),
                    Flaw::FencesBeginAgain => {
                        slot.as_ref().map(|record| u64::from(record.attempts))
                    }
                    _ => None,
                };
                if let (ClaimOutcome::Granted(_), Some(record), Some(fence)) =
                    (&claimed, slot.as_mut(), fence)
                {
                    record.fence = fence;
                }
                claimed
            })
            .await;
        Ok(self.told(claimed, claim.tell_expiry))
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        let mut written = Vec::new();
        for (number, mut renewal) in renewals.into_iter().enumerate() {
            let stops = self.has(Flaw::RenewalsStopAtRefusal)
                && written.last().is_some_and(|last| *last != WriteOutcome::Applied);
            if stops || (self.has(Flaw::RenewalsOf25) && number >= 25) {
                written.push(if stops { WriteOutcome::Lost } else { WriteOutcome::Applied });
                continue;
            }
            (renewal.token, renewal.lease) = (self.token(renewal.token), self.time(renewal.lease));
            let renewed = self.change(By::Owner, renewal.key, |slot, now| {
                if let (Flaw::RenewalsUnguarded, Some(record)) = (self.flaw, &slot) {
                    renewal.token = record.owner;
                }
                transition::renew(slot, &renewal, now)
            });
            written.push(renewed.await);
        }
        Ok(written)
    }

    async fn complete(&self, mut commit: Commit) -> Result<WriteOutcome, StoreError> {
        (commit.token, commit.ttl, commit.body) =
            (self.token(commit.token), self.time(commit.ttl), self.body(&commit.body));
        if let Some(adopt) = &commit.adopt {
            let mut adoption = (**adopt).clone();
            adoption.claim = self.claimed(Claim::clone(&adoption.claim)).into();
            commit.adopt = Some(Arc::new(adoption));
        }
        let written = self.change(By::Owner, commit.key, |slot, now| {
            if let Some(record) = slot {
                if self.has(Flaw::CommitsUnguarded) {
                    commit.token = record.owner;
                }
                if self.has(Flaw::CommitsRepeat)
                    && record.state.is_answer()
                    && record.owner == commit.token
                {
                    record.state = State::InProgress;
                }
            }
            transition::complete(slot, &commit, now)
        });
        Ok(written.await)
    }

    async fn release(&self, mut release: Release) -> Result<WriteOutcome, StoreError> {
        release.token = self.token(release.token);
        let written = self.change(By::Owner, release.key, |slot, now| {
            if let (Flaw::ReleasesUnguarded, Some(record)) = (self.flaw, &slot) {
                release.token = record.owner;
            }
            transition::release(slot, &release, now)
        });
        Ok(written.await)
    }

    async fn abandon(&self, mut abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        abandon.token = self.token(abandon.token);
        Ok(self
            .change(By::Owner, abandon.key, |slot, now| transition::abandon(slot, &abandon, now))
            .await)
    }

    async fn park(&self, mut park: Park) -> Result<WriteOutcome, StoreError> {
        (park.token, park.ask_again_after) =
            (self.token(park.token), self.time(park.ask_again_after));
        Ok(self.change(By::Owner, park.key, |slot, now| transition::park(slot, &park, now)).await)
    }

    async fn checkpoint(&self, mut checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        (checkpoint.token, checkpoint.body) =
            (self.token(checkpoint.token), self.body(&checkpoint.body));
        let written = self.change(By::Owner, checkpoint.key, |slot, now| {
            if let (Flaw::CheckpointsUnordered, Some(record)) = (self.flaw, &slot) {
                checkpoint.sequence = record.checkpoints;
            }
            let before = slot.as_ref().and_then(|record| record.taken_over);
            let written = transition::checkpoint(slot, &checkpoint, now);
            if let (Flaw::CheckpointsSayNothing, Some(record)) = (self.flaw, slot) {
                record.taken_over = before;
            }
            written
        });
        Ok(written.await)
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        let token = self.token(token);
        Ok(self.change(By::Owner, key, |slot, now| transition::fence(slot, token, now)).await)
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        if self.has(Flaw::ExpiryNeedsPurge) {
            return Ok(self.find(key, By::Reader));
        }
        Ok(self.change(By::Reader, key, transition::read).await)
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        let of_one = self.has(Flaw::WakesOneHandle);
        let changed = if of_one { &self.changed } else { &self.shared.changed };
        // Registered first, read second; and after a second it resolves by itself, which covers
        // expiry.
        let (changed, second) =
            (Arc::clone(changed).notified_owned(), self.shared.clock.sleep(Duration::from_secs(1)));
        let record = self.change(By::Reader, key, transition::read).await;
        Ok(Watch::new(record, async move {
            tokio::select! {
                () = changed => {}
                () = second, if !of_one => {}
            }
        }))
    }

    async fn resolve(&self, mut resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        (resolve.observed, resolve.token) =
            (self.token(resolve.observed), self.token(resolve.token));
        if let idempotency::store::ResolveAnswer::Finished { body, ttl, .. } = &mut resolve.answer {
            (*body, *ttl) = (self.body(body), self.time(*ttl));
        }
        let changed = self.change(By::Operator, resolve.key, |slot, now| {
            if let (Flaw::AnswersUnguarded, Some(record)) = (self.flaw, &slot) {
                resolve.observed = record.owner;
            }
            transition::resolve(slot, &resolve, now)
        });
        Ok(changed.await)
    }

    async fn remove(&self, mut remove: Remove) -> Result<AdminOutcome, StoreError> {
        (remove.observed, remove.tombstone) =
            (self.token(remove.observed), self.time(remove.tombstone));
        if self.has(Flaw::RemovalsOfRunning) {
            remove.force = true;
        }
        Ok(self
            .change(By::Operator, remove.key, |slot, now| transition::remove(slot, &remove, now))
            .await)
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        let mut scan = scan;
        if self.has(Flaw::ScansOfEveryNamespace) {
            scan.namespace = None;
        }
        if self.has(Flaw::ScansOfEveryKey) {
            scan.begins_with = None;
        }
        let limit = if scan.limit == 0 { 100 } else { scan.limit };
        let mut records: Vec<Record> = Vec::new();
        let mut reached = match scan.after_key(self.name()) {
            Err(_) if self.has(Flaw::CursorsOfAnyStore) => None,
            after => after?,
        };
        let mut keys = self.keys();
        keys.retain(|key| reached.is_none_or(|after| *key > after));
        for (examined, key) in keys.into_iter().enumerate() {
            if records.len() == limit || examined == 1_000 {
                if self.has(Flaw::ScansStandStill) {
                    reached = records.last().map(|last| last.key).or(scan.after_key(self.name())?);
                }
                let ends = self.has(Flaw::ScansEnd)
                    || self.has(Flaw::ScansEndAtEmptyPages) && records.is_empty();
                let next = reached.filter(|_| !ends).map(|key| Cursor::after(self.name(), key));
                return Ok(Page::new(records, next));
            }
            reached = Some(key);
            let now = self.shared.clock.now();
            let mut found = self.find(key, By::Operator);
            if self.has(Flaw::ScansHideTombstones) {
                found = found.filter(|record| record.expires > now);
            }
            let Some(mut record) = transition::read(&mut found, now) else { continue };
            let is_overlooked = self.has(Flaw::ScansOverlookOrphans)
                && scan.only == Only::InDoubt
                && record.state != State::InDoubt;
            if !scan.includes(&record) || is_overlooked {
                continue;
            }
            record.body.clear();
            records.push(record);
        }
        Ok(Page::new(records, None))
    }

    async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        let (mut census, began) = (Census::new(), self.shared.clock.monotonic());
        for (seen, key) in self.keys().into_iter().enumerate() {
            let is_over = self.shared.clock.monotonic().saturating_sub(began) >= budget.time;
            let looks = seen == 0 || !self.has(Flaw::CensusesLookAtTheirTimeOnce);
            if is_over && looks && !self.has(Flaw::CensusesWithoutEnd) {
                if self.has(Flaw::CensusesStopUnnoticed) {
                    break;
                }
                return Ok(census.stopped_before(key));
            }
            if self.has(Flaw::CensusesOfOneStep) && seen == 1_000 {
                break;
            }
            if seen % 1_000 == 999 {
                yield_now().await;
            }
            let now = self.shared.clock.now();
            let found = self.find(key, By::Operator);
            let record = if self.has(Flaw::CensusesOfWhatIsStored) {
                found.map(|mut record| {
                    record.read_at = now;
                    record
                })
            } else {
                transition::read(&mut { found }, now)
            };
            if let Some(record) = record {
                census.at = record.read_at;
                census.add_group(self.group(&record));
            }
        }
        Ok(census)
    }

    async fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        let limit = match self.flaw {
            Flaw::PurgesTakeNothing => 0,
            Flaw::PurgesWithoutLimit => usize::MAX,
            Flaw::PurgesRarely if self.purges.fetch_add(1, Ordering::Relaxed) % 50 < 49 => 0,
            _ => limit,
        };
        let mut removed = 0;
        for key in self.keys() {
            let is_expired = self.change(By::Operator, key, |slot, now| {
                let takes_all = self.has(Flaw::PurgesTakeUnfinished);
                let is_expired = removed < limit
                    && slot.as_ref().is_some_and(|record| takes_all || record.expires <= now);
                if is_expired && takes_all {
                    *slot = None;
                } else if is_expired {
                    transition::expire(slot, now);
                }
                is_expired
            });
            removed += usize::from(is_expired.await);
        }
        Ok(PurgeOutcome::new(removed, None))
    }
}
