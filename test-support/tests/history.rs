//! Each rule finds its violations, and no others.

use idempotency_test_support::history::{
    Call, Effect, Event, EventLog, Outcome, Policy, Rule, Stored, Violations, check,
};

/// A call that comes back at `ended`.
fn call(caller: &str, ended: u64, outcome: Outcome) -> Call {
    Call {
        key: String::from("key"),
        retention: 0,
        fingerprint: None,
        caller: String::from(caller),
        started: 0,
        ended,
        outcome,
    }
}

fn value(caller: &str, bytes: &str) -> Event {
    call(caller, 100, Outcome::Value(bytes.into())).into()
}

fn stored_error(caller: &str, bytes: &str) -> Event {
    call(caller, 100, Outcome::StoredError(bytes.into())).into()
}

fn error(caller: &str, kind: &str) -> Event {
    call(caller, 100, Outcome::Error(kind.into())).into()
}

fn effect(attempt: u32) -> Event {
    happened("key", attempt).into()
}

fn happened(key: &str, attempt: u32) -> Effect {
    Effect { at: 50, ..Effect::now(key, attempt) }
}

fn stored(attempts: u32, result: Option<&str>) -> Event {
    let result = result.map(|bytes| Outcome::Value(bytes.into()));
    Stored { key: String::from("key"), retention: 0, attempts, result }.into()
}

fn takeover() -> Event {
    Event::Takeover { key: String::from("key"), retention: 0 }
}

fn rules(broken: &Violations) -> Vec<Rule> {
    broken.0.iter().map(|violation| violation.rule).collect()
}

/// Checks that `events` break only this rule, and that the message has these words.
#[track_caller]
fn breaks(events: &[Event], policy: Policy, rule: Rule, words: &str) {
    let broken = check(events, policy).unwrap_err();
    assert_eq!(rules(&broken), [rule], "{broken}");
    assert!(broken.to_string().contains(words), "{broken}");
    assert!(broken.to_string().contains("at key (retention 0)"), "{broken}");
}

#[test]
fn what_is_allowed_passes() {
    let run_and_replay =
        vec![effect(1), value("a", "1"), value("b", "1"), error("c", "InProgress")];
    let stored_error =
        vec![effect(1), stored_error("a", "declined"), stored_error("b", "declined")];
    let crashed = vec![effect(1), error("a", "InDoubt")];
    let never_ran = vec![error("a", "StoreUnavailable"), error("b", "Mismatch")];
    for events in [vec![], run_and_replay, stored_error, crashed, never_ran] {
        check(&events, Policy::Hold).unwrap();
        check(&events, Policy::Retry).unwrap();
    }
}

#[test]
fn takeovers_allow_effects_under_retry() {
    for events in [
        vec![effect(1), effect(2), value("a", "2")],
        // The second attempt died before its effect.
        vec![effect(1), effect(3), value("a", "3")],
        vec![takeover(), takeover(), effect(2), value("a", "2")],
        // Two bodies that do not know their attempts, and a record that does.
        vec![effect(0), effect(1), stored(2, None)],
    ] {
        check(&events, Policy::Retry).unwrap();
    }
}

#[test]
fn s1_finds_different_values() {
    let events = [effect(1), value("a", "1"), value("b", "1"), value("c", "2")];
    breaks(
        &events,
        Policy::Retry,
        Rule::SameValue,
        "S1 at key (retention 0): callers got different values: a `1`, c `2`",
    );
}

#[test]
fn s2_finds_a_second_result() {
    let words = "S2 at key (retention 0): callers got different results";
    let events = [effect(1), value("a", "1"), stored_error("b", "declined")];
    breaks(&events, Policy::Retry, Rule::OneResult, words);
    let events = [effect(1), stored_error("a", "declined"), stored_error("b", "expired")];
    breaks(&events, Policy::Retry, Rule::OneResult, words);
}

#[test]
fn s2_finds_a_result_that_is_not_the_stored_one() {
    let words = "S2 at key (retention 0): a got `1`, and the store has ";
    breaks(
        &[effect(1), value("a", "1"), stored(1, Some("2"))],
        Policy::Hold,
        Rule::OneResult,
        &format!("{words}`2`"),
    );
    breaks(
        &[effect(1), value("a", "1"), stored(1, None)],
        Policy::Hold,
        Rule::OneResult,
        &format!("{words}no result"),
    );
    check(&[effect(1), value("a", "1"), stored(1, Some("1"))], Policy::Hold).unwrap();
    check(&[effect(1), error("a", "InDoubt"), stored(1, None)], Policy::Hold).unwrap();
}

