//! The rules, on the events of one key and retention.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Call, Effect, Event, Outcome, Stored};
use super::violation::{Rule, Violation, Violations};

/// The length beyond which results are cut in messages.
const SHOWN_BYTES: usize = 60;

/// The policy for a call whose owner died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The call waits until it is resolved.
    Hold,
    /// Another caller takes the call over and runs the body again.
    Retry,
}

/// Checks the events, in any order.
///
/// # Errors
/// All violations, with what was seen.
///
/// ```
/// use idempotency_test_support::history::{Effect, Event, OpenCall, Outcome, Policy, check};
///
/// let call = OpenCall::start("order-1", "caller-1");
/// let effect = Effect::now("order-1", 1);
/// let call = call.end(Outcome::Value(b"receipt 1".to_vec()));
/// check(&[Event::from(call.clone()), Event::from(effect)], Policy::Hold)?;
///
/// let broken = check(&[Event::from(call)], Policy::Hold).unwrap_err();
/// assert!(broken.to_string().contains("S8 at order-1"));
/// # Ok::<(), idempotency_test_support::history::Violations>(())
/// ```
pub fn check(events: &[Event], policy: Policy) -> Result<(), Violations> {
    let mut groups: BTreeMap<(&str, u32), Group> = BTreeMap::new();
    for event in events {
        match event {
            Event::Call(call) => {
                groups.entry((&call.key, call.retention)).or_default().calls.push(call);
            }
            Event::Effect(effect) => {
                groups.entry((&effect.key, effect.retention)).or_default().effects.push(effect);
            }
            Event::Stored(stored) => {
                groups.entry((&stored.key, stored.retention)).or_default().stored = Some(stored);
            }
            Event::Takeover { key, retention } => {
                groups.entry((key, *retention)).or_default().takeovers += 1;
            }
        }
    }
    let violations = groups.iter().flat_map(|((key, retention), group)| {
        let violation =
            |(rule, seen)| Violation { rule, key: String::from(*key), retention: *retention, seen };
        group.broken(policy).into_iter().map(violation)
    });
    let violations: Vec<_> = violations.collect();
    if violations.is_empty() { Ok(()) } else { Err(Violations(violations)) }
}

/// The events of one key in one retention.
#[derive(Default)]
struct Group<'a> {
    calls: Vec<&'a Call>,
    effects: Vec<&'a Effect>,
    takeovers: usize,
    stored: Option<&'a Stored>,
}

