//! The effects of the actions: the callers and their engine. The store's part is in `store`.

use idempotent_runtime::store::State as RecordState;
use stateright::{Model, Property};

use crate::actions::{self, Action, truth};
use crate::invariants::{self, Broken};
use crate::protocol::{Mutant, Policy, Protocol};
use crate::seen::Event;
use crate::state::{
    Answer, Caller, Ending, Granted, Operator, Phase, Plan, RETENTIONS, State, Value, World,
};
use crate::store::{self, token, value};
use crate::time::{LEASE, START};

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: START,
            slot: None,
            last_fence: 0,
            callers: vec![Caller::default(); self.callers],
            operator: Operator::Away,
            faults: self.faults,
            world: World::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions::actions(self, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        if action.is_fault(state) {
            next.faults -= 1;
        }
        self.act(&mut next, action);
        self.forget_dead_letters(&mut next);
        if next.slot.as_ref().is_some_and(|record| record.state == RecordState::InDoubt) {
            self.seen.note(Event::InDoubt);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        invariants::properties()
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.world.retention < RETENTIONS
    }
}

impl Protocol {
    fn act(&self, state: &mut State, action: Action) {
        let now = state.now;
        match action {
            Action::Tick => store::tick(state),
            Action::SendClaim(index) => {
                let caller = &mut state.callers[index];
                (caller.phase, caller.sent) = (Phase::Claiming, now);
                self.send_claim(caller, now);
            }
            Action::SendClaimAgain(index) => self.send_claim(&mut state.callers[index], now),
            Action::ClaimArrives { caller, heard } => {
                state.callers[caller].claims_under_way -= 1;
                let answer = self.claim(state, caller);
                if heard {
                    self.hear(state, caller, answer);
                }
            }
            Action::ClaimIsLost(index) => state.callers[index].claims_under_way -= 1,
            Action::ReceiveAnswer(index) => self.receive(&mut state.callers[index], now),
            Action::GiveUp(index) => self.give_back(&mut state.callers[index]),
            Action::Start(index) => start(&mut state.callers[index], Phase::Body),
            Action::Ask(index) => {
                let first_effect = state.world.first_effect;
                let caller = &mut state.callers[index];
                caller.effect = first_effect;
                start(caller, if first_effect.is_some() { Phase::Committing } else { Phase::Body });
            }
            Action::AskInVain(index) => settle(&mut state.callers[index], Plan::AskAgain),
            Action::Effect(index) => self.effect(state, index),
            Action::Spawn(index) => state.callers[index].spawned = true,
            Action::SpawnedEffect(index) => self.spawned_effect(state, index),
            Action::Checkpoint { caller, heard } => self.checkpoint(state, caller, heard),
            Action::Renew { caller, heard } => {
                let written = store::renew(state, caller);
                if heard {
                    state.callers[caller].believes_until =
                        if written.is_done() { now + LEASE } else { now };
                }
            }
            Action::ReturnError(index) => self.return_error(&mut state.callers[index]),
            Action::ReturnHeldError(index) => settle(&mut state.callers[index], Plan::Park),
            Action::Drop(index) if self.is(Mutant::DropDeletes) => {
                settle(&mut state.callers[index], Plan::GiveBack);
            }
            Action::Drop(index) | Action::NotStored(index) => {
                settle(&mut state.callers[index], self.unknown_outcome());
            }
            Action::SendCommit(index) => send_commit(&mut state.callers[index], now),
            Action::CommitArrives { caller, adopting, heard } => {
                self.commit_arrives(state, caller, adopting, heard);
            }
            Action::ReadWinner(index) => {
                let winner = store::read(state).filter(|record| record.state.is_answer());
                if let Some(record) = winner {
                    tell(state, value(&record));
                }
                state.callers[index].ends(Phase::Over { unused: false });
            }
            Action::EndArrives { caller, heard } => self.end_arrives(state, caller, heard),
            Action::Crash(index) => {
                state.callers[index].spawned = false;
                state.callers[index].ends(Phase::Over { unused: false });
            }
            Action::OperatorAnswers => {
                let observed = state.slot.as_ref().map_or(0, |record| record.owner.bits());
                let happened = truth(self, state) == Some(true);
                state.operator = Operator::Answering { observed, happened, arrived: 0 };
            }
            Action::ResolveArrives => {
                if let Operator::Answering { observed, happened, arrived } = state.operator {
                    self.resolve(state, observed, happened);
                    state.operator = match arrived {
                        0 if state.faults > 0 => {
                            Operator::Answering { observed, happened, arrived: 1 }
                        }
                        _ => Operator::Done,
                    };
                }
            }
            Action::Forget => state.slot = None,
        }
    }

