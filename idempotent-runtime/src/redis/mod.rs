//! The Redis store: one string per record. First claims and replays are one plain command,
//! everything else is scripts.

mod address;
mod broadcast;
mod builder;
mod census;
mod check;
mod error;
mod link;
mod scan;
mod script;
mod tracking;
mod writes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;

pub use address::RedisAddress;
pub use builder::RedisStoreBuilder;
use link::Link;
use tracking::Waiters;

use crate::clock::{Clock, Randomness as _, SystemRandomness, Timestamp, millis};
use crate::key::{KeyHash, hex};
use crate::runtime::while_runtime_lives;
use crate::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Facets, Grant, Operation, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal,
    Resolve, Scan, State, Store, StoreClock, StoreError, StoreErrorKind, Token, Watch,
    WriteOutcome, codes, envelope,
};

type SetupFuture = Pin<Box<dyn Future<Output = RedisResult<()>> + Send>>;

/// The `lease_until` of a record whose lease ends `linger` and `after_expiry` before its key
/// expires. See `scripts/record.lua`.
const BY_EXPIRY: Timestamp = Timestamp::from_millis(u64::MAX);
/// The number of times that a claim is decided while the record changes before its body is read.
const ATTEMPTS: usize = 100;
/// The polling interval of a waiter where the server does not push.
const POLL: Duration = Duration::from_millis(100);

/// Records in Redis 7.0 or later, or in Valkey.
///
/// Commands, renewals and pushes have a connection each, on each Tokio runtime. A connection that
/// breaks, or on which an answer takes too long, is replaced at the next request. Requests in
/// flight at that moment have an unknown outcome, which the engine settles by token.
///
/// # What Redis can lose
/// Each record that Redis loses is a call that runs again. Redis acknowledges a write before it is
/// on disk (`appendfsync everysec` loses up to a second, no append-only file loses all) and before
/// a replica has it: a failover loses what the replica had not received. Eviction, `FLUSHALL` and a
/// restored backup lose records too. [`connect`](Self::connect) rejects a server that may evict,
/// and warns about one without an append-only file.
///
/// # Rights
/// The minimum ACL, for the default prefix:
///
/// ```text
/// ACL SETUSER idempotency on >password ~idempotency:* resetchannels -@all +get +set +getrange +setrange +del +unlink
///     +exists +rename +pexpire +pttl +evalsha +script|load +time +info +select +multi +exec +client|tracking +scan
/// ```
///
/// Without `client|tracking`, waiters poll. Without `info`, nothing is checked when connecting.
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

struct Inner {
    commands: Link,
    renewals: Link,
    tracking: Link,
    waiters: Arc<Waiters>,
    /// True once the server has refused tracking.
    polls: AtomicBool,
    scripts: script::Scripts,
    prefix: String,
    clock: Arc<dyn Clock>,
    randomness: SystemRandomness,
    client: redis::Client,
    config: redis::AsyncConnectionConfig,
}

impl RedisStore {
    /// Connects to the server that `url` names: `redis://[user:password@]host[:port][/database]`,
    /// `rediss://` with TLS.
    ///
    /// # Errors
    /// See [`RedisStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Creates a builder for a store on the server that a URL or a [`redis::Client`] names.
    pub fn builder(server: impl RedisAddress) -> RedisStoreBuilder {
        RedisStoreBuilder::new(server)
    }

    fn key(&self, key: &KeyHash) -> String {
        [self.0.prefix.as_str(), "{", &key.to_hex(), "}"].concat()
    }

    /// Returns a key for one body of one request. Under one name, bodies of one record that are in
    /// flight at once, or arrive twice, would be mistaken for each other.
    fn staged_key(&self, operation: Operation, key: &KeyHash) -> Result<String, StoreError> {
        let mut name = [0; 16];
        self.0.randomness.fill(&mut name).map_err(|error| {
            StoreError::new(StoreErrorKind::Refused, operation)
                .with_detail("the system provides no random bytes")
                .with_source(error)
        })?;
        Ok(format!("{}:{}", self.key(key), hex(&name)))
    }
}

