//! The actions that can happen next.

use idempotent_runtime::store::State as RecordState;

use crate::protocol::{Mutant, Policy, Protocol};
use crate::state::{Caller, Operator, Phase, State};
use crate::time::LEASE;

/// One action. The number is the caller's.
///
/// `heard` is true if the answer reaches the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Tick,
    SendClaim(usize),
    SendClaimAgain(usize),
    ClaimArrives {
        caller: usize,
        heard: bool,
    },
    ClaimIsLost(usize),
    ReceiveAnswer(usize),
    /// The caller leaves before its body starts.
    GiveUp(usize),
    Start(usize),
    /// The outside is queried whether it happened.
    Ask(usize),
    /// The outside does not know.
    AskInVain(usize),
    Effect(usize),
    /// A step with the effect begins in a task of its own.
    Spawn(usize),
    /// The effect of that step, whatever has become of the body.
    SpawnedEffect(usize),
    Checkpoint {
        caller: usize,
        heard: bool,
    },
    Renew {
        caller: usize,
        heard: bool,
    },
    /// The body returns an error: nothing happened.
    ReturnError(usize),
    /// The body returns an error that may hide an effect, under `on_error = hold`.
    ReturnHeldError(usize),
    /// The future of the body is dropped, or the body panics.
    Drop(usize),
    SendCommit(usize),
    CommitArrives {
        caller: usize,
        adopting: bool,
        heard: bool,
    },
    /// The commit's time has passed, and the caller is notified.
    NotStored(usize),
    /// The owner whose commit was refused reads the record.
    ReadWinner(usize),
    EndArrives {
        caller: usize,
        heard: bool,
    },
    Crash(usize),
    OperatorAnswers,
    ResolveArrives,
    /// The store loses a write that it has acknowledged.
    Forget,
}

/// The maximum number of times that anything is sent.
const SENDS: u8 = 2;

impl Action {
    /// Returns true if this is a fault of the network, a caller or a process. Consequences of an
    /// earlier one are not faults. A step in a task of its own counts as one, to keep the number of
    /// states small.
    pub fn is_fault(self, state: &State) -> bool {
        match self {
            Self::ClaimArrives { caller, heard } => {
                !heard && state.callers[caller].phase == Phase::Claiming
            }
            Self::CommitArrives { caller, heard, .. } => {
                !heard && state.callers[caller].phase == Phase::Committing
            }
            Self::Checkpoint { heard, .. }
            | Self::Renew { heard, .. }
            | Self::EndArrives { heard, .. } => !heard,
            Self::ResolveArrives => {
                !matches!(state.operator, Operator::Answering { arrived: 0, .. })
            }
            Self::SendClaimAgain(_)
            | Self::GiveUp(_)
            | Self::Spawn(_)
            | Self::ReturnHeldError(_)
            | Self::Drop(_)
            | Self::NotStored(_)
            | Self::Crash(_) => true,
            _ => false,
        }
    }
}

pub fn actions(protocol: &Protocol, state: &State, actions: &mut Vec<Action>) {
    if state.now < protocol.horizon {
        actions.push(Action::Tick);
    }
    for (index, caller) in state.callers.iter().enumerate() {
        // Callers are interchangeable: they arrive in the order of their numbers.
        let comes_next = index == 0 || state.callers[index - 1].phase != Phase::Idle;
        if comes_next || caller.phase != Phase::Idle {
            of_caller(protocol, state, (index, caller), actions);
        }
    }
    of_operator(protocol, state, actions);
    if protocol.is(Mutant::StoreForgets) && state.slot.is_some() {
        actions.push(Action::Forget);
    }
    if state.faults == 0 {
        actions.retain(|action| !action.is_fault(state));
    }
}

