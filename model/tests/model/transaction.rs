//! Calls whose claim, effect and result are in the user's transaction.
//!
//! The database keeps one row and counts the effects; an open transaction has its own view of the
//! row.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use idempotent_runtime::key::KeyHash;
use idempotent_runtime::store::{
    Claim, ClaimOutcome, Commit, CrashPolicy, Park, Reason, Record, Release, State as RecordState,
    Token, transition,
};
use stateright::{Model, Property};

use crate::invariants::{S1, S2, S6};
use crate::store::{token, value};
use crate::time::{START, TTL, duration, timestamp};

const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

#[derive(Clone, Debug)]
pub struct Transactions {
    callers: usize,
    mutant: Option<TransactionMutant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionMutant {
    /// A claim does not wait for another transaction, and overwrites what that one commits.
    DoesNotWait,
    /// The result is stored outside of the transaction.
    ResultOutside,
    /// A row without a result is taken over.
    Retries,
}

impl Transactions {
    pub fn new(callers: usize) -> Self {
        Self { callers, mutant: None }
    }

    pub fn with(self, mutant: TransactionMutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    fn is(&self, mutant: TransactionMutant) -> bool {
        self.mutant == Some(mutant)
    }
}

/// The committed row and effects, and the state of the callers.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    row: Option<Record>,
    effects: u8,
    callers: Vec<Caller>,
    told: Option<u8>,
    told_otherwise: bool,
    results: u8,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caller {
    phase: Phase,
    /// The number of times that it has begun. Each time its claim has another token.
    begun: u8,
    /// The row in its transaction, and whether that has the effect.
    row: Option<Record>,
    effect: bool,
    result: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    #[default]
    Idle,
    /// Its transaction is open, the claim is in it, and the body runs.
    Body,
    /// The call has ended; the user's transaction has not.
    Ended,
    Over,
}

impl Hash for Database {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let of_row = |row: &Option<Record>| {
            row.as_ref().map(|row| (row.state, row.owner, row.policy, row.body.clone()))
        };
        (of_row(&self.row), self.effects, self.told, self.told_otherwise, self.results)
            .hash(hasher);
        for caller in &self.callers {
            (caller.phase, caller.begun, of_row(&caller.row), caller.effect, caller.result)
                .hash(hasher);
        }
    }
}

impl Caller {
    fn token(&self, index: usize) -> Token {
        token(index * 10 + usize::from(self.begun))
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Body | Phase::Ended)
    }

    fn is_over(&mut self, phase: Phase) {
        *self = Self { phase, begun: self.begun, ..Self::default() };
    }
}

/// The number of times that a call is made if its commit is unknown.
const CALLS: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begins a transaction and claims in it.
    Begin(usize),
    /// Another transaction holds the key for too long.
    OutOfPatience(usize),
    Effect(usize),
    /// The body returns its result, which is written into the transaction.
    Finish(usize),
    /// The body returns an error: everything since the claim is undone.
    ReturnError(usize),
    /// The body returns an error that is held: its effect is undone, the row stays.
    ReturnHeldError(usize),
    /// The future of the body is dropped, and the user continues the transaction.
    CutOff(usize),
    Commit {
        caller: usize,
        heard: bool,
    },
    RollBack(usize),
    /// The process or the connection is gone: the database rolls back.
    Crash(usize),
}

impl Model for Transactions {
    type State = Database;
    type Action = Action;

    fn init_states(&self) -> Vec<Database> {
        vec![Database {
            row: None,
            effects: 0,
            callers: vec![Caller::default(); self.callers],
            told: None,
            told_otherwise: false,
            results: 0,
        }]
    }

    fn actions(&self, state: &Database, actions: &mut Vec<Action>) {
        let is_held =
            state.callers.iter().any(Caller::is_open) && !self.is(TransactionMutant::DoesNotWait);
        for (index, caller) in state.callers.iter().enumerate() {
            match caller.phase {
                Phase::Idle if is_held => actions.push(Action::OutOfPatience(index)),
                Phase::Idle => actions.push(Action::Begin(index)),
                Phase::Body => {
                    actions.push(if caller.effect {
                        Action::Finish(index)
                    } else {
                        Action::Effect(index)
                    });
                    actions.extend([Action::ReturnError(index), Action::ReturnHeldError(index)]);
                    actions.extend([
                        Action::CutOff(index),
                        Action::RollBack(index),
                        Action::Crash(index),
                    ]);
                }
                Phase::Ended => {
                    actions
                        .extend([true, false].map(|heard| Action::Commit { caller: index, heard }));
                    actions.extend([Action::RollBack(index), Action::Crash(index)]);
                }
                Phase::Over => {}
            }
        }
    }

