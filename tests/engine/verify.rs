//! `on_crash_verify`: after a crash, the next caller asks the outside world.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::call::Verify;
use idempotency::record::{Resolution, State};
use idempotency::store::{Claim, ClaimOutcome, CrashPolicy, Operation, Reason, Store as _, Token};
use idempotency::{Call, Context, Error, ErrorAction, ErrorKind, OnConflict, OnCrash, Verdict};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

const REST: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum PayError {
    #[error("the provider does not answer")]
    Unreachable,
    #[error(transparent)]
    Idempotency(#[from] Error),
}

type Answer = Result<Verdict<String>, Error>;

/// Somebody outside who is asked, and who counts the questions.
#[derive(Default)]
struct Provider {
    questions: AtomicUsize,
}

impl Provider {
    fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }

    fn says(&self, answer: Answer) -> Answer {
        self.questions.fetch_add(1, Ordering::SeqCst);
        answer
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a question returns")]
fn completed() -> Answer {
    Ok(Verdict::Completed("receipt of the provider".to_owned()))
}

/// A call that asks `provider`, which gives this answer.
async fn ask(world: &World, provider: &Provider, answer: Answer) -> Result<String, Error> {
    let call =
        world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| provider.says(answer));
    call.run(|| async { world.effect(1) }).await
}

/// An owner that had its effect and is gone, as its process knows.
async fn dropped_owner(world: &World) {
    let call = world.call(1).on_crash_verify(async |_| Ok(Verdict::Unknown));
    let mut call = Box::pin(call.run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    drop(call);
    world
        .record_is(1, |record| record.is_some_and(|record| record.reason == Some(Reason::Dropped)))
        .await;
}

/// An owner whose process is gone: it claimed, and is never heard of again.
async fn dead_owner(world: &World, policy: CrashPolicy) {
    let hash = world.engine.record(OPERATION, 1).hash().unwrap();
    let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
    claim.lease = LEASE;
    claim.policy = policy;
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
}

async fn is_parked(world: &World) {
    world.record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt)).await;
}

#[tokio::test]
async fn the_first_attempt_asks_nothing() {
    let (world, provider) = (World::new(), Provider::default());
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt 1.1");
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt 1.1", "a replay");
    assert_eq!(provider.questions(), 0);
}

#[tokio::test]
async fn what_the_outside_world_has_completed_is_the_result_of_every_caller() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    for _ in 0..2 {
        assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
    }
    assert_eq!(world.other_process().charge(1).await.unwrap(), "receipt of the provider");
    assert_eq!((provider.questions(), world.ledger.count()), (1, 1));
    assert_eq!(world.record(1).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn what_was_not_executed_runs_under_the_claim_that_asked() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let claims = world.store.requests(Operation::Claim);
    assert_eq!(ask(&world, &provider, Ok(Verdict::NotExecuted)).await.unwrap(), "receipt 1.2");
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.attempts), (State::Completed, 2));
    assert_eq!((provider.questions(), world.store.requests(Operation::Claim) - claims), (1, 1));
}

#[tokio::test]
async fn what_nobody_knows_is_in_doubt_and_is_asked_again_after_a_rest_that_grows() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    for (question, rest) in [REST, REST * 2, REST * 4].into_iter().enumerate() {
        let error = ask(&world, &provider, Ok(Verdict::Unknown)).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (ErrorKind::InDoubt, Some(rest)));
        assert!(error.is_retryable());
        let text = error.to_string();
        let attempts = format!("attempt {}", question + 2);
        for part in
            [OPERATION, "was not answered", &attempts, "first claimed", "asks again", "resolve"]
        {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        world.clock.advance(rest.saturating_sub(Duration::from_millis(1)));
        let early = ask(&world, &provider, completed()).await.unwrap_err();
        assert_eq!(
            (early.kind(), early.retry_after()),
            (ErrorKind::InDoubt, Some(Duration::from_millis(1)))
        );
        assert_eq!(provider.questions(), question + 1, "not before the rest is over");
        world.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
    assert_eq!(world.ledger.count(), 1);
}

