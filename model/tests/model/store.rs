//! The store of the model: the crate's own transitions on one slot, and the mutants that break
//! them.
//!
//! A mutant changes the request or the slot around the real transition, so that no transition is
//! written twice.

use std::sync::Arc;

use bytes::Bytes;
use idempotent_runtime::clock::Timestamp;
use idempotent_runtime::key::KeyHash;
use idempotent_runtime::store::{
    Abandon, AdminOutcome, Adoption, Checkpoint, Claim, ClaimOutcome, Commit, CrashPolicy, Grant,
    Park, Reason, Record, Release, Renewal, Resolve, ResolveAnswer, State as RecordState, Token,
    WriteOutcome, transition,
};

use crate::invariants::Broken;
use crate::protocol::{Mutant, Policy, Protocol};
use crate::seen::Event;
use crate::state::{Answer, Granted, OPERATOR, Phase, Plan, State, Value};
use crate::time::{ASK_AGAIN, LEASE, LINGER, TTL, duration, timestamp};

const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

pub fn token(caller: usize) -> Token {
    Token::from_bits(caller as u128)
}

fn operation() -> Arc<str> {
    // One allocation for all states.
    static OPERATION: std::sync::LazyLock<Arc<str>> =
        std::sync::LazyLock::new(|| "payments.charge".into());
    OPERATION.clone()
}

/// Returns the value of a stored result.
pub fn value(record: &Record) -> Value {
    record.body.first().copied().unwrap_or_default()
}

impl Protocol {
    fn claim_of(&self, caller: usize) -> Claim {
        let mut claim = Claim::new(KEY, token(caller), operation());
        claim.policy = match self.policy {
            Policy::Hold => CrashPolicy::Hold,
            Policy::Retry => CrashPolicy::Retry,
            Policy::VerifyWithKey | Policy::VerifyWhenOver => CrashPolicy::Verify,
            Policy::Resume => CrashPolicy::Resume,
        };
        claim.lease = duration(LEASE);
        claim.linger = duration(LINGER);
        claim.ttl = duration(TTL);
        claim
    }

    /// Handles a claim that arrives.
    pub fn claim(&self, state: &mut State, caller: usize) -> Answer {
        let claim = self.claim_of(caller);
        let now = timestamp(state.now);
        if self.is(Mutant::OwnLinger)
            && let Some(record) =
                state.slot.as_mut().filter(|record| record.state == RecordState::InProgress)
        {
            let end = record.expires.as_millis().saturating_sub(u64::from(LINGER + 1) * 1000);
            record.lease_until = Timestamp::from_millis(end);
        }
        let before = state.slot.clone();
        let last_fence = if self.is(Mutant::FenceForgotten) { 0 } else { state.last_fence };
        let own_doubt =
            |record: &Record| record.owner == claim.token && record.state == RecordState::InDoubt;
        let is_own_doubt = before.as_ref().is_some_and(own_doubt);
        if self.is(Mutant::DoubtTakenBack)
            && let Some(record) = state.slot.as_mut().filter(|_| is_own_doubt)
        {
            record.owner = Token::from_bits(u128::MAX);
        }
        let claimed = transition::claim_above(&mut state.slot, &claim, now, last_fence);
        if is_own_doubt && matches!(claimed, ClaimOutcome::Granted(_)) {
            state.world.broken |= Broken::TAKEN_BACK;
        }
        match claimed {
            ClaimOutcome::Granted(Grant { record, taken_over, .. }) => {
                if before.as_ref().is_none_or(|before| before.owner != token(caller)) {
                    self.granted(state, caller, before.as_ref(), &record);
                }
                let steps = u8::try_from(record.body.len()).unwrap_or(u8::MAX);
                Answer::Granted(Granted {
                    fence: record.fence,
                    taken_over: taken_over.is_some(),
                    steps,
                })
            }
            ClaimOutcome::Existing(record) if record.state.is_answer() => {
                self.seen.note(Event::Replayed);
                Answer::Stored(value(&record))
            }
            _ => Answer::Refused,
        }
    }

    fn granted(&self, state: &mut State, caller: usize, before: Option<&Record>, record: &Record) {
        let (retention, world) = (state.world.retention, &mut state.world);
        if record.fence <= state.last_fence {
            world.broken |= Broken::FENCES;
        }
        state.last_fence = state.last_fence.max(record.fence);
        if before.is_some_and(|before| before.state != RecordState::Released) {
            world.takeovers[retention] += 1;
        }
        if self.policy == Policy::Resume && record.body.len() < usize::from(world.checkpoints) {
            world.broken |= Broken::STEPS;
        }
        // A late claim of a body that runs does not turn it into another attempt.
        if state.callers[caller].phase == Phase::Claiming {
            state.callers[caller].retention = retention;
        }
    }

