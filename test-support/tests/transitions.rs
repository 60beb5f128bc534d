//! The rules about changes notice their violations.

use std::time::Duration;

use idempotency_test_support::history::{Request, Rule, Transition, check_transitions};
use idempotent_runtime::clock::Timestamp;
use idempotent_runtime::key::Fingerprint;
use idempotent_runtime::key::KeyHash;
use idempotent_runtime::record::State;
use idempotent_runtime::store::{CrashPolicy, Reason, Record, Token};

const ONE: Token = Token::from_bits(1);
const TWO: Token = Token::from_bits(2);

fn record(owner: Token, state: State, fence: u64) -> Record {
    let mut record = Record::new(KeyHash::from_bytes([7; 32]), owner, "charge".into());
    (record.state, record.fence, record.policy) = (state, fence, CrashPolicy::Retry);
    record
}

fn claim(token: Token) -> Request {
    Request::Claim { token, policy: CrashPolicy::Retry, fingerprint: None }
}

fn change(request: Request, before: Option<Record>, after: Option<Record>) -> Transition {
    let (at, from, key) = (Duration::ZERO, "p0".to_owned(), "order".to_owned());
    Transition { at, from, key, retention: 0, request, before, after }
}

fn broken(transitions: &[Transition]) -> Vec<Rule> {
    check_transitions(transitions).into_iter().map(|violation| violation.rule).collect()
}

#[test]
fn a_takeover_and_the_commit_of_the_new_owner_are_allowed() {
    let [first, second] = [record(ONE, State::InProgress, 1), record(TWO, State::InProgress, 2)];
    let done = record(TWO, State::Completed, 2);
    let transitions = [
        change(claim(ONE), None, Some(first.clone())),
        change(claim(TWO), Some(first), Some(second.clone())),
        change(Request::Complete { token: ONE }, Some(second.clone()), Some(second.clone())),
        change(Request::Complete { token: TWO }, Some(second), Some(done.clone())),
        change(Request::Remove { observed: TWO }, Some(done), None),
    ];
    assert_eq!(broken(&transitions), []);
}

#[test]
fn s2_an_answer_does_not_change() {
    let [done, failed] = [record(ONE, State::Completed, 1), record(ONE, State::Failed, 1)];
    let transitions = [change(Request::Complete { token: ONE }, Some(done), Some(failed))];
    assert_eq!(broken(&transitions), [Rule::OneResult]);
}

#[test]
fn s2_only_an_operators_answer_is_corrected_and_stays_one() {
    let answer = |owner, reason| {
        let mut record = record(owner, State::Completed, 1);
        record.reason = reason;
        Some(record)
    };
    let by_hand = Some(Reason::Resolved);
    let request = Request::Resolve { observed: ONE };
    assert_eq!(broken(&[change(request, answer(ONE, by_hand), answer(TWO, by_hand))]), []);
    for (before, after) in
        [(None, answer(TWO, by_hand)), (by_hand, None), (by_hand, answer(TWO, None))]
    {
        assert_eq!(broken(&[change(request, answer(ONE, before), after)]), [Rule::OneResult]);
    }
    let by_owner =
        change(Request::Complete { token: ONE }, answer(ONE, by_hand), answer(ONE, None));
    assert_eq!(broken(&[by_owner]), [Rule::OneResult]);
}

#[test]
fn s2_a_retention_has_one_answer() {
    let completes = |token| {
        let request = Request::Complete { token };
        change(
            request,
            Some(record(token, State::InProgress, 1)),
            Some(record(token, State::Completed, 1)),
        )
    };
    assert_eq!(broken(&[completes(ONE), completes(TWO)]), [Rule::OneResult]);
    let later = Transition { retention: 1, ..completes(TWO) };
    assert_eq!(broken(&[completes(ONE), later]), []);
}

#[test]
fn s4_a_later_owner_has_a_larger_fence() {
    let first = record(ONE, State::InProgress, 5);
    for (fence, rules) in [(4, &[Rule::FencesGrow][..]), (5, &[Rule::FencesGrow]), (6, &[])] {
        let second = record(TWO, State::InProgress, fence);
        let transitions = [
            change(claim(ONE), None, Some(first.clone())),
            change(claim(TWO), Some(first.clone()), Some(second)),
        ];
        assert_eq!(broken(&transitions), rules, "{fence}");
    }
}