/// The record counts attempts, and not questions without an answer among them.
#[tokio::test]
async fn the_first_rest_grows_with_the_attempts_before_it() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let busy = |answer: Answer| {
        let call = world
            .call(1)
            .settle(Duration::ZERO)
            .on_crash_verify(async |_| Ok(provider.says(answer)?));
        call.run(|| async { Err::<String, _>(PayError::Unreachable) })
    };
    for _ in 0..3 {
        assert!(matches!(busy(Ok(Verdict::NotExecuted)).await, Err(PayError::Unreachable)));
    }
    let unknown = ask(&world, &provider, Ok(Verdict::Unknown)).await.unwrap_err();
    assert_eq!(unknown.retry_after(), Some(REST * 8), "the fifth attempt");
}

#[tokio::test]
async fn an_error_of_the_question_is_returned_and_leaves_the_record_in_doubt() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let call =
        world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| Err(PayError::Unreachable));
    let error = call.run(|| async { Ok(world.effect(1)?) }).await.unwrap_err();
    assert!(matches!(error, PayError::Unreachable));
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Unverified)));
    let early = ask(&world, &provider, completed()).await.unwrap_err();
    assert_eq!((early.kind(), provider.questions()), (ErrorKind::InDoubt, 0));
    world.clock.advance(REST);
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
}

#[tokio::test]
async fn a_question_that_panics_leaves_the_record_in_doubt_and_reaches_the_caller() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let engine = world.engine.clone();
    let task = tokio::spawn(async move {
        let call = engine.call(OPERATION, 1_u64).ttl(DAY).settle(Duration::ZERO);
        let call = call.on_crash_verify(async |_| {
            tokio::task::yield_now().await;
            panic!("the question breaks")
        });
        let _: Result<String, Error> = call.run(|| async { Ok(String::new()) }).await;
    });
    assert!(task.await.unwrap_err().is_panic());
    is_parked(&world).await;
    let early = ask(&world, &provider, completed()).await.unwrap_err();
    assert_eq!((early.kind(), provider.questions()), (ErrorKind::InDoubt, 0));
    world.clock.advance(REST);
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
}

#[tokio::test]
async fn a_question_that_is_dropped_leaves_the_record_in_doubt() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let asked = Gate::new();
    let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| {
        asked.open();
        std::future::pending::<Answer>().await
    });
    let mut call = Box::pin(call.run(|| async { world.effect(1) }));
    tokio::select! {
        _ = &mut call => panic!("nobody answered"),
        () = asked.wait() => {}
    }
    drop(call);
    is_parked(&world).await;
    world.clock.advance(REST);
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn callers_at_once_ask_once() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let there = world.other_process();
    let open = Gate::new();
    let question = |world: &World| {
        let open = open.clone();
        let provider = &provider;
        let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async move |_| {
            let answer = provider.says(completed());
            open.wait().await;
            answer
        });
        let ledger = world.ledger.clone();
        call.run(move || async move {
            ledger.charge("again");
            Ok::<_, Error>("receipt of the body".to_owned())
        })
    };
    let opener = async {
        eventually("the others to wait", async || there.store.requests(Operation::Watch) > 0).await;
        open.open();
    };
    let (one, two, three, ()) =
        tokio::join!(question(&world), question(&world), question(&there), opener);
    for result in [one, two, three] {
        assert_eq!(result.unwrap(), "receipt of the provider");
    }
    assert_eq!((provider.questions(), world.ledger.count()), (1, 1));
}