fn of_caller(
    protocol: &Protocol,
    state: &State,
    (index, caller): (usize, &Caller),
    actions: &mut Vec<Action>,
) {
    if caller.claims_under_way > 0 {
        actions.push(Action::ClaimArrives { caller: index, heard: false });
        if caller.phase == Phase::Claiming && caller.answer.is_none() {
            actions.push(Action::ClaimArrives { caller: index, heard: true });
        }
        // In other phases it makes no difference whether it is lost or late.
        if matches!(caller.phase, Phase::Ending(_)) {
            actions.push(Action::ClaimIsLost(index));
        }
    }
    for (under_way, adopting) in
        [(caller.commits_under_way, false), (caller.adopting_under_way, true)]
    {
        if under_way > 0 {
            actions.push(Action::CommitArrives { caller: index, adopting, heard: false });
            if caller.phase == Phase::Committing {
                actions.push(Action::CommitArrives { caller: index, adopting, heard: true });
            }
        }
    }
    if caller.spawned {
        actions.push(Action::SpawnedEffect(index));
    }
    let believes = state.now < caller.believes_until;
    match caller.phase {
        Phase::Idle => {
            actions.push(Action::SendClaim(index));
            return;
        }
        Phase::Claiming => {
            if caller.answer.is_some() {
                actions.push(Action::ReceiveAnswer(index));
            } else if caller.claims_sent < SENDS {
                actions.push(Action::SendClaimAgain(index));
            }
            actions.push(Action::GiveUp(index));
        }
        Phase::Granted => {
            actions.push(Action::GiveUp(index));
            if protocol.verifies() && caller.grant.taken_over {
                if believes && may_ask(protocol, state, index) {
                    actions.extend([Action::Ask(index), Action::AskInVain(index)]);
                }
            } else if state.now * 10 < caller.sent * 10 + LEASE * 8 {
                actions.push(Action::Start(index));
            }
        }
        Phase::Body => in_body(protocol, (index, caller), believes, state.now, actions),
        Phase::Committing => {
            if caller.commits_sent < SENDS {
                actions.push(Action::SendCommit(index));
            }
            if caller.commits_sent > 0 {
                actions.push(Action::NotStored(index));
            }
        }
        Phase::Overtaken => actions.push(Action::ReadWinner(index)),
        Phase::Ending(ending) => {
            let nothing_to_come = caller.claims_under_way == 0 || protocol.is(Mutant::GhostClaim);
            if ending.started || ending.rounds > 1 || nothing_to_come {
                let arrives = |heard| Action::EndArrives { caller: index, heard };
                actions.extend([arrives(true), arrives(false)]);
            }
        }
        Phase::Over { .. } => return,
    }
    actions.push(Action::Crash(index));
}

fn in_body(
    protocol: &Protocol,
    (index, caller): (usize, &Caller),
    believes: bool,
    now: u8,
    actions: &mut Vec<Action>,
) {
    let finished = usize::from(caller.grant.steps) >= protocol.steps();
    match caller.effect {
        _ if finished => actions.push(Action::SendCommit(index)),
        Some(_) if protocol.policy == Policy::Resume => {
            actions.push(Action::Checkpoint { caller: index, heard: true });
            actions.push(Action::Checkpoint { caller: index, heard: false });
        }
        Some(_) => actions.push(Action::SendCommit(index)),
        None if protocol.is(Mutant::CommitFirst) => actions.push(Action::SendCommit(index)),
        None if caller.spawned => actions.push(Action::ReturnError(index)),
        None => actions.extend([
            Action::Effect(index),
            Action::Spawn(index),
            Action::ReturnError(index),
        ]),
    }
    if believes && caller.believes_until != now + LEASE {
        actions.push(Action::Renew { caller: index, heard: true });
        actions.push(Action::Renew { caller: index, heard: false });
    }
    actions.extend([Action::Drop(index), Action::ReturnHeldError(index)]);
}

/// Rule 12: the outside enforces the key, or no other caller is at work any more.
fn may_ask(protocol: &Protocol, state: &State, asking: usize) -> bool {
    let at_work = |(index, caller): (usize, &Caller)| index != asking && caller.is_at_work();
    protocol.policy == Policy::VerifyWithKey
        || protocol.is(Mutant::AskedTooEarly)
        || !state.callers.iter().enumerate().any(at_work)
}

fn of_operator(protocol: &Protocol, state: &State, actions: &mut Vec<Action>) {
    match state.operator {
        Operator::Away => {
            let in_doubt =
                state.slot.as_ref().is_some_and(|record| record.state == RecordState::InDoubt);
            if in_doubt && truth(protocol, state).is_some() {
                actions.push(Action::OperatorAnswers);
            }
        }
        Operator::Answering { .. } => actions.push(Action::ResolveArrives),
        Operator::Done => {}
    }
}

/// Returns what an operator that investigates can know: that it happened, or that it did not and
/// will not.
pub fn truth(protocol: &Protocol, state: &State) -> Option<bool> {
    let effects = &state.world.effects[state.world.retention][..protocol.steps()];
    let owner = state.slot.as_ref().map_or(0, |record| record.owner.bits());
    // A very late owner belongs to an older retention.
    let owner_had_none =
        u32::try_from(owner).is_ok_and(|owner| state.world.effected & (1 << owner) == 0);
    let no_step_is_told = state.slot.as_ref().is_none_or(|record| record.body.is_empty());
    let nobody_works = state.callers.iter().all(|caller| !caller.is_at_work());
    if effects.iter().all(|effects| *effects > 0) {
        Some(true)
    } else if effects.iter().all(|effects| *effects == 0)
        && owner_had_none
        && no_step_is_told
        && nobody_works
    {
        Some(false)
    } else {
        None
    }
}