    /// Drops commits of a caller whose token is not on the record and cannot return to it: they no
    /// longer change anything.
    fn forget_dead_letters(&self, state: &mut State) {
        let owner = state.slot.as_ref().map(|record| record.owner);
        for (index, caller) in state.callers.iter_mut().enumerate() {
            let is_over =
                matches!(caller.phase, Phase::Over { .. }) && caller.claims_under_way == 0;
            if is_over
                && caller.adopting_under_way == 0
                && owner != Some(token(index))
                && self.mutant.is_none()
            {
                (caller.commits_under_way, caller.effect) = (0, None);
            }
        }
    }

    fn send_claim(&self, caller: &mut Caller, now: u8) {
        caller.claims_sent += 1;
        caller.claims_under_way += 1;
        if self.is(Mutant::DeadlineFromRetry) {
            caller.sent_last = now;
        }
    }

    /// Delivers the answer to a claim. A refusal is heard at once. A grant may be in flight for
    /// long, which is the reason for the owner's lease.
    fn hear(&self, state: &mut State, index: usize, answer: Answer) {
        match answer {
            Answer::Granted(grant) => state.callers[index].answer = Some(grant),
            Answer::Stored(value) => {
                tell(state, value);
                self.refused(&mut state.callers[index]);
            }
            Answer::Refused => self.refused(&mut state.callers[index]),
        }
    }

    fn receive(&self, caller: &mut Caller, now: u8) {
        let Some(grant) = caller.answer.take() else { return };
        if self.is(Mutant::DeadlineFromAnswer) {
            caller.sent = now;
        } else if self.is(Mutant::DeadlineFromRetry) {
            caller.sent = caller.sent_last;
        }
        caller.grant = grant;
        caller.believes_until = caller.sent + LEASE;
        caller.phase = Phase::Granted;
    }

    /// Returns true if a claim that was believed lost may still arrive.
    fn may_come_again(&self, caller: &Caller) -> bool {
        caller.claims_sent > 1 && !self.is(Mutant::GhostClaim)
    }

    /// Ends a caller whose claim was not granted. One that is still in flight may yet be.
    fn refused(&self, caller: &mut Caller) {
        if self.may_come_again(caller) {
            caller.ends(Phase::Ending(Ending { plan: Plan::GiveBack, rounds: 1, started: false }));
        } else {
            caller.ends(Phase::Over { unused: true });
        }
    }

    /// Ends the claim at once, and again when those that are still in flight have arrived or are
    /// lost.
    fn give_back(&self, caller: &mut Caller) {
        let is_unknown = caller.phase == Phase::Claiming
            && caller.answer.is_none()
            && !self.is(Mutant::GhostClaim);
        let rounds = if is_unknown || self.may_come_again(caller) { 2 } else { 1 };
        caller.ends(Phase::Ending(Ending { plan: Plan::GiveBack, rounds, started: false }));
    }

    /// Returns an error that says that nothing happened in this attempt. Steps that were finished
    /// stay finished.
    fn return_error(&self, caller: &mut Caller) {
        let plan = match caller.grant.steps {
            1.. if !self.is(Mutant::ErrorForgetsSteps) => Plan::Abandon,
            // It is unknown what the step will do.
            _ if caller.spawned && !self.is(Mutant::ErrorForgetsRunning) => self.unknown_outcome(),
            _ => Plan::NothingHappened,
        };
        let rounds =
            if plan == Plan::NothingHappened && self.may_come_again(caller) { 2 } else { 1 };
        caller.ends(Phase::Ending(Ending { plan, rounds, started: true }));
    }