#[test]
fn s3_finds_more_effects_than_takeovers_explain() {
    breaks(&[effect(1), effect(1)], Policy::Retry, Rule::EffectsWithinTakeovers, "S3");
    breaks(
        &[effect(2), effect(2), takeover()],
        Policy::Retry,
        Rule::EffectsWithinTakeovers,
        "one attempt",
    );
    let events = [effect(0), effect(1), effect(2)];
    breaks(&events, Policy::Retry, Rule::EffectsWithinTakeovers, "3 effects with 1 takeovers");
}

#[test]
fn s5_finds_a_second_effect_under_hold() {
    let events = [effect(1), effect(2), value("a", "2")];
    breaks(&events, Policy::Hold, Rule::OneEffectUnderHold, "S5 at key (retention 0): 2 effects");
}

#[test]
fn s8_finds_results_that_come_from_nowhere() {
    for result in [value("a", "1"), stored_error("a", "declined")] {
        breaks(
            &[result],
            Policy::Hold,
            Rule::NoResultWithoutEffect,
            "S8 at key (retention 0): a got a result, and there is no",
        );
    }
    let early = call("a", 20, Outcome::Value(b"1".to_vec()));
    let events = [effect(1), early.into(), value("b", "1")];
    breaks(
        &events,
        Policy::Hold,
        Rule::NoResultWithoutEffect,
        "a got a result 30 µs before the first effect",
    );
}

#[test]
fn s8_finds_results_that_no_effect_had() {
    let events =
        [happened("key", 1).with_result("1").into(), happened("key", 2).with_result("2").into()];
    check(&[&events[..], &[value("a", "2")]].concat(), Policy::Retry).unwrap();
    let words = "S8 at key (retention 0): a got `3`, which is the result of no effect";
    breaks(
        &[&events[..], &[value("a", "3")]].concat(),
        Policy::Retry,
        Rule::NoResultWithoutEffect,
        words,
    );
}

#[test]
fn s9_finds_calls_with_another_fingerprint() {
    let ran = |fingerprint: &str, attempt, at| {
        Event::from(Effect { at, ..happened("key", attempt).with_fingerprint(fingerprint) })
    };
    let got = |fingerprint: &str, outcome| {
        let call = call("a", 100, outcome);
        Event::from(Call { fingerprint: Some(fingerprint.into()), ..call })
    };
    let value = || Outcome::Value(b"1".to_vec());

    let events = [ran("EUR 1", 1, 50), got("EUR 1", value()), got("EUR 2", value())];
    let words =
        "S9 at key (retention 0): the key is that of EUR 1, and a call with EUR 2 got the result";
    breaks(&events, Policy::Retry, Rule::FingerprintsKeptApart, words);
    let events = [ran("EUR 2", 2, 60), ran("EUR 1", 1, 50)];
    breaks(&events, Policy::Retry, Rule::FingerprintsKeptApart, "a call with EUR 2 ran the body");

    let refused = got("EUR 2", Outcome::Mismatch);
    check(&[ran("EUR 1", 1, 50), got("EUR 1", value()), refused], Policy::Hold).unwrap();
    let events = [ran("EUR 1", 1, 50), got("EUR 1", Outcome::Mismatch)];
    breaks(
        &events,
        Policy::Hold,
        Rule::FingerprintsKeptApart,
        "the key is that of EUR 1, and a was refused with the same",
    );
}

#[test]
fn keys_and_retentions_are_judged_apart() {
    let retained = |retention, bytes: &str| {
        let call = Call { retention, ..call("a", 100, Outcome::Value(bytes.into())) };
        let effect = happened("key", 1).in_retention(retention);
        [Event::from(effect), Event::from(call)]
    };
    check(&[retained(0, "1"), retained(1, "2")].concat(), Policy::Hold).unwrap();

    breaks(
        &[value("a", "1"), happened("other", 1).into()],
        Policy::Hold,
        Rule::NoResultWithoutEffect,
        "no effect",
    );
}

#[test]
fn all_violations_are_told() {
    let broken = check(&[value("a", "1"), value("b", "2")], Policy::Hold).unwrap_err();
    assert_eq!(rules(&broken), [Rule::SameValue, Rule::NoResultWithoutEffect]);
    assert_eq!(broken.to_string().lines().count(), 3, "{broken}");
}

#[test]
fn events_come_back_from_the_log_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let log = EventLog::open(directory.path().join("events")).unwrap();
    let events = [
        value("a", "line\nbreak"),
        effect(1).clone(),
        takeover(),
        error("b", "InDoubt"),
        stored(1, Some("1")),
    ];
    for event in &events {
        log.append(event.clone()).unwrap();
    }
    let log = EventLog::open(log.path()).unwrap();
    assert_eq!(log.events().unwrap(), events);
    // Another key that contains this one, and a value that is like the key.
    log.append(happened("other key", 1)).unwrap();
    log.append(happened("other", 1).with_fingerprint("key")).unwrap();
    assert_eq!(log.events_of("key").unwrap(), events);
}
