//! The rules about changes of one record, for tests that see the record before and after each
//! request.

use std::collections::BTreeMap;
use std::time::Duration;

use idempotent_runtime::clock::Timestamp;
use idempotent_runtime::key::Fingerprint;
use idempotent_runtime::store::{CrashPolicy, Reason, Record, State, Token};

use super::violation::{Rule, Violation};

/// A request that was applied to a record, and its effect on the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The time, since the start of the test.
    pub at: Duration,
    /// The sender of the request.
    pub from: String,
    /// The key, as the test names it.
    pub key: String,
    /// The number of times that the record of the key has ended by expiry or removal.
    pub retention: u32,
    /// The request.
    pub request: Request,
    /// The record before.
    pub before: Option<Record>,
    /// The record after.
    pub after: Option<Record>,
}

/// A request, as far as the rules are concerned with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the operations of `Store` and their fields")]
pub enum Request {
    Claim { token: Token, policy: CrashPolicy, fingerprint: Option<Fingerprint> },
    Renew { token: Token },
    Complete { token: Token },
    Release { token: Token },
    Abandon { token: Token },
    Park { token: Token, only_orphaned: bool },
    Checkpoint { token: Token },
    Resolve { observed: Token },
    Remove { observed: Token },
}

impl Request {
    /// Returns the owner for whom the sender speaks. A claim speaks for no owner, and a caller that
    /// puts an orphan in doubt only names the owner that it saw.
    fn owner(&self) -> Option<Token> {
        match *self {
            Self::Claim { .. } => None,
            Self::Renew { token }
            | Self::Complete { token }
            | Self::Release { token }
            | Self::Abandon { token }
            | Self::Park { token, .. }
            | Self::Checkpoint { token } => Some(token),
            Self::Resolve { observed } | Self::Remove { observed } => Some(observed),
        }
    }
}

impl Transition {
    /// Returns true if the request took effect.
    pub fn has_changed(&self) -> bool {
        self.before != self.after
    }

    /// Returns the owner that the request put on the record.
    pub fn granted(&self) -> Option<Token> {
        let Request::Claim { token, .. } = self.request else { return None };
        let owns =
            |record: &Option<Record>| record.as_ref().is_some_and(|record| record.owner == token);
        (owns(&self.after) && !owns(&self.before)).then_some(token)
    }

    /// Returns the record of the owner that was taken over.
    pub fn taken_over(&self) -> Option<&Record> {
        let unfinished =
            |record: &&Record| matches!(record.state, State::InProgress | State::InDoubt);
        self.granted().and(self.before.as_ref()).filter(unfinished)
    }

    fn violation(&self, rule: Rule, seen: &str) -> Violation {
        let seen = format!("{seen}, by {:?} of {} at {:?}", self.request, self.from, self.at);
        Violation { rule, key: self.key.clone(), retention: self.retention, seen }
    }
}

/// The known facts about an owner.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    /// The retention in which it was granted its claim.
    retention: u32,
    /// The latest end that its lease ever had, in the store's time.
    lease_until: Timestamp,
}

/// Checks the changes in the order in which they were made.
pub fn check_transitions(transitions: &[Transition]) -> Vec<Violation> {
    let mut fences = BTreeMap::new();
    let mut answers = BTreeMap::new();
    let mut owners = BTreeMap::new();
    let mut broken = Vec::new();
    for transition in transitions.iter().filter(|transition| transition.has_changed()) {
        if let Some(owned) =
            transition.after.as_ref().filter(|record| record.state == State::InProgress)
        {
            let owner = owners
                .entry(owned.owner)
                .or_insert(Owner { retention: transition.retention, ..Owner::default() });
            owner.lease_until = owner.lease_until.max(owned.lease_until);
        }
        let seen = [
            (Rule::OneResult, changed_answer(transition)),
            (Rule::OneResult, another_answer(transition, &mut answers)),
            (Rule::FencesGrow, smaller_fence(transition, &mut fences)),
            (Rule::OneEffectUnderHold, taken_over_under_hold(transition)),
            (Rule::OneEffectUnderHold, taken_over_without_question(transition)),
            (Rule::OwnRecordOnly, foreign_record(transition, &owners)),
            (Rule::DeadOwnersMakeRoom, taken_back(transition)),
            (Rule::FingerprintsKeptApart, taken_over_by_another_request(transition)),
        ];
        broken.extend(
            seen.into_iter().filter_map(|(rule, seen)| Some(transition.violation(rule, &seen?))),
        );
    }
    broken
}