    /// Handles a commit that arrives.
    pub fn complete(
        &self,
        state: &mut State,
        caller: usize,
        value: Value,
        adopt: Option<(Granted, u8)>,
    ) -> WriteOutcome {
        let mut commit =
            Commit::new(KEY, token(caller), Bytes::copy_from_slice(&[value]), duration(TTL));
        commit.adopt = adopt.map(|(granted, until)| {
            let mut record = Record::new(KEY, token(caller), operation());
            record.fence = granted.fence;
            record.lease_until =
                timestamp(if self.is(Mutant::AdoptsForEver) { u8::MAX } else { until });
            Arc::new(Adoption::new(self.claim_of(caller), &Grant::new(record)))
        });
        if self.is(Mutant::CommitOfAnybody)
            && let Some(record) = &state.slot
        {
            commit.token = record.owner;
        }
        let has_committed = state.world.committed & (1 << caller) != 0;
        let written = owners_write(state, caller, |slot, now| {
            if self.is(Mutant::CommitOverResult)
                && let Some(record) = slot.as_mut().filter(|record| record.state.is_answer())
            {
                record.state = RecordState::InProgress;
                record.owner = token(caller);
            }
            transition::complete(slot, &commit, now)
        });
        if matches!(written, WriteOutcome::Applied | WriteOutcome::Adopted) {
            state.world.committed |= 1 << caller;
            stored(state);
        }
        // Results are not removed here, and the operator removes no record whose body had its
        // effect.
        if written == WriteOutcome::Adopted && has_committed {
            state.world.broken |= Broken::RESULT_CAME_BACK;
        }
        written
    }

    /// Handles the end of a claim that arrives. A release of a body that said "nothing happened"
    /// may count the attempts.
    pub fn end(&self, state: &mut State, caller: usize, plan: Plan) {
        let token = token(caller);
        owners_write(state, caller, |slot, now| match plan {
            Plan::GiveBack | Plan::NothingHappened if self.is(Mutant::UnconditionalDelete) => {
                *slot = None;
                WriteOutcome::Applied
            }
            Plan::GiveBack | Plan::NothingHappened => {
                if self.is(Mutant::ReleaseForgetsTakeover)
                    && let Some(record) = slot
                {
                    record.taken_over = None;
                }
                let mut release = Release::new(KEY, token);
                release.unused = plan == Plan::GiveBack;
                release.keep_attempts = plan == Plan::NothingHappened && self.count_attempts;
                transition::release(slot, &release, now)
            }
            Plan::Abandon => {
                transition::abandon(slot, &Abandon::new(KEY, token, Reason::Dropped), now)
            }
            Plan::Park => transition::park(slot, &Park::own(KEY, token, Reason::Dropped), now),
            Plan::AskAgain => {
                let mut park = Park::own(KEY, token, Reason::Crashed);
                park.ask_again_after = duration(ASK_AGAIN);
                transition::park(slot, &park, now)
            }
        });
    }

    /// Handles an operator's answer that arrives.
    pub fn resolve(&self, state: &mut State, observed: u128, happened: bool) {
        let observed = Token::from_bits(observed);
        let answer = if happened {
            ResolveAnswer::Finished {
                state: RecordState::Completed,
                body: Bytes::from_static(&[OPERATOR]),
                schema: 0,
                ttl: duration(TTL),
            }
        } else {
            ResolveAnswer::NotExecuted
        };
        let resolve = Resolve::new(KEY, observed, Token::from_bits(u128::from(OPERATOR)), answer);
        let before = state.slot.clone();
        if transition::resolve(&mut state.slot, &resolve, timestamp(state.now))
            != AdminOutcome::Applied
        {
            return;
        }
        self.seen.note(Event::Resolved);
        if let Some(record) = state.slot.as_mut().filter(|_| self.is(Mutant::ResolveKeepsToken)) {
            record.owner = observed;
        }
        if happened && before.as_ref().is_some_and(|record| record.state == RecordState::InDoubt) {
            stored(state);
        }
        results_stay(state, before.as_ref());
    }
}

/// Handles a renewal that arrives.
pub fn renew(state: &mut State, caller: usize) -> WriteOutcome {
    let renewal = Renewal::new(KEY, token(caller), duration(LEASE));
    owners_write(state, caller, |slot, now| transition::renew(slot, &renewal, now))
}

/// Handles the result of step number `sequence` that arrives, on top of those before.
pub fn checkpoint(state: &mut State, caller: usize, sequence: u8) -> WriteOutcome {
    let checkpoint = Checkpoint::new(
        KEY,
        token(caller),
        sequence.into(),
        Bytes::from(vec![0; usize::from(sequence) + 1]),
    );
    let written =
        owners_write(state, caller, |slot, now| transition::checkpoint(slot, &checkpoint, now));
    if written == WriteOutcome::Applied {
        state.world.checkpoints = state.world.checkpoints.max(sequence + 1);
    }
    written
}

/// Returns what a reader sees.
pub fn read(state: &mut State) -> Option<Record> {
    transition::read(&mut state.slot, timestamp(state.now))
}

/// Advances time, and with it perhaps the retention.
pub fn tick(state: &mut State) {
    state.now += 1;
    let held = state.slot.is_some();
    transition::expire(&mut state.slot, timestamp(state.now));
    if held && state.slot.is_none() {
        let world = &mut state.world;
        world.retention += 1;
        (world.results, world.checkpoints, world.told) = (0, 0, None);
    }
}

/// Applies a write that only `caller` may make, on its own record.
fn owners_write(
    state: &mut State,
    caller: usize,
    write: impl FnOnce(&mut Option<Record>, Timestamp) -> WriteOutcome,
) -> WriteOutcome {
    let before = state.slot.clone();
    let written = write(&mut state.slot, timestamp(state.now));
    if before.as_ref().is_some_and(|before| before.owner != token(caller)) && before != state.slot {
        state.world.broken |= Broken::FOREIGN_WRITE;
    }
    results_stay(state, before.as_ref());
    written
}

/// Checks that a result never changes while it is retained.
fn results_stay(state: &mut State, before: Option<&Record>) {
    if before.is_some_and(|before| before.state.is_answer()) && before != state.slot.as_ref() {
        state.world.broken |= Broken::RESULT_CHANGED;
    }
}

fn stored(state: &mut State) {
    state.world.results += 1;
}