#[tokio::test]
async fn followers_of_a_question_without_an_answer_do_not_ask_at_once() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let unknown = || ask(&world, &provider, Ok(Verdict::Unknown));
    let (one, two) = tokio::join!(unknown(), unknown());
    assert_eq!(one.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(two.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(provider.questions(), 1);
}

#[tokio::test]
async fn a_dead_owner_is_asked_about_when_its_lease_is_over_and_things_have_settled() {
    let (world, provider) = (World::new(), Provider::default());
    dead_owner(&world, CrashPolicy::Verify).await;
    let (before, asked_at) = (world.clock_now(), Arc::new(std::sync::Mutex::new(Duration::ZERO)));
    let settle = Duration::from_secs(20);
    let call = world.call(1).settle(settle).on_crash_verify(async |_| {
        *asked_at.lock().unwrap() = world.clock_now();
        provider.says(Ok(Verdict::NotExecuted))
    });
    let result = world.while_time_passes(call.run(|| async { world.effect(1) })).await;
    assert_eq!(result.unwrap(), "receipt 1.1", "the claim was renewed for longer than its lease");
    let waited = asked_at.lock().unwrap().saturating_sub(before);
    assert!(
        waited >= LEASE + settle && waited < LEASE + settle + Duration::from_secs(5),
        "asked after {waited:?}"
    );
}

#[tokio::test]
async fn a_panicked_owner_is_asked_about_after_the_settle_delay_and_without_waiting_for_its_lease()
{
    let (world, provider) = (World::new(), Provider::default());
    let engine = world.engine.clone();
    let task = tokio::spawn(async move {
        let call =
            engine.call(OPERATION, 1_u64).ttl(DAY).on_crash_verify(async |_| Ok(Verdict::Unknown));
        let _: Result<String, Error> = call.run(|| async { panic!("the body breaks") }).await;
    });
    assert!(task.await.unwrap_err().is_panic());
    world
        .record_is(1, |record| record.is_some_and(|record| record.reason == Some(Reason::Panicked)))
        .await;
    let before = world.clock_now();
    let call = world.call(1).on_crash_verify(async |_| provider.says(completed()));
    let mut call = Box::pin(call.run(|| async { world.effect(1) }));
    eventually("the takeover", async || {
        assert!(poll_once(&mut call).is_pending());
        world.record(1).await.is_some_and(|record| record.attempts == 2)
    })
    .await;
    world.clock.advance(Duration::from_millis(999));
    for _ in 0..3 {
        assert!(poll_once(&mut call).is_pending());
    }
    assert_eq!(provider.questions(), 0, "the settle delay is a second by default");
    let result = world.while_time_passes(call).await;
    assert_eq!(result.unwrap(), "receipt of the provider");
    assert!(world.clock_now().saturating_sub(before) < LEASE);
}

#[tokio::test]
async fn a_call_that_is_dropped_before_it_asks_leaves_the_question_to_the_next() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let call = world.call(1).on_crash_verify(async |_| provider.says(completed()));
    let mut call = Box::pin(call.run(|| async { world.effect(1) }));
    eventually("the takeover", async || {
        assert!(poll_once(&mut call).is_pending());
        world.record(1).await.is_some_and(|record| record.attempts == 2)
    })
    .await;
    drop(call);
    world
        .record_is(1, |record| record.is_some_and(|record| record.reason == Some(Reason::Crashed)))
        .await;
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
    assert_eq!(world.record(1).await.unwrap().attempts, 2, "the one that did not ask is none");
}

#[tokio::test]
async fn a_held_error_is_asked_about_by_the_next_call() {
    let (world, provider) = (World::new(), Provider::default());
    let call = world
        .call(1)
        .on_error(ErrorAction::Hold)
        .on_crash_verify(async |_| Err(PayError::Unreachable));
    let held: Result<String, PayError> = call.run(|| async { Err(PayError::Unreachable) }).await;
    held.unwrap_err();
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
}

/// A body that runs on while its lease cannot be renewed, and ends when it may.
async fn paused_owner(world: &World, started: &Gate, resume: &Gate) -> Result<String, Error> {
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = world
        .call(1)
        .on_conflict(OnConflict::Reject)
        .on_crash_verify(async |_| Ok(Verdict::Unknown));
    call.run(|| async {
        started.open();
        resume.wait().await;
        world.effect(1)
    })
    .await
}

