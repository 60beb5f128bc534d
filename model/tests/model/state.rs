//! The state of the model: the store, the callers, the messages in flight, and what has happened in
//! the world.

use std::hash::{DefaultHasher, Hash, Hasher};

use idempotent_runtime::clock::Timestamp;
use idempotent_runtime::store::Record;

use crate::invariants::Broken;
use crate::time::{LEASE, ticks_left, timestamp};

/// The number of retentions of the key that the model distinguishes.
pub const RETENTIONS: usize = 3;
/// The number of steps of the body of a resumable call. Every other body has only the first one.
pub const STEPS: usize = 2;

/// The bytes of a result: the attempt whose effect it describes, or [`OPERATOR`].
pub type Value = u8;

/// The result that an operator stores, and the operator's token.
pub const OPERATOR: Value = 100;

#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Ticks of the one clock. The model has no skew, except that the owner's lease begins before
    /// the store's.
    pub now: u8,
    pub slot: Option<Record>,
    /// The fence of the last claim that the store granted.
    pub last_fence: u64,
    pub callers: Vec<Caller>,
    pub operator: Operator,
    /// The number of faults that may still happen.
    pub faults: u8,
    pub world: World,
}

/// One call with one token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caller {
    pub phase: Phase,
    /// The time from which the owner counts its lease: the first send of the claim.
    pub sent: u8,
    /// The time at which the claim was sent last.
    pub sent_last: u8,
    /// The time until which the owner believes in its lease.
    pub believes_until: u8,
    /// The number of times that the claim was sent.
    pub claims_sent: u8,
    /// The number of these that may still arrive.
    pub claims_under_way: u8,
    /// The store's grant, in flight back to the caller.
    pub answer: Option<Granted>,
    pub grant: Granted,
    /// The retention in which the claim was granted.
    pub retention: usize,
    /// The result of the current step's effect, if it has happened.
    pub effect: Option<Value>,
    /// True while a step runs in a task of its own and has not had its effect.
    pub spawned: bool,
    pub commits_sent: u8,
    pub commits_under_way: u8,
    /// The number of commits in flight that may write a record again that is gone.
    pub adopting_under_way: u8,
    /// The time until which the store lets them.
    pub adopts_until: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    #[default]
    Idle,
    Claiming,
    /// It owns the claim and its body has not started.
    Granted,
    Body,
    Committing,
    /// Its commit was refused; it reads once more.
    Overtaken,
    /// The background ends a claim whose caller is gone or has its answer.
    Ending(Ending),
    Over {
        /// True if it did not crash and its body never started: it must leave nothing behind.
        unused: bool,
    },
}

/// The way in which a claim is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    pub plan: Plan,
    /// The number of remaining rounds. The last one begins when no claim of this caller can arrive
    /// any more.
    pub rounds: u8,
    pub started: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Releases a claim under which no body started.
    GiveBack,
    /// Releases the claim of a body that reports that nothing happened. It may count the attempts.
    NothingHappened,
    Abandon,
    Park,
    /// Puts the record in doubt, with a pause before the outside is queried again.
    AskAgain,
}

/// The store's answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Granted(Granted),
    Stored(Value),
    Refused,
}

/// The owner's knowledge of its claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Granted {
    pub fence: u64,
    pub taken_over: bool,
    /// The number of steps whose results are on the record.
    pub steps: u8,
}

/// An operator with an answer to what it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operator {
    #[default]
    Away,
    Answering {
        observed: u128,
        happened: bool,
        /// The number of times that the answer has arrived.
        arrived: u8,
    },
    Done,
}

/// The facts of the world, which no caller sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct World {
    /// The current retention: the number of times that a record has expired.
    pub retention: usize,
    /// The effects, by the retention of the attempt, and by step.
    pub effects: [[u8; STEPS]; RETENTIONS],
    pub takeovers: [u8; RETENTIONS],
    /// The number of results that were stored in this retention.
    pub results: u8,
    /// The number of checkpoints that were accepted in this retention.
    pub checkpoints: u8,
    /// The result that callers received in this retention.
    pub told: Option<Value>,
    /// One bit for each attempt that had an effect.
    pub effected: u16,
    /// One bit for each attempt whose result was stored.
    pub committed: u16,
    /// The attempt of the first effect: the answer of the outside when queried.
    pub first_effect: Option<Value>,
    /// Invariants that a transition broke.
    pub broken: Broken,
}