    fn next_state(&self, state: &Database, action: Action) -> Option<Database> {
        let (mut next, now) = (state.clone(), timestamp(START));
        match action {
            Action::Begin(index) => self.begin(&mut next, index),
            Action::OutOfPatience(index) | Action::RollBack(index) | Action::Crash(index) => {
                next.callers[index].is_over(Phase::Over);
            }
            Action::Effect(index) => next.callers[index].effect = true,
            Action::Finish(index) => self.finish(&mut next, index),
            Action::ReturnError(index) => {
                let caller = &mut next.callers[index];
                transition::release(
                    &mut caller.row,
                    &Release::new(KEY, state.callers[index].token(index)),
                    now,
                );
                (caller.phase, caller.effect) = (Phase::Ended, false);
            }
            Action::ReturnHeldError(index) => {
                let caller = &mut next.callers[index];
                let park = Park::own(KEY, state.callers[index].token(index), Reason::Error);
                transition::park(&mut caller.row, &park, now);
                (caller.phase, caller.effect) = (Phase::Ended, false);
            }
            Action::CutOff(index) => next.callers[index].phase = Phase::Ended,
            Action::Commit { caller, heard } => commit(&mut next, caller, heard),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(S1, |_, state: &Database| !state.told_otherwise),
            Property::always(S2, |_, state: &Database| state.results <= 1),
            Property::always(S6, effects_go_with_the_row),
            Property::sometimes("a result is committed", |_, state: &Database| state.results == 1),
            Property::sometimes("a call that was cut off is in doubt", |_, state: &Database| {
                state.effects == 1 && state.results == 0
            }),
        ]
    }
}

impl Transactions {
    fn begin(&self, state: &mut Database, index: usize) {
        let caller = &mut state.callers[index];
        caller.begun += 1;
        let mut claim = Claim::new(KEY, caller.token(index), Arc::from("stock.reserve"));
        // As the engine claims in a transaction: a row that is committed without a result has no
        // owner.
        claim.lease = duration(0);
        if self.is(TransactionMutant::Retries) {
            claim.policy = CrashPolicy::Retry;
        }
        caller.row.clone_from(&state.row);
        match transition::claim(&mut caller.row, &claim, timestamp(START)) {
            ClaimOutcome::Granted(_) => caller.phase = Phase::Body,
            ClaimOutcome::Existing(record) => {
                caller.is_over(Phase::Over);
                if record.state.is_answer() {
                    tell(state, value(&record));
                }
            }
            _ => caller.is_over(Phase::Over),
        }
    }

    fn finish(&self, state: &mut Database, index: usize) {
        let caller = &mut state.callers[index];
        let result = u8::try_from(index * 10).unwrap_or(u8::MAX) + caller.begun;
        let commit =
            Commit::new(KEY, caller.token(index), Bytes::copy_from_slice(&[result]), duration(TTL));
        transition::complete(&mut caller.row, &commit, timestamp(START));
        (caller.phase, caller.result) = (Phase::Ended, Some(result));
        if self.is(TransactionMutant::ResultOutside) {
            state.row.clone_from(&caller.row);
        }
    }
}

fn commit(state: &mut Database, index: usize, heard: bool) {
    let caller = &mut state.callers[index];
    state.row = caller.row.take();
    state.effects += u8::from(caller.effect);
    state.results += u8::from(caller.result.is_some());
    let result = caller.result.filter(|_| heard);
    caller.is_over(if heard || caller.begun == CALLS { Phase::Over } else { Phase::Idle });
    if let Some(result) = result {
        tell(state, result);
    }
}

fn tell(state: &mut Database, result: u8) {
    state.told_otherwise |= state.told.is_some_and(|told| told != result);
    state.told = state.told.or(Some(result));
}

/// Returns true if there is one effect with a result, none without a row, and at most one with a
/// row that has no result and reads as in doubt.
fn effects_go_with_the_row(_: &Transactions, state: &Database) -> bool {
    match &state.row {
        None => state.effects == 0,
        Some(row) if row.state.is_answer() => state.effects == 1,
        Some(row) => {
            let is_orphaned =
                row.state == RecordState::InProgress && row.lease_until <= timestamp(START);
            state.effects <= 1 && (row.state == RecordState::InDoubt || is_orphaned)
        }
    }
}