#[test]
fn s5_nobody_takes_over_under_hold() {
    let mut held = record(ONE, State::InProgress, 1);
    held.policy = CrashPolicy::Hold;
    let taken = Some(record(TWO, State::InProgress, 2));
    assert_eq!(
        broken(&[change(claim(TWO), Some(held), taken.clone())]),
        [Rule::OneEffectUnderHold]
    );
    let strict = Request::Claim { token: TWO, policy: CrashPolicy::Hold, fingerprint: None };
    let before = Some(record(ONE, State::InProgress, 1));
    assert_eq!(broken(&[change(strict, before, taken)]), [Rule::OneEffectUnderHold]);
}

#[test]
fn s8_nobody_writes_on_the_record_of_another() {
    let mut running = record(TWO, State::InProgress, 1);
    running.lease_until = Timestamp::from_millis(10);
    let mut renewed = running.clone();
    renewed.lease_until = Timestamp::from_millis(20);
    for request in
        [Request::Renew { token: ONE }, Request::Park { token: TWO, only_orphaned: true }]
    {
        assert_eq!(
            broken(&[change(request, Some(running.clone()), Some(renewed.clone()))]),
            [Rule::OwnRecordOnly]
        );
    }
    assert_eq!(broken(&[change(Request::Renew { token: TWO }, Some(running), Some(renewed))]), []);
}

#[test]
fn s8_a_record_comes_back_only_when_it_was_removed_and_while_its_lease_holds() {
    let mut owned = record(ONE, State::InProgress, 1);
    owned.lease_until = Timestamp::from_millis(10);
    let granted = change(claim(ONE), None, Some(owned));
    let anew = |retention, millis| {
        let mut done = record(ONE, State::Completed, 1);
        done.read_at = Timestamp::from_millis(millis);
        Transition { retention, ..change(Request::Complete { token: ONE }, None, Some(done)) }
    };
    for (retention, millis, rules) in
        [(0, 9, &[Rule::OwnRecordOnly][..]), (1, 9, &[]), (1, 10, &[Rule::OwnRecordOnly])]
    {
        assert_eq!(
            broken(&[granted.clone(), anew(retention, millis)]),
            rules,
            "{retention} {millis}"
        );
    }
}

#[test]
fn s5_who_has_no_question_takes_nothing_over_that_is_to_be_asked_about() {
    for state in [State::InProgress, State::InDoubt] {
        for (policy, rules) in [
            (CrashPolicy::Verify, &[][..]),
            (CrashPolicy::Resume, &[Rule::OneEffectUnderHold]),
            (CrashPolicy::Retry, &[Rule::OneEffectUnderHold]),
        ] {
            let mut asked = record(ONE, state, 1);
            asked.policy = CrashPolicy::Verify;
            let request = Request::Claim { token: TWO, policy, fingerprint: None };
            let taken = Some(record(TWO, State::InProgress, 2));
            assert_eq!(broken(&[change(request, Some(asked), taken)]), rules, "{policy:?}");
        }
    }
}

#[test]
fn l2_a_record_in_doubt_does_not_go_back_to_who_left_it() {
    let parked = record(ONE, State::InDoubt, 1);
    let [own, other] = [ONE, TWO].map(|token| {
        let taken = Some(record(token, State::InProgress, 2));
        change(claim(token), Some(parked.clone()), taken)
    });
    assert_eq!(broken(&[own]), [Rule::DeadOwnersMakeRoom]);
    assert_eq!(broken(&[other]), []);
}

#[test]
fn s9_another_request_does_not_take_over() -> Result<(), idempotent_runtime::Error> {
    let mut first = record(ONE, State::InProgress, 1);
    first.fingerprint = Some(Fingerprint::of("EUR 100")?);
    let taken = Some(record(TWO, State::InProgress, 2));
    let retry = |value: &str| {
        let fingerprint = Some(Fingerprint::of(value)?);
        let request = Request::Claim { token: TWO, policy: CrashPolicy::Retry, fingerprint };
        Ok::<_, idempotent_runtime::Error>(broken(&[change(
            request,
            Some(first.clone()),
            taken.clone(),
        )]))
    };
    assert_eq!(retry("EUR 101")?, [Rule::FingerprintsKeptApart]);
    assert_eq!(retry("EUR 100")?, []);
    Ok(())
}