    fn unknown_outcome(&self) -> Plan {
        if self.policy == Policy::Hold { Plan::Park } else { Plan::Abandon }
    }

    fn spawned_effect(&self, state: &mut State, index: usize) {
        self.effect(state, index);
        let caller = &mut state.callers[index];
        caller.spawned = false;
        if caller.phase != Phase::Body {
            // No caller waits for its result.
            (caller.effect, caller.retention, caller.grant) = (None, 0, Granted::default());
        }
    }

    fn effect(&self, state: &mut State, index: usize) {
        let (world, caller) = (&mut state.world, &mut state.callers[index]);
        if self.policy == Policy::VerifyWithKey && world.first_effect.is_some() {
            caller.effect = world.first_effect;
            return;
        }
        let attempt = u8::try_from(index).unwrap_or(u8::MAX);
        if caller.retention > 0 && caller.retention == world.retention {
            self.seen.note(Event::RanAgain);
        }
        world.effects[caller.retention][usize::from(caller.grant.steps)] += 1;
        world.effected |= 1 << attempt;
        world.first_effect = world.first_effect.or(Some(attempt));
        caller.effect = Some(attempt);
    }

    fn checkpoint(&self, state: &mut State, index: usize, heard: bool) {
        let written = store::checkpoint(state, index, state.callers[index].grant.steps);
        if !heard {
            return;
        }
        let caller = &mut state.callers[index];
        if written.is_done() {
            caller.grant.steps += 1;
            if usize::from(caller.grant.steps) < self.steps() {
                caller.effect = None;
            }
        } else {
            // Its lease is lost: the body stops here.
            caller.ends(Phase::Over { unused: false });
        }
    }

    fn commit_arrives(&self, state: &mut State, index: usize, adopting: bool, heard: bool) {
        let caller = &mut state.callers[index];
        if adopting {
            caller.adopting_under_way -= 1;
        } else {
            caller.commits_under_way -= 1;
        }
        if caller.phase != Phase::Committing {
            self.seen.note(Event::LateCommit);
        }
        let caller = &state.callers[index];
        let own = caller.effect.unwrap_or_else(|| u8::try_from(index).unwrap_or(u8::MAX));
        let written = self.complete(
            state,
            index,
            own,
            adopting.then_some((caller.grant, caller.adopts_until)),
        );
        if !heard {
            return;
        }
        if written.is_done() {
            tell(state, own);
            state.callers[index].ends(Phase::Over { unused: false });
        } else {
            self.seen.note(Event::Overtaken);
            state.callers[index].ends(Phase::Overtaken);
        }
    }

    fn end_arrives(&self, state: &mut State, index: usize, heard: bool) {
        let Phase::Ending(Ending { plan, rounds, started }) = state.callers[index].phase else {
            return;
        };
        self.end(state, index, plan);
        if !heard {
            return;
        }
        let phase = if rounds > 1 {
            // Only a claim without a caller can follow a release.
            Phase::Ending(Ending { plan: Plan::GiveBack, rounds: 1, started: false })
        } else {
            Phase::Over { unused: !started }
        };
        state.callers[index].ends(phase);
    }
}

/// Starts the body or commits. From here on the time of the claim does not matter.
fn start(caller: &mut Caller, phase: Phase) {
    (caller.phase, caller.sent, caller.sent_last) = (phase, 0, 0);
}

/// Ends a body that started without a result of its own.
fn settle(caller: &mut Caller, plan: Plan) {
    caller.ends(Phase::Ending(Ending { plan, rounds: 1, started: true }));
}

fn send_commit(caller: &mut Caller, now: u8) {
    // Once the lease may have expired, the next record may belong to another owner.
    if now < caller.believes_until {
        caller.adopting_under_way += 1;
        caller.adopts_until = caller.believes_until;
    } else {
        caller.commits_under_way += 1;
    }
    caller.commits_sent += 1;
    caller.phase = Phase::Committing;
}

fn tell(state: &mut State, value: Value) {
    let told = &mut state.world.told;
    if told.is_some_and(|told| told != value) {
        state.world.broken |= Broken::TOLD_OTHERWISE;
    }
    *told = told.or(Some(value));
}