#[tokio::test]
async fn a_late_owner_gets_the_verdict_and_overwrites_nothing() {
    let (world, provider) = (World::new(), Provider::default());
    let there = world.other_process();
    let (started, resume) = (Gate::new(), Gate::new());
    let verdict = async {
        started.wait().await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let answer = ask(&there, &provider, completed()).await;
        resume.open();
        answer
    };
    let (late, verdict) = tokio::join!(paused_owner(&world, &started, &resume), verdict);
    assert_eq!(verdict.unwrap(), "receipt of the provider");
    assert_eq!(late.unwrap(), "receipt of the provider");
    assert_eq!(there.charge(1).await.unwrap(), "receipt of the provider");
    assert_eq!(world.engine.duplicates(), 1);
}

#[tokio::test]
async fn a_late_owner_is_superseded_by_a_question_without_an_answer() {
    let (world, provider) = (World::new(), Provider::default());
    let there = world.other_process();
    let (started, resume) = (Gate::new(), Gate::new());
    let question = async {
        started.wait().await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let answer = ask(&there, &provider, Ok(Verdict::Unknown)).await;
        resume.open();
        answer
    };
    let (late, unknown) = tokio::join!(paused_owner(&world, &started, &resume), question);
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
}

#[tokio::test]
async fn who_loses_its_lease_while_it_asks_starts_no_body_and_gets_the_answer_of_the_next() {
    for answer in [
        Ok(Verdict::Completed("too late".to_owned())),
        Ok(Verdict::NotExecuted),
        Ok(Verdict::Unknown),
    ] {
        let not_executed = matches!(answer, Ok(Verdict::NotExecuted));
        let (world, provider) = (World::new(), Provider::default());
        dropped_owner(&world).await;
        let there = world.other_process();
        let (asked, open) = (Gate::new(), Gate::new());
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| {
            asked.open();
            open.wait().await;
            answer
        });
        let next = async {
            asked.wait().await;
            world.clock.advance(LEASE + Duration::from_millis(1));
            let answer = ask(&there, &provider, completed()).await;
            open.open();
            answer
        };
        let (late, next) = tokio::join!(call.run(|| async { world.effect(1) }), next);
        assert_eq!(next.unwrap(), "receipt of the provider");
        if not_executed {
            assert_eq!(late.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        } else {
            assert_eq!(late.unwrap(), "receipt of the provider");
        }
        assert_eq!(world.ledger.count(), 1);
        assert_eq!(world.engine.duplicates(), 0, "a verdict had no effect");
        assert_eq!(there.charge(1).await.unwrap(), "receipt of the provider");
    }
}

#[tokio::test]
async fn a_shutdown_while_a_question_is_asked_leaves_it_to_the_next_process() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let there = world.other_process();
    let (asked, open) = (Gate::new(), Gate::new());
    let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| {
        asked.open();
        open.wait().await;
        Ok(Verdict::NotExecuted)
    });
    let next = async {
        asked.wait().await;
        let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
        assert_eq!(drained.abandoned, 1);
        let answer = ask(&there, &provider, completed()).await;
        open.open();
        answer
    };
    let (here, next) = tokio::join!(call.run(|| async { world.effect(1) }), next);
    assert_eq!(next.unwrap(), "receipt of the provider");
    assert_eq!(here.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn who_has_no_question_runs_no_body_that_has_to_be_asked_about() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let retry = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await;
    let error = retry.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::InDoubt, false));
    assert!(error.to_string().contains(&format!("{}; attempt 1", Reason::Dropped)), "{error}");
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 1);
    world
        .record_is(1, |record| {
            record.is_some_and(|it| (it.attempts, it.reason) == (1, Some(Reason::Dropped)))
        })
        .await;
    assert_eq!(ask(&world, &provider, completed()).await.unwrap(), "receipt of the provider");
}

