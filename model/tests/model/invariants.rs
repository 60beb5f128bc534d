//! The invariants of every state, named as in the protocol.

use std::ops::BitOrAssign;

use idempotent_runtime::store::State as RecordState;
use stateright::Property;

use crate::protocol::{Policy, Protocol};
use crate::state::{OPERATOR, Phase, State};
use crate::store::{token, value};

pub const S1: &str = "S1 all callers are told the same result";
pub const S2: &str = "S2 one result per retention, which never changes, and does not come back";
pub const S3: &str = "S3 at most one effect more than takeovers";
pub const S3_STEPS: &str = "S3 a later owner begins after the finished steps";
pub const S4: &str = "S4 fences grow in the order of ownership";
pub const S5: &str = "S5 at most one effect under hold and verify";
pub const S6: &str = "S6 an effect in a transaction stands and falls with its record";
pub const S7: &str = "S7 one owner at most believes in its lease";
pub const S8: &str = "S8 no result without an effect";
pub const S8_WRITES: &str = "S8 an owner writes on its own record alone";
/// Rule 5 of the protocol.
pub const R5: &str = "R5 a claim that nobody uses is nobody's";

/// The invariants that a transition broke, where the state afterwards does not show it: one bit for
/// each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broken(u8);

impl Broken {
    pub const FENCES: Self = Self(1);
    pub const STEPS: Self = Self(2);
    pub const FOREIGN_WRITE: Self = Self(4);
    pub const RESULT_CHANGED: Self = Self(8);
    pub const TOLD_OTHERWISE: Self = Self(16);
    pub const RESULT_CAME_BACK: Self = Self(32);
    pub const TAKEN_BACK: Self = Self(64);

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOrAssign for Broken {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

pub fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(S1, |_, state: &State| !state.world.broken.has(Broken::TOLD_OTHERWISE)),
        Property::always(S2, one_result),
        Property::always(S3, effects_and_takeovers),
        Property::always(S3_STEPS, |_, state: &State| !state.world.broken.has(Broken::STEPS)),
        Property::always(S4, |_, state: &State| !state.world.broken.has(Broken::FENCES)),
        Property::always(S5, one_effect),
        Property::always(S7, one_believer),
        Property::always(S8, results_have_effects),
        Property::always(S8_WRITES, |_, state: &State| {
            !state.world.broken.has(Broken::FOREIGN_WRITE)
        }),
        Property::always(R5, no_ghosts),
    ]
}

fn one_result(_: &Protocol, state: &State) -> bool {
    let broken = state.world.broken;
    !broken.has(Broken::RESULT_CHANGED)
        && !broken.has(Broken::RESULT_CAME_BACK)
        && state.world.results <= 1
}

fn effects_and_takeovers(_: &Protocol, state: &State) -> bool {
    let counts = state.world.effects.iter().zip(state.world.takeovers);
    counts
        .into_iter()
        .all(|(effects, takeovers)| effects.iter().all(|effects| *effects <= 1 + takeovers))
}

fn one_effect(protocol: &Protocol, state: &State) -> bool {
    !(protocol.policy == Policy::Hold || protocol.verifies())
        || state.world.effects.iter().all(|effects| effects[0] <= 1)
}

fn one_believer(_: &Protocol, state: &State) -> bool {
    state
        .callers
        .iter()
        .filter(|caller| caller.is_owner() && state.now < caller.believes_until)
        .count()
        <= 1
}

fn results_have_effects(protocol: &Protocol, state: &State) -> bool {
    let Some(record) = state.slot.as_ref().filter(|record| record.state.is_answer()) else {
        return true;
    };
    let value = value(record);
    if protocol.policy == Policy::Resume {
        let happened = |step: usize| state.world.effects.iter().any(|effects| effects[step] > 0);
        return (0..protocol.steps()).all(happened);
    }
    if value == OPERATOR {
        state.world.effected != 0
    } else {
        state.world.effected & (1 << value) != 0
    }
}

/// Returns true if a caller that has ended without having started its body, and did not crash,
/// leaves nothing but what it took over; and if no caller that left a record in doubt gets it back
/// by a late claim.
fn no_ghosts(_: &Protocol, state: &State) -> bool {
    if state.world.broken.has(Broken::TAKEN_BACK) {
        return false;
    }
    let Some(record) = &state.slot else { return true };
    let is_unfinished = matches!(record.state, RecordState::InProgress | RecordState::InDoubt);
    // Given up with the lease zero: the next caller may take it at once.
    let is_given_up =
        record.taken_over.is_some() && record.lease_until <= crate::time::timestamp(0);
    let is_left = |index: usize| {
        let caller = &state.callers[index];
        caller.phase == (Phase::Over { unused: true })
            && caller.claims_under_way == 0
            && record.owner == token(index)
    };
    !is_unfinished || is_given_up || !(0..state.callers.len()).any(is_left)
}
