//! The configuration of a check: the policy of the calls, and the mistake in them or in the store,
//! if any.

use crate::seen::Seen;
use crate::state::STEPS;

/// One configuration of the model.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub callers: usize,
    pub policy: Policy,
    /// A body's error leaves a record that counts the attempts.
    pub count_attempts: bool,
    /// The last tick.
    pub horizon: u8,
    /// The number of faults that may happen: lost answers, repeated requests, callers that leave,
    /// crashes.
    pub faults: u8,
    pub mutant: Option<Mutant>,
    pub seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Hold,
    Retry,
    /// The outside enforces the derived key: it performs one effect and repeats its answer.
    VerifyWithKey,
    /// The outside is queried when the previous attempts are known to have ended.
    VerifyWhenOver,
    Resume,
}

/// A mistake, in place of a transition or of an action of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A commit does not check the owner.
    CommitOfAnybody,
    /// A commit is sent before the effect.
    CommitFirst,
    /// A commit does not check the state.
    CommitOverResult,
    /// A release does not check anything.
    UnconditionalDelete,
    /// A call that is dropped in its body releases the claim.
    DropDeletes,
    /// The owner counts its lease from the answer to the claim.
    DeadlineFromAnswer,
    /// The owner counts its lease from the claim that it sent last.
    DeadlineFromRetry,
    /// The store forgets a record that it has acknowledged.
    StoreForgets,
    /// The outside is queried while an earlier owner is at work.
    AskedTooEarly,
    /// A resolved record keeps the token of its owner.
    ResolveKeepsToken,
    /// A claim that was sent twice is not released again.
    GhostClaim,
    /// A reader computes the end of the lease from its own linger.
    OwnLinger,
    /// The fence of a record that is gone is lost with it.
    FenceForgotten,
    /// A release deletes what an earlier owner left.
    ReleaseForgetsTakeover,
    /// A body's error discards the finished steps.
    ErrorForgetsSteps,
    /// A body's error ignores a step that still runs.
    ErrorForgetsRunning,
    /// A commit that may write a record again may do so however late it arrives.
    AdoptsForEver,
    /// A late claim gets back what its owner has left in doubt.
    DoubtTakenBack,
}

impl Protocol {
    pub fn new(policy: Policy) -> Self {
        Self {
            callers: 3,
            policy,
            count_attempts: false,
            horizon: 5,
            faults: 1,
            mutant: None,
            seen: Seen::default(),
        }
    }

    pub fn counting_attempts(self) -> Self {
        Self { count_attempts: true, ..self }
    }

    pub fn faults(self, faults: u8) -> Self {
        Self { faults, ..self }
    }

    pub fn with(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn steps(&self) -> usize {
        if self.policy == Policy::Resume { STEPS } else { 1 }
    }

    pub fn verifies(&self) -> bool {
        matches!(self.policy, Policy::VerifyWithKey | Policy::VerifyWhenOver)
    }
}
