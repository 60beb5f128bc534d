//! What a run has to keep, by the names of the design. The rules about results and changes are
//! shared with other tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use idempotency::key::Fingerprint;
use idempotency::store::{Record, State};
use idempotency_test_support::history::{
    self, Call, Event, Outcome, Policy, Request, Rule, Stored, Transition, Violation, check,
    check_transitions,
};

use crate::body::Failure;
use crate::liveness;
use crate::log::{Called, Effect, Entry};
use crate::plan::{Class, Key, Plan};
use crate::windows;

/// All that is broken in a run.
pub fn broken(plan: &Plan, entries: &[Entry]) -> Vec<Violation> {
    let mut broken: Vec<_> = seen_at_once(entries).collect();
    let transitions: Vec<_> = applied(entries).cloned().collect();
    broken.extend(check_transitions(&transitions));
    for (key, label) in plan.keys.iter().flat_map(|key| labels(key, entries)) {
        let story = Story::of(key, label, entries);
        if !story.is_made_anew_by_the_network() {
            broken.extend(story.results());
        }
        broken.extend(story.released_effects());
        broken.extend(story.denied_effects());
        broken.extend(story.fences());
        broken.extend(story.fingerprints());
    }
    broken.extend(plan.keys.iter().filter_map(|key| two_windows(key, entries)));
    broken.extend(liveness::broken(plan, entries));
    broken
}

/// The names of the records of `key`: one, or one for each window in which there was something.
fn labels<'a>(key: &'a Key, entries: &[Entry]) -> Vec<(&'a Key, String)> {
    if key.window.is_none() {
        return vec![(key, key.label())];
    }
    let is_of_key =
        |label: &&str| windows::of_label(label).is_some_and(|(of, _)| of == key.label());
    let labels: BTreeSet<&str> =
        applied(entries).map(|change| change.key.as_str()).filter(is_of_key).collect();
    labels.into_iter().map(|label| (key, label.to_owned())).collect()
}

/// S12: whoever has begun in a window has seen that there was no record in the window before.
fn two_windows(key: &Key, entries: &[Entry]) -> Option<Violation> {
    key.window?;
    let stories: BTreeMap<u64, Story<'_>> = labels(key, entries)
        .into_iter()
        .filter_map(|(key, label)| {
            Some((windows::of_label(&label)?.1, Story::of(key, label.clone(), entries)))
        })
        .collect();
    stories.iter().find_map(|(number, story)| {
        let before = stories.get(&number.checked_sub(1)?)?;
        story.effects.values().find_map(|effect| {
            let began = story.began(effect.retention)?;
            let there = before.there_at(began)?;
            let earlier = before.effects.values().find(|earlier| earlier.retention == there.retention)?;
            let seen =
                format!("it began at {began:?} and had the effect {effect:?}, and the window before has {earlier:?}");
            Some(Violation { rule: Rule::OneWindow, key: story.label.clone(), retention: effect.retention, seen })
        })
    })
}

/// What was wrong as soon as it was seen.
pub fn seen_at_once(entries: &[Entry]) -> impl Iterator<Item = Violation> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Broken { violation, .. } => Some(violation.clone()),
        _ => None,
    })
}

/// S1, S2, S3, S5 and S8 about the results of one key.
pub fn results(key: &Key, entries: &[Entry]) -> Vec<Violation> {
    Story::of(key, key.label(), entries).results()
}

/// The value in a stored error. One of the engine's has a value that no effect had.
pub fn declined(record: &Record) -> Option<String> {
    match serde_json::from_slice(&record.body).ok()? {
        Failure::Declined(value) | Failure::Guard(value) => Some(value),
        _ => None,
    }
}

pub fn applied(entries: &[Entry]) -> impl Iterator<Item = &Transition> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Applied(transition) => Some(&**transition),
        _ => None,
    })
}

pub fn called(entries: &[Entry]) -> impl Iterator<Item = &Called> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Called(called) => Some(called),
        _ => None,
    })
}

/// What happened to one key.
struct Story<'a> {
    key: &'a Key,
    label: String,
    entries: &'a [Entry],
    effects: BTreeMap<&'a str, &'a Effect>,
}

impl<'a> Story<'a> {
    fn of(key: &'a Key, label: String, entries: &'a [Entry]) -> Self {
        let effects = entries.iter().filter_map(|entry| match entry {
            Entry::Effect(effect) if effect.key == label => Some((effect.value.as_str(), effect)),
            _ => None,
        });
        Self { effects: effects.collect(), label, key, entries }
    }

    fn changes(&self) -> impl Iterator<Item = &Transition> {
        applied(self.entries).filter(|transition| transition.key == self.label)
    }

    fn calls(&self) -> impl Iterator<Item = &Called> {
        called(self.entries).filter(|called| called.key == self.label)
    }

