//! The way of one process to the store: requests and answers are lost, late, repeated and out of
//! order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Facets, Grant, Operation, Page, Park, PurgeOutcome, Reason, Record, Release, Remove,
    Renewal, Resolve, Scan, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
};
use idempotency_test_support::random::Random;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::life::{Acknowledged, Life};
use crate::log::Entry;
use crate::mutant::Mutant;
use crate::plan::millis_below;
use crate::server::Server;
use crate::world::World;

/// How long a link that hears nothing waits before it says so.
const SILENCE: Duration = Duration::from_secs(10);
/// How late a request can be at most.
const LATEST: Duration = Duration::from_secs(30);
/// How long a request and its answer take that meet no fault.
const PROMPT: Duration = Duration::from_millis(5);

#[derive(Clone)]
pub struct Link {
    pub world: Arc<World>,
    pub life: Arc<Life>,
    random: Arc<Mutex<Random>>,
    first_sent: Arc<Mutex<BTreeMap<Token, Duration>>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("process", &self.life.name).finish_non_exhaustive()
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    fault: Option<&'static str>,
    arrives: bool,
    is_answered: bool,
    there: Duration,
    back: Duration,
    /// It arrives once more, so long after the first time.
    again: Option<Duration>,
    /// When the link gives up and says that it does not know.
    patience: Duration,
}

impl Link {
    pub fn new(world: Arc<World>, life: Arc<Life>, random: Random) -> Self {
        Self { world, life, random: Arc::new(Mutex::new(random)), first_sent: Arc::default() }
    }

    fn fate(&self) -> Fate {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let random = &mut *random;
        let mut fate =
            Fate { arrives: true, is_answered: true, patience: SILENCE, ..Fate::default() };
        if random.chance(50) {
            (fate.there, fate.back) = (millis_below(random, PROMPT), millis_below(random, PROMPT));
        }
        if self.world.is_calm() {
            return fate;
        }
        let impatience = |random: &mut Random| {
            let limit = if random.chance(60) { Duration::from_millis(50) } else { SILENCE };
            millis_below(random, limit)
        };
        let faults = self.world.plan.faults;
        if self.life.is_cut_off(self.world.clock.monotonic()) || random.chance(faults.lost_request)
        {
            return Fate {
                fault: Some("lost"),
                arrives: false,
                is_answered: false,
                patience: impatience(random),
                ..fate
            };
        }
        if random.chance(faults.lost_answer) {
            return Fate {
                fault: Some("answer lost"),
                is_answered: false,
                patience: impatience(random),
                ..fate
            };
        }
        if random.chance(faults.late) {
            let there = millis_below(random, LATEST);
            return Fate { fault: Some("late"), there, patience: impatience(random), ..fate };
        }
        if random.chance(faults.duplicate) {
            let limit = if random.chance(50) { Duration::from_millis(100) } else { LATEST };
            fate.again = Some(millis_below(random, limit));
            // It counts as a fault only for the one who may be told so.
            fate.fault = Some("twice");
        }
        if random.chance(faults.slow) {
            let limit = self.world.plan.lease;
            (fate.there, fate.back) = (millis_below(random, limit), millis_below(random, limit));
            fate.fault = Some("slow");
        }
        fate
    }