/// Waits for the answer to a request. If the runtime in which it was sent ends, the answer will not
/// arrive: the client's timers belong to that runtime, and another try on another one settles it.
async fn at_home<A>(
    operation: Operation,
    request: impl Future<Output = Result<A, StoreError>>,
) -> Result<A, StoreError> {
    while_runtime_lives(request).await.unwrap_or_else(|| {
        let detail = "the runtime in which the request was sent has ended";
        Err(StoreError::new(StoreErrorKind::Unavailable, operation).with_detail(detail))
    })
}

/// Fills in the times that Redis keeps in the key's expiry.
fn placed(mut record: Record, remaining: i64, now: Timestamp) -> Record {
    let now_millis = i128::from(now.as_millis());
    let at =
        |millis: i128| Timestamp::from_millis(u64::try_from(millis.max(0)).unwrap_or(u64::MAX));
    let left = i128::from(remaining) - i128::from(millis(record.after_expiry));
    record.read_at = now;
    record.expires = at(now_millis + left);
    if record.lease_until == BY_EXPIRY && record.state == State::InProgress {
        record.lease_until = at(now_millis + left - i128::from(millis(record.linger)));
    }
    unmarked(record)
}

/// Replaces the marker for the end of a lease, which is not a time. Where the expiry was not
/// queried, or by now belongs to something else, the lease has expired.
fn unmarked(mut record: Record) -> Record {
    if record.lease_until == BY_EXPIRY {
        record.lease_until = Timestamp::default();
    }
    record
}

/// Reads the record in `bytes`, unless nothing is left of it.
fn decoded(
    operation: Operation,
    key: KeyHash,
    bytes: Bytes,
    remaining: i64,
    now: Timestamp,
) -> Result<Option<Record>, StoreError> {
    let record = envelope::decode(key, bytes, now).map_err(|error| error.during(operation))?;
    Ok(as_of(record, remaining, now))
}

/// Returns the record as it is at `now`, or its tombstone if it has expired and one follows.
/// `remaining` is what remains of its key's time.
fn as_of(record: Record, remaining: i64, now: Timestamp) -> Option<Record> {
    // In the last millisecond of a key, none of its time remains, and it is still there: a claim is
    // answered with it. Otherwise a reader would miss a result that the next call replays.
    let remaining = if remaining == 0 { 1 } else { remaining };
    let mut record = placed(record, remaining, now);
    if record.expires > now {
        return Some(record);
    }
    // Expired: the rest of the key's time is that of its tombstone.
    if record.state == State::Released || remaining <= 0 {
        return None;
    }
    record.state = State::Tombstone;
    record.reason = None;
    record.after_expiry = Duration::ZERO;
    record.lease_until = Timestamp::default();
    record.body = Bytes::new();
    Some(placed(record, remaining, now))
}

fn start_tracking(mut connection: MultiplexedConnection) -> SetupFuture {
    Box::pin(async move {
        redis::cmd("CLIENT").arg("TRACKING").arg("ON").query_async(&mut connection).await
    })
}

/// Returns the record that a first claim writes.
fn pending(claim: &Claim, created: Timestamp) -> Record {
    let mut record = Record::new(claim.key, claim.token, claim.operation.clone());
    record.fingerprint = claim.fingerprint;
    record.policy = claim.policy;
    record.created = created;
    record.linger = Duration::from_millis(millis(claim.linger));
    record.after_expiry = Duration::from_millis(millis(claim.after_expiry));
    record.lease_until = BY_EXPIRY;
    record.schema = claim.schema;
    record.namespace = claim.namespace.clone();
    record.holder = claim.holder.clone();
    record.trace.clone_from(&claim.trace);
    record
}

impl RedisStore {
    /// Reads the record and its expiry at one moment.
    async fn get(
        &self,
        operation: Operation,
        link: &Link,
        key: KeyHash,
    ) -> Result<Option<Record>, StoreError> {
        let mut connected = link.connected(operation).await?;
        let name = self.key(&key);
        let answer = redis::pipe()
            .atomic()
            .get(&name)
            .pttl(&name)
            .query_async::<(Option<Vec<u8>>, i64)>(&mut connected.connection)
            .await;
        let (bytes, remaining) = match link.answer(operation, &connected, answer) {
            // A server that is out of memory queues no commands, but still answers reads one by
            // one.
            Err(error) if error.kind() == StoreErrorKind::Refused => {
                return self.look(operation, link, key).await;
            }
            answer => answer?,
        };
        let now = link.now(&connected);
        bytes.map_or(Ok(None), |bytes| decoded(operation, key, bytes.into(), remaining, now))
    }