    /// When the call was decided to belong to this window, in one of its retentions: when its
    /// record had a checkpoint, and else when it was claimed.
    fn began(&self, retention: u32) -> Option<Duration> {
        let in_retention = || {
            self.changes().filter(|change| change.retention == retention && change.has_changed())
        };
        let is_begin = |change: &&Transition| matches!(change.request, Request::Checkpoint { .. });
        let began = in_retention().find(is_begin).or_else(|| in_retention().next())?;
        Some(began.at)
    }

    /// The last change of the record before `time`, if there was one then that could be seen.
    fn there_at(&self, time: Duration) -> Option<&Transition> {
        let last = self.changes().take_while(|change| change.at < time).last()?;
        let record = last.after.as_ref()?;
        let has_gone = matches!(record.state, State::Released | State::Tombstone)
            || record.expires.saturating_duration_since(record.read_at)
                <= time.saturating_sub(last.at);
        (!has_gone).then_some(last)
    }

    /// Whether the claim of an attempt arrived again when the retention of its call was over, and a
    /// result or a step of it after that. To the store this is another call, which has the result
    /// of the first. No store can tell: `ttl` has to be longer than a network keeps requests, and
    /// is not in a few of these runs.
    fn is_made_anew_by_the_network(&self) -> bool {
        let mut granted = BTreeMap::new();
        self.changes().any(|change| {
            if let Some(token) = change.granted() {
                granted.entry(token).or_insert(change.retention);
            }
            let (Request::Complete { token } | Request::Checkpoint { token }) = change.request
            else {
                return false;
            };
            let is_older =
                granted.get(&token).is_some_and(|retention| *retention < change.retention);
            is_older && change.before.is_some() && change.has_changed()
        })
    }

    /// S1, S2, S3, S5 and S8, for each step by itself.
    fn results(&self) -> Vec<Violation> {
        let steps: &[&str] =
            if self.key.class.has_steps() { &["reserve", "charge"] } else { &[""] };
        let broken = steps.iter().enumerate().filter_map(|(place, step)| {
            let events = self.events(place, step);
            check(&events, policy(self.key.class, step)).err()
        });
        broken.flat_map(|violations| violations.0).collect()
    }

    /// S3: a release says that nothing happened and that nothing will, so the next call runs
    /// without a takeover.
    fn released_effects(&self) -> Option<Violation> {
        self.changes().find_map(|change| {
            let Request::Release { token } = change.request else { return None };
            let was_unfinished =
                |record: &Record| matches!(record.state, State::InProgress | State::InDoubt);
            let is_gone =
                change.after.as_ref().is_none_or(|record| record.state == State::Released);
            let is_release = is_gone && change.before.as_ref().is_some_and(was_unfinished);
            let of_owner =
                |effect: &&&Effect| effect.token == token && effect.retention == change.retention;
            let effect = self.effects.values().find(of_owner).filter(|_| is_release)?;
            let seen = format!(
                "{} released the claim at {:?}, and had an effect at {:?}",
                change.from, change.at, effect.at
            );
            Some(Violation {
                rule: Rule::EffectsWithinTakeovers,
                key: self.label.clone(),
                retention: change.retention,
                seen,
            })
        })
    }

    /// S5: an operator has said that nothing happened, of an owner that is gone and whose body
    /// nobody runs. It stays so.
    fn denied_effects(&self) -> Option<Violation> {
        self.changes().find_map(|change| {
            let Request::Resolve { observed } = change.request else { return None };
            let is_denied = change.before.is_some() && change.after.is_none();
            let is_later = |effect: &&&Effect| {
                effect.token == observed
                    && effect.retention == change.retention
                    && effect.at > change.at
            };
            let effect = self.effects.values().find(is_later).filter(|_| is_denied)?;
            let seen = format!(
                "an operator said at {:?} that nothing happened, and {effect:?} followed",
                change.at
            );
            let (rule, retention) = (Rule::OneEffectUnderHold, change.retention);
            Some(Violation { rule, key: self.label.clone(), retention, seen })
        })
    }