#[tokio::test]
async fn the_rest_of_a_question_does_not_grow_with_callers_that_have_none() {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    for _ in 0..5 {
        let retry = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await;
        assert_eq!(retry.unwrap_err().kind(), ErrorKind::InDoubt);
    }
    let unknown = ask(&world, &provider, Ok(Verdict::Unknown)).await.unwrap_err();
    assert_eq!((unknown.retry_after(), provider.questions()), (Some(REST), 1));
}

#[tokio::test]
async fn who_has_no_question_waits_for_a_living_owner_and_not_for_a_dead_one() {
    let world = World::new();
    dead_owner(&world, CrashPolicy::Verify).await;
    let call = || world.call(1).on_crash(OnCrash::Retry);
    let busy = call().on_conflict(OnConflict::Reject).run(|| async { world.effect(1) }).await;
    assert_eq!(busy.unwrap_err().kind(), ErrorKind::InProgress);
    let mut waiting =
        Box::pin(call().on_conflict(OnConflict::Wait(LEASE * 4)).run(|| async { world.effect(1) }));
    assert!(poll_once(&mut waiting).is_pending());
    world.clock.advance(LEASE + Duration::from_millis(1));
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn the_stricter_policy_decides_whether_to_ask() {
    for (policy, asks) in [(CrashPolicy::Retry, true), (CrashPolicy::Hold, false)] {
        let (world, provider) = (World::new(), Provider::default());
        dead_owner(&world, policy).await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let result = ask(&world, &provider, completed()).await;
        assert_eq!(result.is_ok(), asks, "{policy:?}");
        assert_eq!(provider.questions(), usize::from(asks), "{policy:?}");
    }
}

#[tokio::test]
async fn the_last_word_about_crashes_counts() {
    let (world, provider) = (World::new(), Provider::default());
    let call: Call =
        world.call(1).on_crash_verify(async |_: Context| completed()).on_crash(OnCrash::Hold);
    let mut call = Box::pin(call.run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    assert!(poll_once(&mut call).is_pending());
    eventually("the effect", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    drop(call);
    is_parked(&world).await;
    assert_eq!(ask(&world, &provider, completed()).await.unwrap_err().kind(), ErrorKind::InDoubt);
}

#[tokio::test]
async fn the_question_has_the_context_of_its_attempt() {
    let world = World::new();
    let keys = std::sync::Mutex::new(Vec::new());
    let mut call =
        Box::pin(world.call(1).on_crash_verify(async |_| Ok(Verdict::Unknown)).run(|| async {
            keys.lock().unwrap().push(Context::current().derive_key("charge"));
            world.effect(1)?;
            std::future::pending::<Result<String, Error>>().await
        }));
    eventually("the effect", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    drop(call);
    world.record_is(1, |record| record.is_some_and(|record| record.reason.is_some())).await;
    let call: Call<_, Verify<_>> =
        world.call(1).settle(Duration::ZERO).on_crash_verify(async |context: Context| {
            keys.lock().unwrap().push(context.derive_key("charge"));
            assert_eq!((context.attempt(), Context::current().attempt()), (2, 2));
            assert!(context.fence().await? > 0);
            let step = context.step("look", || async { Ok::<_, Error>(1) }).await;
            assert_eq!(step.unwrap_err().kind(), ErrorKind::Unsupported, "steps are the body's");
            let nested = world.charge(1).await;
            assert_eq!(nested.unwrap_err().kind(), ErrorKind::Reentrant);
            Ok(Verdict::Completed(String::new()))
        });
    call.run(|| async { world.effect(1) }).await.unwrap();
    let keys = keys.into_inner().unwrap();
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn who_waited_for_a_call_that_ended_in_doubt_asks_about_it() {
    let (world, provider) = (World::new(), Provider::default());
    let there = world.other_process();
    let (started, fail) = (Gate::new(), Gate::new());
    let call =
        world.call(1).on_error(ErrorAction::Hold).on_crash_verify(async |_| Ok(Verdict::Unknown));
    let failing = call.run(|| async {
        started.open();
        fail.wait().await;
        Err::<String, _>(PayError::Unreachable)
    });
    let waiter = async {
        started.wait().await;
        let opener = async {
            eventually("the other to wait", async || there.store.requests(Operation::Watch) > 0)
                .await;
            fail.open();
        };
        tokio::join!(ask(&there, &provider, completed()), opener).0
    };
    let (held, answer) = tokio::join!(failing, waiter);
    held.unwrap_err();
    assert_eq!(answer.unwrap(), "receipt of the provider");
    assert_eq!(provider.questions(), 1);
}

#[tokio::test]
async fn who_has_a_question_asks_it_behind_a_caller_of_its_process_that_has_none() {
    let (world, provider, gate) = (World::new(), Provider::default(), Gate::new());
    dropped_owner(&world).await;
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut plain = Box::pin(world.charge(1));
    eventually("the claim without a question", async || {
        assert!(poll_once(&mut plain).is_pending());
        world.store.requests(Operation::Claim) == 2
    })
    .await;
    let plain = async {
        gate.open();
        plain.await
    };
    let both = async { tokio::join!(ask(&world, &provider, completed()), plain) };
    let (asking, plain) = world.while_time_passes(both).await;
    assert_eq!(asking.unwrap(), "receipt of the provider");
    // Whether it comes before the answer or after it.
    assert!(plain.map_or_else(
        |error| error.kind() == ErrorKind::InDoubt,
        |result| result == "receipt of the provider"
    ));
    assert_eq!((provider.questions(), world.ledger.count()), (1, 1));
}

#[tokio::test]
async fn a_question_that_a_shutdown_cuts_off_is_asked_again_at_once_by_the_next_process() {
    for is_dropped in [true, false] {
        cut_off_by_a_shutdown(is_dropped).await;
    }
}

/// The call is dropped after the shutdown, or its question fails.
async fn cut_off_by_a_shutdown(is_dropped: bool) {
    let (world, provider) = (World::new(), Provider::default());
    dropped_owner(&world).await;
    let there = world.other_process();
    let (asked, open) = (Gate::new(), Gate::new());
    let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| {
        asked.open();
        open.wait().await;
        Ok(Verdict::Unknown)
    });
    let mut call = Box::pin(call.run(|| async { world.effect(1) }));
    assert!(poll_once(&mut call).is_pending());
    asked.wait().await;
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
    assert_eq!(drained.abandoned, 1);
    if is_dropped {
        drop(call);
    } else {
        open.open();
        call.await.unwrap_err();
    }
    let left = world.record(1).await.unwrap();
    assert_eq!((left.state, left.reason), (State::InProgress, Some(Reason::ShutDown)));
    let answer = ask(&there, &provider, completed()).await;
    assert_eq!((answer.unwrap().as_str(), world.ledger.count()), ("receipt of the provider", 1));
}

/// A caller under `hold` marks the record of a dead owner as in doubt, as the stricter policy wants
/// it. What an operator saw of it is as true as before.
#[tokio::test]
async fn an_operator_s_answer_holds_also_if_a_caller_met_the_record_meanwhile() {
    let world = World::new();
    dropped_owner(&world).await;
    let record = world.engine.record(OPERATION, 1);
    let view = record.inspect().await.unwrap().unwrap();
    assert_eq!((view.state, view.reason), (State::InProgress, Some(Reason::Dropped)));
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    record.resolve(&view, Resolution::completed("found")).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "found");
}

#[tokio::test]
async fn a_question_that_no_lease_would_ever_reach_is_refused() {
    let world = World::with(|builder| builder.max_run(LEASE * 2));
    for (settle, is_refused) in [(LEASE * 2, true), (LEASE, false)] {
        let call = world.call(1).settle(settle).on_crash_verify(async |_| Ok(Verdict::Unknown));
        let result = call.run(|| async { world.effect(1) }).await;
        assert_eq!(result.is_err_and(|error| error.kind() == ErrorKind::Config), is_refused);
    }
}