    /// Decides everything that `SET … NX GET` does not.
    async fn claim_by_script(
        &self,
        claim: &Claim,
        pending: &[u8],
    ) -> Result<ClaimOutcome, StoreError> {
        const OPERATION: Operation = Operation::Claim;
        let link = &self.0.commands;
        let mut attempts = 0..ATTEMPTS;
        while attempts.next().is_some() {
            let mut connected = link.connected(OPERATION).await?;
            let mut script = self.0.scripts.claim.key(self.key(&claim.key));
            let answer = script
                .arg(pending)
                .arg(millis(claim.lease))
                .invoke_async(&mut connected.connection)
                .await;
            let (verdict, fields, words, remaining, now): (String, Vec<u8>, Vec<u8>, i64, u64) =
                link.answer(OPERATION, &connected, answer)?;
            let now = Timestamp::from_millis(now);
            let is_mine = verdict == "mine";
            // Whatever the reason, a claim that has been granted stays until it is settled by its
            // token. Only an unknown outcome lets the engine do that.
            let failed = |error: StoreError| {
                if is_mine {
                    StoreError::new(StoreErrorKind::Unavailable, OPERATION)
                        .with_detail("the claim was granted, and its record could not be read")
                        .with_source(error)
                } else {
                    error
                }
            };
            let (bytes, body_length) = envelope::without_body(&fields, &words)
                .map_err(|error| failed(error.during(OPERATION)))?;
            let record = envelope::decode(claim.key, bytes.into(), now)
                .map_err(|error| failed(error.during(OPERATION)))?;
            let mut record = placed(record, remaining, now);
            if body_length > 0 && (is_mine || record.state.is_answer()) {
                // A body does not pass through the script. It is unchanged as long as the owner and
                // the state are.
                match self.get(OPERATION, link, claim.key).await {
                    Ok(Some(read)) if read.owner == record.owner && read.state == record.state => {
                        record.body = read.body;
                    }
                    Err(error) => return Err(failed(error)),
                    // The record of another owner is decided about again, and so is an own one that
                    // an operator has removed.
                    Ok(_) => continue,
                }
            }
            return Ok(if is_mine {
                ClaimOutcome::Granted(Grant::new(record))
            } else {
                ClaimOutcome::Existing(record)
            });
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, OPERATION)
            .with_detail("the record kept changing"))
    }
}