    /// The events of the step at `place`, whose part of a result stands there.
    fn events(&self, place: usize, step: &str) -> Vec<Event> {
        let key =
            if step.is_empty() { self.label.clone() } else { format!("{}/{step}", self.label) };
        let effects = self.effects.values().filter(|effect| effect.step == step).map(|effect| {
            Event::Effect(history::Effect {
                key: key.clone(),
                retention: effect.retention,
                fingerprint: None,
                attempt: effect.attempt,
                result: Some(effect.value.clone().into()),
                at: micros(effect.at),
            })
        });
        let part = |outcome: &Outcome| part_of(outcome, place);
        let retention = |outcome: &Outcome| self.retention_of(outcome);
        let calls = self.calls().map(|called| {
            let outcome = part(&called.outcome);
            Event::Call(Call {
                key: key.clone(),
                retention: retention(&outcome),
                fingerprint: None,
                caller: called.process.clone(),
                started: micros(called.started),
                ended: micros(called.ended),
                outcome,
            })
        });
        let takeovers = self.changes().filter(|change| change.taken_over().is_some());
        let takeovers = takeovers
            .map(|change| Event::Takeover { key: key.clone(), retention: change.retention });
        let last = self.changes().last().and_then(|change| change.after.as_ref()).and_then(answer);
        let stored = last.map(|answer| {
            let result = part(&answer);
            // The attempts count those that gave their claim back; the takeovers are told.
            Event::Stored(Stored {
                key: key.clone(),
                retention: retention(&result),
                attempts: 0,
                result: Some(result),
            })
        });
        effects.chain(calls).chain(takeovers).chain(stored).collect()
    }

    /// A result belongs where its effect does.
    fn retention_of(&self, outcome: &Outcome) -> u32 {
        text(outcome).and_then(|value| self.effects.get(value)).map_or(0, |effect| effect.retention)
    }

    /// S4: what bodies are told grows in the order of ownership.
    fn fences(&self) -> Option<Violation> {
        let owned: Vec<_> = self.changes().filter_map(Transition::granted).collect();
        let told = self.entries.iter().filter_map(|entry| match entry {
            Entry::Fenced { key, token, fence, at } if *key == self.label => {
                Some((owned.iter().position(|owner| owner == token)?, *fence, *at))
            }
            _ => None,
        });
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        let pair = told.windows(2).find(|pair| pair[0].0 != pair[1].0 && pair[0].1 >= pair[1].1)?;
        let seen = format!(
            "at {:?} a body had the fence {}, and a later owner {}",
            pair[1].2, pair[0].1, pair[1].1
        );
        Some(Violation { rule: Rule::FencesGrow, key: self.label.clone(), retention: 0, seen })
    }

    /// S9: results go to those who repeat the request, and only others are refused.
    fn fingerprints(&self) -> Option<Violation> {
        let broken = self.calls().find(|called| {
            let of_effect = text(&called.outcome).and_then(|value| self.effects.get(value));
            let got_foreign =
                of_effect.is_some_and(|effect| effect.fingerprint != called.fingerprint);
            let is_refused = called.outcome == Outcome::Mismatch
                && !self.was_another(called.fingerprint, called.ended);
            got_foreign || is_refused
        })?;
        let seen = format!(
            "a call with the fingerprint {:?} got {:?}",
            broken.fingerprint, broken.outcome
        );
        Some(Violation {
            rule: Rule::FingerprintsKeptApart,
            key: self.label.clone(),
            retention: 0,
            seen,
        })
    }

    /// Whether there was a record of another request up to `end`.
    fn was_another(&self, fingerprint: Option<u64>, end: Duration) -> bool {
        let own = fingerprint.and_then(|fingerprint| Fingerprint::of(&fingerprint).ok());
        let is_another = |record: &Option<Record>| {
            record.as_ref().is_some_and(|it| Fingerprint::contradicts(it.fingerprint, own))
        };
        self.changes().any(|change| {
            change.at <= end && (is_another(&change.before) || is_another(&change.after))
        })
    }
}

fn policy(class: Class, step: &str) -> Policy {
    match class {
        // Nobody repeats what may have happened: the question comes before.
        Class::Hold | Class::InTask | Class::VerifyByKey | Class::VerifyWhenOver => Policy::Hold,
        Class::ResumeOnce if step == "charge" => Policy::Hold,
        _ => Policy::Retry,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn text(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Value(bytes) | Outcome::StoredError(bytes) => std::str::from_utf8(bytes).ok(),
        Outcome::Mismatch | Outcome::Error(_) => None,
    }
}

/// The part of a result that is of the step at `place`.
fn part_of(outcome: &Outcome, place: usize) -> Outcome {
    let part =
        |bytes: &[u8]| bytes.split(|byte| *byte == b'+').nth(place).unwrap_or(bytes).to_vec();
    match outcome {
        Outcome::Value(bytes) => Outcome::Value(part(bytes)),
        Outcome::StoredError(bytes) => Outcome::StoredError(part(bytes)),
        other => other.clone(),
    }
}

/// The answer on a record, as a caller gets it.
fn answer(record: &Record) -> Option<Outcome> {
    match record.state {
        State::Completed => {
            Some(Outcome::Value(serde_json::from_slice::<String>(&record.body).ok()?.into()))
        }
        State::Failed => Some(Outcome::StoredError(declined(record)?.into())),
        _ => None,
    }
}