impl Group<'_> {
    fn broken(&self, policy: Policy) -> Vec<(Rule, String)> {
        let rules = [
            (Rule::SameValue, self.different_values()),
            (Rule::OneResult, self.different_results().or_else(|| self.not_what_is_stored())),
            (Rule::EffectsWithinTakeovers, self.too_many_effects()),
            (Rule::OneEffectUnderHold, self.repeated_under_hold(policy)),
            (
                Rule::NoResultWithoutEffect,
                self.result_from_nowhere().or_else(|| self.result_of_no_effect()),
            ),
            (
                Rule::FingerprintsKeptApart,
                self.mixed_fingerprints().or_else(|| self.wrongly_refused()),
            ),
        ];
        rules.into_iter().filter_map(|(rule, seen)| Some((rule, seen?))).collect()
    }

    fn different_values(&self) -> Option<String> {
        let values: Vec<_> =
            self.results().filter(|call| matches!(call.outcome, Outcome::Value(_))).collect();
        different(&values).then(|| format!("callers got different values: {}", shown(&values)))
    }

    fn different_results(&self) -> Option<String> {
        let results: Vec<_> = self.results().collect();
        let with_errors =
            results.iter().any(|call| matches!(call.outcome, Outcome::StoredError(_)));
        (with_errors && different(&results))
            .then(|| format!("callers got different results: {}", shown(&results)))
    }

    fn not_what_is_stored(&self) -> Option<String> {
        let stored = self.stored?.result.as_ref();
        let other = self.results().find(|call| Some(&call.outcome) != stored)?;
        let stored = stored.map_or_else(|| String::from("no result"), show);
        Some(format!("{} got {}, and the store has {stored}", other.caller, show(&other.outcome)))
    }

    fn too_many_effects(&self) -> Option<String> {
        let attempts: Vec<_> = self.effects.iter().map(|effect| effect.attempt).collect();
        let distinct: BTreeSet<_> = attempts.iter().collect();
        if distinct.len() < attempts.len() {
            return Some(format!(
                "one attempt had several effects: the effects are of the attempts {attempts:?}"
            ));
        }
        // The n-th attempt is the owner after n - 1 takeovers, some of which may have left no other
        // trace.
        let stored = self.stored.map(|stored| stored.attempts);
        let highest = attempts
            .iter()
            .copied()
            .chain(stored)
            .max()
            .map_or(0, |attempt| attempt.saturating_sub(1));
        let takeovers = self.takeovers.max(usize::try_from(highest).unwrap_or(usize::MAX));
        (attempts.len() > takeovers.saturating_add(1))
            .then(|| format!("{} effects with {takeovers} takeovers", attempts.len()))
    }

    fn repeated_under_hold(&self, policy: Policy) -> Option<String> {
        (policy == Policy::Hold && self.effects.len() > 1)
            .then(|| format!("{} effects, although nobody may take over", self.effects.len()))
    }

    fn result_from_nowhere(&self) -> Option<String> {
        let earliest = self.results().min_by_key(|call| call.ended)?;
        match self.effects.iter().map(|effect| effect.at).min() {
            None => Some(format!("{} got a result, and there is no effect", earliest.caller)),
            Some(first) if earliest.ended < first => {
                let early = first - earliest.ended;
                Some(format!("{} got a result {early} µs before the first effect", earliest.caller))
            }
            Some(_) => None,
        }
    }

    fn result_of_no_effect(&self) -> Option<String> {
        let results: Option<Vec<_>> =
            self.effects.iter().map(|effect| effect.result.as_deref()).collect();
        let results = results?;
        let is_foreign = |call: &&Call| match &call.outcome {
            Outcome::Value(bytes) | Outcome::StoredError(bytes) => !results.contains(&&**bytes),
            Outcome::Mismatch | Outcome::Error(_) => false,
        };
        let call = self.results().find(is_foreign)?;
        Some(format!(
            "{} got {}, which is the result of no effect",
            call.caller,
            show(&call.outcome)
        ))
    }

    fn wrongly_refused(&self) -> Option<String> {
        let ran: Vec<_> =
            self.effects.iter().filter_map(|effect| effect.fingerprint.as_deref()).collect();
        let refused = self.calls.iter().filter(|call| call.outcome == Outcome::Mismatch);
        let mut refused = refused.filter_map(|call| Some((call, call.fingerprint.as_deref()?)));
        let (call, fingerprint) = refused.find(|(_, fingerprint)| ran.contains(fingerprint))?;
        Some(format!(
            "the key is that of {fingerprint}, and {} was refused with the same",
            call.caller
        ))
    }

    fn mixed_fingerprints(&self) -> Option<String> {
        let mut ran: Vec<_> = self.effects.iter().collect();
        ran.sort_by_key(|effect| effect.at);
        let mut got: Vec<_> = self.results().collect();
        got.sort_by_key(|call| call.ended);
        let effects =
            ran.iter().filter_map(|effect| Some((effect.fingerprint.as_deref()?, "ran the body")));
        let calls =
            got.iter().filter_map(|call| Some((call.fingerprint.as_deref()?, "got the result")));
        let mut all = effects.chain(calls);
        let (first, _) = all.next()?;
        let (other, did) = all.find(|(fingerprint, _)| *fingerprint != first)?;
        Some(format!("the key is that of {first}, and a call with {other} {did}"))
    }

    fn results(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().copied().filter(|call| call.outcome.is_result())
    }
}

fn different(calls: &[&Call]) -> bool {
    calls.windows(2).any(|pair| pair[0].outcome != pair[1].outcome)
}

/// Lists each outcome once, with the first caller that got it.
fn shown(calls: &[&Call]) -> String {
    let mut callers: BTreeMap<&Outcome, &str> = BTreeMap::new();
    for call in calls {
        callers.entry(&call.outcome).or_insert(&call.caller);
    }
    let outcomes: Vec<_> =
        callers.iter().map(|(outcome, caller)| format!("{caller} {}", show(outcome))).collect();
    outcomes.join(", ")
}

fn show(outcome: &Outcome) -> String {
    let quote = |bytes: &[u8]| {
        let rest = if bytes.len() > SHOWN_BYTES { "…" } else { "" };
        format!("`{}`{rest}", bytes[..bytes.len().min(SHOWN_BYTES)].escape_ascii())
    };
    match outcome {
        Outcome::Value(bytes) => quote(bytes),
        Outcome::StoredError(bytes) => format!("the error {}", quote(bytes)),
        Outcome::Mismatch => String::from("Mismatch"),
        Outcome::Error(kind) => kind.clone(),
    }
}