impl Store for RedisStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::server();
        capabilities.clock = StoreClock::Own;
        capabilities.push = !self.0.polls.load(Ordering::Relaxed);
        // The server walks its own table, and names a key twice while that table grows.
        capabilities.lists_in_order = false;
        capabilities
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none().with_change_feed(Some(self))
    }

    // Code that a hit does not need is boxed: otherwise the future of every hit would be as large
    // as that of the longest path.
    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        at_home(Operation::Claim, async {
            const OPERATION: Operation = Operation::Claim;
            let link = &self.0.commands;
            let mut connected = link.connected(OPERATION).await?;
            let created = link.now(&connected);
            let pending = pending(&claim, created);
            let bytes = envelope::encode(&pending);
            let total =
                millis(claim.lease.saturating_add(claim.linger).saturating_add(claim.after_expiry));
            let name = self.key(&claim.key);
            let mut set = redis::Cmd::with_capacity(7, name.len() + bytes.len() + 32);
            set.arg("SET").arg(&name).arg(&bytes).arg("NX").arg("GET").arg("PX").arg(total);
            let answer = if claim.tell_expiry {
                let mut set_and_ask = redis::pipe();
                set_and_ask.atomic().add_command(set).pttl(&name);
                Box::pin(
                    set_and_ask.query_async::<(Option<Vec<u8>>, i64)>(&mut connected.connection),
                )
                .await
                .map_err(error::first_refusal)
            } else {
                set.query_async::<Option<Vec<u8>>>(&mut connected.connection)
                    .await
                    .map(|found| (found, 0))
            };
            let found = match link.answer(OPERATION, &connected, answer) {
                // A server without memory or replicas has claimed nothing, and what is stored can
                // still be read.
                Err(error) if error.kind() == StoreErrorKind::Refused => {
                    // Not a transaction: a server that is out of memory rejects even `MULTI`.
                    return match Box::pin(self.look(OPERATION, link, claim.key)).await {
                        Ok(Some(record)) if record.state.is_answer() => {
                            Ok(ClaimOutcome::Existing(record))
                        }
                        _ => Err(error),
                    };
                }
                found => found?,
            };
            let (Some(found), remaining) = found else {
                let remaining = i64::try_from(total).unwrap_or(i64::MAX);
                return Ok(ClaimOutcome::Granted(Grant::new(placed(pending, remaining, created))));
            };
            let record = envelope::decode(claim.key, found.into(), created)
                .map_err(|error| error.during(OPERATION))?;
            // If a tombstone is to follow, only the key's expiry shows whether the record still
            // counts.
            if record.state.is_answer() && record.after_expiry.is_zero() {
                let record = if claim.tell_expiry {
                    placed(record, remaining, created)
                } else {
                    unmarked(record)
                };
                return Ok(ClaimOutcome::Existing(record));
            }
            if record.state.is_answer()
                && let Some(record) = Box::pin(self.get(OPERATION, link, claim.key)).await?
            {
                return Ok(ClaimOutcome::Existing(record));
            }
            Box::pin(self.claim_by_script(&claim, &bytes)).await
        })
        .await
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        self.renew_all(&renewals).await
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        at_home(Operation::Complete, async { self.complete_record(&commit).await }).await
    }

    async fn release(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        at_home(Operation::Release, async {
            let script = &self.0.scripts.release;
            let arguments = [flag(release.keep_attempts), flag(release.unused)];
            self.write(Operation::Release, script, &release.key, release.token, &arguments).await
        })
        .await
    }

    async fn abandon(&self, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        at_home(Operation::Abandon, async {
            let script = &self.0.scripts.abandon;
            self.write(
                Operation::Abandon,
                script,
                &abandon.key,
                abandon.token,
                &[reason(Some(abandon.reason))],
            )
            .await
        })
        .await
    }

    async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
        at_home(Operation::Park, async {
            let arguments = [
                reason(Some(park.reason)),
                flag(park.only_orphaned),
                millis(park.ask_again_after).to_string(),
            ];
            self.write(Operation::Park, &self.0.scripts.park, &park.key, park.token, &arguments)
                .await
        })
        .await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        at_home(Operation::Checkpoint, async { self.checkpoint_record(&checkpoint).await }).await
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        at_home(Operation::Fence, async {
            let link = &self.0.commands;
            let mut connected = link.connected(Operation::Fence).await?;
            let mut script = self.0.scripts.fence.key(self.key(&key));
            let answer = script
                .arg(&token.bits().to_be_bytes()[..])
                .invoke_async(&mut connected.connection)
                .await;
            link.answer(Operation::Fence, &connected, answer)
        })
        .await
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        at_home(Operation::Read, async { self.get(Operation::Read, &self.0.commands, key).await })
            .await
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        at_home(Operation::Watch, async {
            const OPERATION: Operation = Operation::Watch;
            if self.0.polls.load(Ordering::Relaxed) {
                return self.poll(key).await;
            }
            // Registered before the read. A change after the read is pushed by the server, because
            // `GET` on this connection tracks the key, and finds the waiter. If the connection
            // breaks or is given up in between, its end wakes all waiters.
            let waiter = self.0.waiters.register(&self.key(&key));
            let link = &self.0.tracking;
            match link.opened(OPERATION).await {
                Err(error) if error::is_refused_command(&error) => {
                    tracing::warn!(%error, "the server refuses tracking: waiters poll");
                    self.0.polls.store(true, Ordering::Relaxed);
                    return self.poll(key).await;
                }
                opened => drop(opened?),
            }
            let record = self.look(OPERATION, link, key).await?;
            Ok(Watch::new(record, waiter.woken()))
        })
        .await
    }

    async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        at_home(Operation::Resolve, async { self.resolve_record(&resolve).await }).await
    }

    async fn remove(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        at_home(Operation::Remove, async {
            let script = &self.0.scripts.remove;
            let arguments = [flag(remove.force), millis(remove.tombstone).to_string()];
            let answer = self
                .invoke(Operation::Remove, script, &remove.key, remove.observed, &arguments)
                .await?;
            changed(Operation::Remove, &answer)
        })
        .await
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        at_home(Operation::Scan, async { self.scan_records(&scan).await }).await
    }

    async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        at_home(Operation::Census, async { self.count_records(&budget).await }).await
    }

    /// Does nothing: the server expires records itself.
    async fn purge(&self, _: usize) -> Result<PurgeOutcome, StoreError> {
        Ok(PurgeOutcome::default())
    }
}