/// S2: an answer stays as it is until it expires or is removed. An operator may correct an
/// operator's answer.
fn changed_answer(transition: &Transition) -> Option<String> {
    let before = transition.before.as_ref().filter(|record| record.state.is_answer())?;
    let is_answer =
        |record: &Record| record.state.is_answer() && record.reason == Some(Reason::Resolved);
    let may_change = match transition.request {
        Request::Remove { .. } => true,
        Request::Resolve { .. } => {
            is_answer(before) && transition.after.as_ref().is_some_and(is_answer)
        }
        _ => false,
    };
    (!may_change).then(|| format!("a record that was {:?} was changed", before.state))
}

/// S2: one answer is stored.
fn another_answer<'a>(
    transition: &'a Transition,
    answers: &mut BTreeMap<(&'a str, u32), Token>,
) -> Option<String> {
    let is_answer =
        |record: &Option<Record>| record.as_ref().is_some_and(|record| record.state.is_answer());
    if is_answer(&transition.before) || !is_answer(&transition.after) {
        return None;
    }
    let owner = transition.after.as_ref()?.owner;
    let first = answers.insert((&transition.key, transition.retention), owner)?;
    Some(format!("an answer of {owner:?} was stored after one of {first:?}"))
}

/// S4: each owner has a larger fence than all previous ones.
fn smaller_fence<'a>(
    transition: &'a Transition,
    fences: &mut BTreeMap<&'a str, u64>,
) -> Option<String> {
    transition.granted()?;
    let fence = transition.after.as_ref()?.fence;
    let before = fences.insert(&transition.key, fence)?;
    (fence <= before).then(|| format!("the fence {fence} follows {before}"))
}

/// S5: the record of an owner that must not be repeated is not taken over.
fn taken_over_under_hold(transition: &Transition) -> Option<String> {
    let policy = transition.taken_over()?.policy;
    let Request::Claim { policy: of_claim, .. } = transition.request else { return None };
    (policy.max(of_claim) == CrashPolicy::Hold)
        .then(|| String::from("a claim under hold was taken over"))
}

/// S5: a record that requires verification is taken over only by a caller that can verify.
fn taken_over_without_question(transition: &Transition) -> Option<String> {
    let policy = transition.taken_over()?.policy;
    let Request::Claim { policy: of_claim, .. } = transition.request else { return None };
    let has_none = policy == CrashPolicy::Verify && of_claim < CrashPolicy::Verify;
    has_none.then(|| String::from("a claim under verify was taken over by who has no question"))
}

/// L2: an owner that left its record in doubt does not get it back.
fn taken_back(transition: &Transition) -> Option<String> {
    let before = transition.before.as_ref().filter(|record| record.state == State::InDoubt)?;
    let after = transition.after.as_ref().filter(|record| record.state == State::InProgress)?;
    (before.owner == after.owner)
        .then(|| format!("a record in doubt went back to {:?}", after.owner))
}

/// S8: a writer that acts as an owner is the owner on the record, and no observer ends the lease of
/// another.
///
/// A commit writes a record again that is gone, as long as its owner's lease holds (T9). Nothing
/// vanishes from a store that loses nothing, so such a record was removed.
fn foreign_record(transition: &Transition, owners: &BTreeMap<Token, Owner>) -> Option<String> {
    let writer = transition.request.owner()?;
    match &transition.before {
        None => {
            let now = transition.after.as_ref()?.read_at;
            let may_adopt =
                |owner: &Owner| owner.retention < transition.retention && now < owner.lease_until;
            (!owners.get(&writer).is_some_and(may_adopt))
                .then(|| String::from("a record that was gone was written anew"))
        }
        Some(record) if record.owner != writer => {
            Some(format!("the record of {:?} was changed", record.owner))
        }
        Some(record) => {
            let is_observer = matches!(
                transition.request,
                Request::Park { only_orphaned: true, .. }
                    | Request::Resolve { .. }
                    | Request::Remove { .. }
            );
            (is_observer && record.is_running())
                .then(|| format!("the running {:?} lost its record", record.owner))
        }
    }
}

/// S9: a caller that takes over repeats the request.
fn taken_over_by_another_request(transition: &Transition) -> Option<String> {
    let before = transition.taken_over()?.fingerprint;
    let Request::Claim { fingerprint, .. } = transition.request else { return None };
    Fingerprint::contradicts(before, fingerprint)
        .then(|| String::from("another request has taken the call over"))
}