    async fn pass<T: Send + 'static>(
        &self,
        request: Operation,
        apply: impl Fn(&Server, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.life.goes_on().await;
        let unknown = || StoreError::new(StoreErrorKind::Unavailable, request);
        let fate = self.fate();
        if let Some(fault) = fate.fault {
            let (at, process) = (self.world.clock.monotonic(), self.life.name.clone());
            self.world.log.write(Entry::Fault { at, process, request, fault });
        }
        let server = &self.world.server;
        let is_prompt = fate.arrives && fate.is_answered && fate.again.is_none();
        if is_prompt && fate.there.is_zero() && fate.back.is_zero() && !server.is_away() {
            return apply(server, &self.life.name);
        }
        let (sender, answer) = oneshot::channel();
        // Who hears nothing is not told that there is nothing to hear.
        let (sender, _silent) =
            if fate.is_answered { (Some(sender), None) } else { (None, Some(sender)) };
        if fate.arrives {
            let (world, name) = (self.world.clone(), self.life.name.clone());
            let on_its_way = world.on_its_way();
            tokio::spawn(async move {
                let _on_its_way = on_its_way;
                sleep(fate.there).await;
                if world.server.is_away() {
                    return;
                }
                let answer = apply(&world.server, &name);
                if let Some(sender) = sender {
                    sleep(fate.back).await;
                    let _ = sender.send(answer);
                }
                if let Some(again) = fate.again {
                    sleep(again).await;
                    let _ = apply(&world.server, &name);
                }
            });
        }
        let answer = tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(unknown())),
            () = sleep(fate.patience) => Err(unknown()),
        };
        self.life.goes_on().await;
        answer
    }

    /// For mutants: an owner whose body says that nothing happened, or does not end, is taken at its
    /// word.
    fn forgets_steps(&self, owner: Token, reason: Reason) -> bool {
        match self.world.mutant {
            Some(Mutant::RunningStepsForgotten) => {
                reason == Reason::Error && self.world.outside.has_refused(owner)
            }
            Some(Mutant::DropsReleased) => matches!(reason, Reason::Dropped | Reason::Panicked),
            _ => false,
        }
    }

    /// What a mutant makes of the answer to a claim.
    fn altered(
        &self,
        claim: &Claim,
        answer: Result<ClaimOutcome, StoreError>,
    ) -> Result<ClaimOutcome, StoreError> {
        match (self.world.mutant, answer) {
            (Some(Mutant::GrantsInvented), Err(error)) if error.is_outcome_unknown() => {
                let mut record = Record::new(claim.key, claim.token, claim.operation.clone());
                record.policy = claim.policy;
                Ok(ClaimOutcome::Granted(Grant::new(record)))
            }
            (Some(Mutant::AnswersMixedUp), Ok(ClaimOutcome::Existing(record)))
                if record.is_running() =>
            {
                Ok(ClaimOutcome::Granted(Grant::new(record)))
            }
            (Some(Mutant::ReplaysAltered), Ok(ClaimOutcome::Existing(mut record)))
                if record.state == State::Completed =>
            {
                record.body = br#""another result""#.as_slice().into();
                Ok(ClaimOutcome::Existing(record))
            }
            (Some(Mutant::TakeoversUnlooked), Ok(ClaimOutcome::Granted(mut grant)))
                if grant.taken_over.is_some() =>
            {
                grant.record.checkpoints = grant.record.checkpoints.max(1);
                Ok(ClaimOutcome::Granted(grant))
            }
            (_, answer) => answer,
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Link {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::in_process();
        capabilities.shared = true;
        capabilities.needs_purging = true;
        capabilities
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none()
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        self.life.goes_on().await;
        self.world.names_windows();
        let now = self.world.clock.monotonic();
        let first_sent = {
            let mut sent = self.first_sent.lock().unwrap_or_else(PoisonError::into_inner);
            *sent.entry(claim.token).or_insert(now)
        };
        let sent = claim.clone();
        let answer =
            self.pass(Operation::Claim, move |server, from| server.claim(from, sent.clone())).await;
        let answer = self.altered(&claim, answer);
        if let Ok(ClaimOutcome::Granted(grant)) = &answer {
            let (key, owner, attempts) = (claim.key, grant.record.owner, grant.record.attempts);
            self.life.acknowledge(Acknowledged {
                key,
                sent: claim.token,
                owner,
                attempts,
                first_sent,
            });
        }
        answer
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        self.pass(Operation::Renew, move |server, from| server.renew(from, &renewals)).await
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        self.pass(Operation::Complete, move |server, from| server.complete(from, commit.clone()))
            .await
    }

    async fn release(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        self.life.give_back(release.token);
        self.pass(Operation::Release, move |server, from| server.release(from, release)).await
    }

    async fn abandon(&self, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        if self.forgets_steps(abandon.token, abandon.reason) {
            return self.release(Release::new(abandon.key, abandon.token)).await;
        }
        self.pass(Operation::Abandon, move |server, from| server.abandon(from, abandon)).await
    }

    async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
        if self.forgets_steps(park.token, park.reason) {
            return self.release(Release::new(park.key, park.token)).await;
        }
        self.pass(Operation::Park, move |server, from| server.park(from, park)).await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        self.pass(Operation::Checkpoint, move |server, from| {
            server.checkpoint(from, checkpoint.clone())
        })
        .await
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        self.pass(Operation::Fence, move |server, _| server.fence(key, token)).await
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        self.pass(Operation::Read, move |server, _| Ok(server.record(key))).await
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        if self.world.mutant == Some(Mutant::WatchesStale) {
            let record = self.world.stale(key);
            return Ok(Watch::new(record, std::future::pending()));
        }
        let mut watch = self.pass(Operation::Watch, move |server, _| server.watch(key)).await?;
        let (record, life, fate) = (watch.record.take(), self.life.clone(), self.fate());
        Ok(Watch::new(record, async move {
            // A connection that is lost ends the watch; else a change is told after a while.
            let lost = async {
                if fate.is_answered && fate.arrives {
                    std::future::pending::<()>().await;
                } else {
                    sleep(fate.patience).await;
                }
            };
            tokio::select! {
                biased;
                () = watch => sleep(fate.back).await,
                () = lost => {}
            }
            life.goes_on().await;
        }))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        self.pass(Operation::Resolve, move |server, from| server.resolve(from, resolve.clone()))
            .await
    }

    async fn remove(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        self.pass(Operation::Remove, move |server, from| server.remove(from, remove)).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        self.pass(Operation::Scan, move |server, _| server.scan(scan.clone())).await
    }

    async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        self.pass(Operation::Census, move |server, _| server.census(budget.clone())).await
    }

    async fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        if self.world.mutant == Some(Mutant::PurgesLost) {
            return Err(StoreError::new(StoreErrorKind::Unavailable, Operation::Purge));
        }
        self.pass(Operation::Purge, move |server, _| server.purge(limit)).await
    }
}