impl RedisStore {
    /// Reads the record for a waiter, in as few commands as possible: an answer needs no second
    /// one, and a change between the two is pushed.
    async fn look(
        &self,
        operation: Operation,
        link: &Link,
        key: KeyHash,
    ) -> Result<Option<Record>, StoreError> {
        let mut connected = link.connected(operation).await?;
        let name = self.key(&key);
        let answer = redis::cmd("GET")
            .arg(&name)
            .query_async::<Option<Vec<u8>>>(&mut connected.connection)
            .await;
        let Some(bytes) = link.answer(operation, &connected, answer)? else { return Ok(None) };
        let now = link.now(&connected);
        let bytes = Bytes::from(bytes);
        let record =
            envelope::decode(key, bytes.clone(), now).map_err(|error| error.during(operation))?;
        if record.state.is_answer() && record.after_expiry.is_zero() {
            return Ok(Some(unmarked(record)));
        }
        let answer =
            redis::cmd("PTTL").arg(&name).query_async::<i64>(&mut connected.connection).await;
        let remaining = link.answer(operation, &connected, answer)?;
        decoded(operation, key, bytes, remaining, link.now(&connected))
    }

    /// Returns a watch that resolves after a pause. The pause differs per key, so that waiters do
    /// not all poll at once.
    async fn poll(&self, key: KeyHash) -> Result<Watch, StoreError> {
        let link = &self.0.commands;
        let record = self.look(Operation::Watch, link, key).await?;
        let moment = self.0.clock.monotonic().subsec_nanos() ^ u32::from(key.as_bytes()[0]) << 16;
        let pause = POLL / 2 + POLL * (moment % 1000) / 1000;
        Ok(Watch::new(record, self.0.clock.sleep(pause)))
    }
}

fn flag(value: bool) -> String {
    u8::from(value).to_string()
}

fn reason(reason: Option<crate::store::Reason>) -> String {
    codes::reason_code(reason).to_string()
}

fn changed(operation: Operation, answer: &str) -> Result<AdminOutcome, StoreError> {
    match answer {
        "applied" => Ok(AdminOutcome::Applied),
        "running" => Ok(AdminOutcome::Running),
        "conflict" => Ok(AdminOutcome::Conflict),
        "absent" => Ok(AdminOutcome::Absent),
        other => Err(unexpected(operation, other)),
    }
}

fn unexpected(operation: Operation, answer: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, operation)
        .with_detail(format!("the script answered `{answer}`"))
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("prefix", &self.0.prefix).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::as_of;
    use crate::clock::Timestamp;
    use crate::key::KeyHash;
    use crate::store::{Record, State, Token};

    #[test]
    fn a_record_is_there_for_as_long_as_its_key() {
        let now = Timestamp::from_millis(1_000_000);
        let mut record =
            Record::new(KeyHash::from_bytes([7; 32]), Token::from_bits(7), "charge".into());
        record.state = State::Completed;
        for remaining in [1, 0] {
            let found = as_of(record.clone(), remaining, now);
            assert_eq!(found.map(|found| found.state), Some(State::Completed), "{remaining}");
        }
        assert_eq!(as_of(record, -2, now), None, "the key is gone");
    }
}