impl Caller {
    /// Clears everything that no longer matters, and ends in `phase`.
    pub fn ends(&mut self, phase: Phase) {
        *self = Self {
            phase,
            claims_under_way: self.claims_under_way,
            commits_under_way: self.commits_under_way,
            adopting_under_way: self.adopting_under_way,
            // It continues when the body has finished.
            spawned: self.spawned,
            retention: if self.spawned { self.retention } else { 0 },
            // A late commit carries these two.
            effect: self.effect.filter(|_| self.commits_under_way + self.adopting_under_way > 0),
            grant: match self.adopting_under_way {
                // And the number of its step.
                0 => Granted {
                    steps: if self.spawned { self.grant.steps } else { 0 },
                    ..Granted::default()
                },
                _ => self.grant,
            },
            adopts_until: if self.adopting_under_way > 0 { self.adopts_until } else { 0 },
            ..Self::default()
        };
    }

    /// Returns true if it may still have an effect.
    pub fn is_at_work(&self) -> bool {
        self.phase == Phase::Body || self.spawned
    }

    /// Returns true if it may be at work under its claim.
    pub fn is_owner(&self) -> bool {
        matches!(self.phase, Phase::Granted | Phase::Body | Phase::Committing)
    }
}

/// States that differ only in how long ago something ended, in the sizes of fences or in the
/// numbers of callers are one state to the checker.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.now.hash(hasher);
        if let Some(record) = &self.slot {
            (record.state, record.policy, record.taken_over, record.reason, record.checkpoints)
                .hash(hasher);
            (ticks_left(record.lease_until, self.now), ticks_left(record.expires, self.now))
                .hash(hasher);
            (record.lease_until == Timestamp::default(), record.body.len()).hash(hasher);
            // The result of an operator, which is not a caller.
            (record.body.first() == Some(&OPERATOR)).hash(hasher);
            self.last_fence.abs_diff(record.fence).hash(hasher);
        }
        self.last_fence.saturating_sub(timestamp(self.now).as_millis() * 1000).hash(hasher);
        match self.operator {
            Operator::Answering { happened, arrived, .. } => (happened, arrived).hash(hasher),
            operator => operator.hash(hasher),
        }
        let world = &self.world;
        (self.faults, world.retention, world.effects, world.takeovers, world.results).hash(hasher);
        (world.checkpoints, world.told == Some(OPERATOR), world.broken).hash(hasher);
        let mut callers: Vec<u64> =
            (0..self.callers.len()).map(|index| self.fingerprint_of(index)).collect();
        callers.sort_unstable();
        callers.hash(hasher);
    }
}

impl State {
    /// Hashes everything that distinguishes a caller, wherever it is written, except its number.
    fn fingerprint_of(&self, index: usize) -> u64 {
        let (mut hasher, caller, world) = (DefaultHasher::new(), &self.callers[index], &self.world);
        let age =
            |tick: u8| if tick == 0 { 0 } else { self.now.saturating_sub(tick).min(LEASE) + 1 };
        (caller.phase, age(caller.sent), age(caller.sent_last)).hash(&mut hasher);
        caller.believes_until.saturating_sub(self.now).hash(&mut hasher);
        caller.adopts_until.saturating_sub(self.now).hash(&mut hasher);
        (caller.claims_sent, caller.claims_under_way, caller.retention).hash(&mut hasher);
        (caller.commits_sent, caller.commits_under_way, caller.adopting_under_way)
            .hash(&mut hasher);
        caller.spawned.hash(&mut hasher);
        for grant in [Some(caller.grant), caller.answer] {
            grant.map(|grant| (grant.taken_over, grant.steps)).hash(&mut hasher);
        }
        let is_me = |value: Option<Value>| value.map(usize::from) == Some(index);
        let effect = (caller.effect.is_some(), is_me(caller.effect), is_me(world.first_effect));
        (effect, world.effected & (1 << index), world.committed & (1 << index), is_me(world.told))
            .hash(&mut hasher);
        if let Operator::Answering { observed, .. } = self.operator {
            (observed == index as u128).hash(&mut hasher);
        }
        if let Some(record) = &self.slot {
            (record.owner.bits() == index as u128, is_me(record.body.first().copied()))
                .hash(&mut hasher);
        }
        hasher.finish()
    }
}
