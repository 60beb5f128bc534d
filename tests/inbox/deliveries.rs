//! One delivery: what the claim finds, what runs, and the answer to the broker.

use std::convert::Infallible;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::edge::{self, EdgeCall, EdgeResult};
use idempotency::inbox::{DeadReason, Delivery, Disposition, Handled, Inbox, OnFailure, Outcome};
use idempotency::key::Key;
use idempotency::record::{Resolution, State};
use idempotency::store::Operation;
use idempotency::testing::{Fault, Gate};
use idempotency::{Context, Error, ErrorKind, OnCrash, Verdict};

use crate::world::{DAY, LEASE, World, eventually};

/// An error of a handler.
#[derive(Debug, PartialEq)]
pub(crate) struct NoConnection;

pub(crate) fn inbox(world: &World) -> Inbox {
    Inbox::new(world.engine.clone(), "billing", DAY)
}

fn message() -> Delivery<'static> {
    Delivery::new("m-1").payload(b"a hundred")
}

/// A handler that books, and succeeds.
pub(crate) async fn books(world: &World) -> Result<(), NoConnection> {
    world.ledger.charge("booked");
    Ok(())
}

async fn booked(world: &World, inbox: &Inbox) -> Handled<NoConnection> {
    inbox.handle(message(), || books(world)).await
}

async fn state(world: &World) -> Option<State> {
    let handled = inbox(&world.other_process());
    let record = record_of(&handled).await;
    world.engine.record_by_hash(record).inspect().await.unwrap().map(|view| view.state)
}

/// The record of the message, as an attempt on an engine of its own names it.
async fn record_of(_: &Inbox) -> idempotency::key::KeyHash {
    let other = World::new();
    let handled = inbox(&other).handle(message(), async || Ok::<_, Infallible>(())).await;
    handled.record.expect("the key is fine")
}

fn is_postponed<E>(handled: &Handled<E>) -> bool {
    matches!(handled.disposition, Disposition::Postpone(_))
}

#[tokio::test]
async fn a_message_that_succeeds_is_acked_and_its_result_is_stored() {
    let world = World::new();
    let handled = booked(&world, &inbox(&world)).await;
    assert_eq!(handled.disposition, Disposition::Ack);
    assert!(matches!(handled.outcome, Outcome::Processed), "{handled:?}");
    assert_eq!(handled.attempt, 1);
    assert_eq!(state(&world).await, Some(State::Completed));
}

#[tokio::test]
async fn a_duplicate_is_acked_each_time_and_runs_nothing() {
    let world = World::new();
    let _ = booked(&world, &inbox(&world)).await;
    for process in [world.other_process(), world.other_process()] {
        let handled = booked(&process, &inbox(&process)).await;
        assert_eq!(handled.disposition, Disposition::Ack);
        assert!(matches!(handled.outcome, Outcome::Duplicate), "{handled:?}");
        assert_eq!(handled.attempt, 0);
    }
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn two_inboxes_each_handle_every_message() {
    let world = World::new();
    for name in ["billing", "shipping"] {
        let inbox = Inbox::new(world.engine.clone(), name, DAY);
        assert_eq!(inbox.handle(message(), || books(&world)).await.disposition, Disposition::Ack);
    }
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn a_failure_is_retried_after_a_pause_and_the_message_runs_again() {
    let world = World::new();
    let inbox = inbox(&world);
    let failed = inbox.handle(message(), async || Err(NoConnection)).await;
    let Disposition::Retry(pause) = failed.disposition else { panic!("{failed:?}") };
    assert!((Duration::from_millis(499)..=Duration::from_secs(1)).contains(&pause), "{pause:?}");
    assert!(matches!(failed.outcome, Outcome::Failed(NoConnection)));
    let handled = booked(&world, &inbox).await;
    assert_eq!((handled.disposition, handled.attempt), (Disposition::Ack, 2));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_function_over_the_error_decides_what_follows() {
    for (decision, disposition, left) in [
        (OnFailure::DeadLetter, Disposition::DeadLetter(DeadReason::Failed), None),
        (OnFailure::Hold, Disposition::DeadLetter(DeadReason::InDoubt), Some(State::InDoubt)),
        (OnFailure::Done, Disposition::Ack, Some(State::Failed)),
        (
            OnFailure::RetryAfter(Duration::from_secs(7)),
            Disposition::Retry(Duration::from_secs(7)),
            Some(State::Released),
        ),
    ] {
        let world = World::new();
        let inbox = inbox(&world).with_on_failure(move |_: &NoConnection| decision);
        let failed = inbox.handle(message(), async || Err(NoConnection)).await;
        assert_eq!(failed.disposition, disposition, "{decision:?}");
        assert_eq!(state(&world).await, left, "{decision:?}");
    }
}

#[tokio::test]
async fn an_error_that_is_the_result_is_acked_as_a_duplicate() {
    let world = World::new();
    let inbox = inbox(&world).with_on_failure(|_: &NoConnection| OnFailure::Done);
    let _ = inbox.handle(message(), async || Err(NoConnection)).await;
    let again = inbox.handle(message(), || books(&world)).await;
    assert_eq!(again.disposition, Disposition::Ack);
    assert!(matches!(again.outcome, Outcome::Duplicate), "{again:?}");
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_message_whose_handler_was_dropped_is_in_doubt_under_hold_and_runs_under_retry() {
    for (on_crash, disposition, count) in [
        (OnCrash::Hold, Disposition::DeadLetter(DeadReason::InDoubt), 1),
        (OnCrash::Retry, Disposition::Ack, 2),
        (OnCrash::Resume, Disposition::Ack, 2),
    ] {
        let world = World::new();
        let inbox = inbox(&world).with_on_crash(on_crash);
        let breaks_off = async || {
            let _ = books(&world).await;
            std::future::pending::<Result<(), NoConnection>>().await
        };
        assert!(inbox.handle(message(), breaks_off).now_or_never().is_none());
        let handled = eventually_decided(&world, &inbox).await;
        assert_eq!(handled.disposition, disposition, "{on_crash:?}");
        assert_eq!(world.ledger.count(), count, "{on_crash:?}");
    }
}

/// The outcome once the store has what a dropped call leaves.
async fn eventually_decided(world: &World, inbox: &Inbox) -> Handled<NoConnection> {
    loop {
        let handled = world.while_time_passes(booked(world, inbox)).await;
        if !is_postponed(&handled) {
            return handled;
        }
    }
}

#[tokio::test]
async fn a_result_that_is_not_stored_yet_postpones_the_message_and_is_acked_once_it_is() {
    let world = World::new();
    let inbox = inbox(&world);
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let handled = world.while_time_passes(booked(&world, &inbox)).await;
    assert_eq!(handled.disposition, Disposition::Postpone(edge::limits(&world.engine).lease));
    let Outcome::Refused(error) = &handled.outcome else { panic!("{handled:?}") };
    assert_eq!(error.kind(), ErrorKind::NotStored);
    world.store.always(Operation::Complete, None);
    let handled = eventually_decided(&world, &inbox).await;
    assert_eq!(handled.disposition, Disposition::Ack);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_message_that_another_consumer_handles_is_never_acked_on_its_strength() {
    let world = World::new();
    let gate = Gate::new();
    let other = world.other_process();
    let waits = async || {
        gate.wait().await;
        books(&other).await
    };
    let other_inbox = inbox(&other);
    let mut running = Box::pin(other_inbox.handle(message(), waits));
    assert!(running.as_mut().now_or_never().is_none());
    let inbox = inbox(&world).with_wait(Duration::from_secs(1));
    let waiting = world.while_time_passes(booked(&world, &inbox)).await;
    assert!(is_postponed(&waiting), "{waiting:?}");
    let Outcome::Refused(error) = &waiting.outcome else { panic!("{waiting:?}") };
    assert_eq!(error.kind(), ErrorKind::InProgress);
    // Once it has finished there is a result to go by.
    gate.open();
    let (first, second) = tokio::join!(running, booked(&world, &inbox));
    assert_eq!((first.disposition, second.disposition), (Disposition::Ack, Disposition::Ack));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_owner_that_was_overtaken_is_acked_with_the_result_of_the_other() {
    let world = World::new();
    let inbox = inbox(&world).with_on_crash(OnCrash::Retry);
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let gate = Gate::new();
    let stalls = async || {
        let _ = books(&world).await;
        gate.wait().await;
        Ok::<_, NoConnection>(())
    };
    let other = world.other_process();
    let overtakes = async {
        eventually("the first handler", async || world.ledger.count() == 1).await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let second = self::inbox(&other).with_on_crash(OnCrash::Retry);
        let second = booked(&other, &second).await;
        gate.open();
        second
    };
    let (first, second) = tokio::join!(inbox.handle(message(), stalls), overtakes);
    assert_eq!((second.disposition, second.attempt), (Disposition::Ack, 2));
    assert_eq!(first.disposition, Disposition::Ack);
    assert!(matches!(first.outcome, Outcome::Duplicate), "{first:?}");
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn after_a_crash_a_question_decides() {
    for (verdict, disposition, count) in [
        (Verdict::Completed(()), Disposition::Ack, 1),
        (Verdict::NotExecuted, Disposition::Ack, 2),
        (Verdict::Unknown, Disposition::Postpone(Duration::from_secs(5)), 1),
    ] {
        let world = World::new();
        let inbox = inbox(&world);
        let asks = async |_| verdict;
        let breaks_off = async || {
            let _ = books(&world).await;
            std::future::pending::<Result<(), NoConnection>>().await
        };
        let call = inbox.handle_verifying(message(), asks, breaks_off);
        assert!(call.now_or_never().is_none());
        let handled = loop {
            let call = inbox.handle_verifying(message(), asks, || books(&world));
            let handled = world.while_time_passes(call).await;
            let is_in_progress = matches!(&handled.outcome, Outcome::Refused(error)
                if error.kind() == ErrorKind::InProgress);
            if !is_in_progress {
                break handled;
            }
        };
        match (handled.disposition, disposition) {
            (Disposition::Postpone(after), Disposition::Postpone(at_most)) => {
                assert!(after <= at_most && !after.is_zero(), "{after:?}");
            }
            (found, expected) => assert_eq!(found, expected, "{verdict:?}"),
        }
        assert_eq!(world.ledger.count(), count, "{verdict:?}");
    }
}

#[tokio::test]
async fn an_operators_answer_decides_about_a_redrive() {
    for (resolution, count) in [(Resolution::completed(()), 1), (Resolution::not_executed(), 2)] {
        let world = World::new();
        let inbox = inbox(&world).with_on_failure(|_: &NoConnection| OnFailure::Hold);
        let held = inbox.handle(message(), async || {
            let _ = books(&world).await;
            Err(NoConnection)
        });
        let held = held.await;
        assert_eq!(held.disposition, Disposition::DeadLetter(DeadReason::InDoubt));
        let record = world.engine.record_by_hash(held.record.expect("it has a key"));
        let view = record.inspect().await.unwrap().expect("it is in doubt");
        record.resolve(&view, resolution).await.unwrap();
        let redriven = inbox.handle(message(), || books(&world)).await;
        assert_eq!(redriven.disposition, Disposition::Ack);
        assert_eq!(world.ledger.count(), count);
    }
}

#[tokio::test]
async fn a_second_message_under_one_key_is_a_mismatch_unless_payloads_are_left_out() {
    let world = World::new();
    let other = || Delivery::new("m-1").payload(b"a thousand");
    let _ = booked(&world, &inbox(&world)).await;
    let handled = inbox(&world).handle(other(), || books(&world)).await;
    assert_eq!(handled.disposition, Disposition::DeadLetter(DeadReason::Mismatch));
    let lenient = Inbox::new(world.engine.clone(), "lenient", DAY).without_fingerprint();
    for delivery in [message(), other()] {
        let handled = lenient.handle(delivery, || books(&world)).await;
        assert_eq!(handled.disposition, Disposition::Ack);
    }
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn a_message_that_comes_after_its_expiry_is_a_dead_letter_where_that_is_refused() {
    let world = World::new();
    let refuses = inbox(&world).with_refusal_after_expiry(DAY * 30);
    let _ = booked(&world, &refuses).await;
    world.clock.advance(DAY * 2);
    let late = booked(&world, &refuses).await;
    assert_eq!(late.disposition, Disposition::DeadLetter(DeadReason::Expired));
    assert_eq!(world.ledger.count(), 1);
    world.clock.advance(DAY * 60);
    assert_eq!(booked(&world, &refuses).await.disposition, Disposition::Ack);
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn a_key_that_is_missing_or_too_long_is_a_dead_letter_without_a_record() {
    let world = World::new();
    let long = "k".repeat(100_000);
    for (delivery, reason) in [
        (Delivery::new(None::<&str>), DeadReason::MissingKey),
        (Delivery::new(&*long), DeadReason::InvalidKey),
    ] {
        let handled = inbox(&world).handle(delivery, || books(&world)).await;
        assert_eq!(handled.disposition, Disposition::DeadLetter(reason));
        assert!(handled.record.is_none());
    }
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_store_that_does_not_answer_postpones_the_message_and_runs_nothing() {
    let world = World::new();
    world.store.always(Operation::Claim, Some(Fault::LostRequest));
    let handled = world.while_time_passes(booked(&world, &inbox(&world))).await;
    assert!(is_postponed(&handled), "{handled:?}");
    let Outcome::Refused(error) = &handled.outcome else { panic!("{handled:?}") };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn an_engine_that_shuts_down_postpones_the_message() {
    let world = World::new();
    world.engine.shutdown(Duration::ZERO).await;
    let handled = booked(&world, &inbox(&world)).await;
    assert_eq!(handled.disposition, Disposition::Postpone(Duration::from_secs(1)));
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_handler_has_the_context_of_the_call() {
    let world = World::new();
    let inbox = inbox(&world);
    let handled = inbox.handle(message(), async || {
        let context = Context::current();
        assert_eq!((context.attempt(), context.operation()), (1, "billing"));
        world.ledger.charge(&context.derive_key("order-paid"));
        let book = async || {
            world.ledger.charge("booked");
            Ok::<_, Error>(())
        };
        context.step("book", book).await
    });
    assert_eq!(handled.await.disposition, Disposition::Ack);
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn the_result_of_a_function_with_the_name_of_the_inbox_acks_no_message() {
    let world = World::new();
    let call = EdgeCall::new(&world.engine, "billing", Key::of("m-1"), DAY);
    let _ = call.run(async |_| ((), EdgeResult::completed("another's").into())).await;
    let handled = inbox(&world).handle(Delivery::new("m-1"), || books(&world)).await;
    assert!(is_postponed(&handled), "{handled:?}");
    let Outcome::Refused(error) = &handled.outcome else { panic!("{handled:?}") };
    assert_eq!(error.kind(), ErrorKind::Decode);
}

#[tokio::test]
async fn a_disabled_inbox_handles_every_delivery_and_the_broker_counts_the_attempts() {
    let world = World::new();
    world.engine.disable("billing");
    let inbox = inbox(&world).with_max_attempts(3);
    for _ in 0..2 {
        assert_eq!(booked(&world, &inbox).await.disposition, Disposition::Ack);
    }
    assert_eq!(world.ledger.count(), 2);
    for (deliveries, is_dead) in [(1, false), (2, false), (3, true)] {
        let failed = inbox.handle(message().deliveries(deliveries), async || Err(NoConnection));
        let is = matches!(failed.await.disposition, Disposition::DeadLetter(DeadReason::Attempts));
        assert_eq!(is, is_dead, "{deliveries}");
    }
}

#[tokio::test]
async fn a_claim_of_a_handler_that_panics_is_in_doubt() {
    let world = World::new();
    let inbox = inbox(&world);
    let panics = async || -> Result<(), NoConnection> {
        let _ = books(&world).await;
        panic!("on purpose")
    };
    let panicked = std::panic::AssertUnwindSafe(inbox.handle(message(), panics)).catch_unwind();
    assert!(panicked.await.is_err());
    eventually("the doubt", async || state(&world).await == Some(State::InDoubt)).await;
    let handled = booked(&world, &inbox).await;
    assert_eq!(handled.disposition, Disposition::DeadLetter(DeadReason::InDoubt));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_second_copy_in_one_process_is_postponed_by_a_lease() {
    let world = World::new();
    let gate = Gate::new();
    let inbox = inbox(&world).with_wait(Duration::ZERO);
    let waits = async || {
        gate.wait().await;
        books(&world).await
    };
    let second = async {
        let second = booked(&world, &inbox).await;
        gate.open();
        second
    };
    let (first, second) = tokio::join!(inbox.handle(message(), waits), second);
    assert_eq!(first.disposition, Disposition::Ack);
    let lease = edge::limits(&world.engine).lease;
    assert_eq!(second.disposition, Disposition::Postpone(lease));
}

#[tokio::test]
async fn an_owner_whose_record_was_answered_meanwhile_is_not_run_again_by_itself() {
    let world = World::new();
    let inbox = inbox(&world);
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let gate = Gate::new();
    let stalls = async || {
        let _ = books(&world).await;
        gate.wait().await;
        Ok::<_, NoConnection>(())
    };
    let answers = async {
        eventually("the handler", async || world.ledger.count() == 1).await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let record = world.other_process().engine.record("billing", "m-1");
        let view = record.inspect().await.unwrap().expect("it is there");
        record.resolve(&view, Resolution::not_executed()).await.unwrap();
        gate.open();
    };
    let (handled, ()) = tokio::join!(inbox.handle(message(), stalls), answers);
    assert_eq!(handled.disposition, Disposition::DeadLetter(DeadReason::InDoubt), "{handled:?}");
}

#[tokio::test]
async fn a_marker_of_a_function_with_the_name_of_the_inbox_acks_no_message() {
    let world = World::with(|builder| builder.max_result_size(100));
    let call = EdgeCall::new(&world.engine, "billing", Key::of("m-1"), DAY);
    let _ = call.run(async |_| ((), EdgeResult::completed(vec![0; 101]).into())).await;
    let handled = inbox(&world).handle(Delivery::new("m-1"), || books(&world)).await;
    assert_eq!(handled.disposition, Disposition::DeadLetter(DeadReason::Mismatch));
    assert_eq!(world.ledger.count(), 0);
}

/// The error of a handler with steps.
#[derive(Debug)]
struct InStep;

impl From<Error> for InStep {
    fn from(_: Error) -> Self {
        Self
    }
}

/// A handler that reserves in a step, and fails after that if it is to.
async fn with_a_step(world: &World, fails: bool) -> Result<(), InStep> {
    let reserve = async || {
        world.ledger.charge("reserved");
        Ok::<_, InStep>(())
    };
    Context::current().step("reserve", reserve).await?;
    if fails { Err(InStep) } else { Ok(()) }
}

#[tokio::test]
async fn a_failure_after_a_step_is_left_to_the_policy() {
    for (on_crash, expected) in [
        (OnCrash::Hold, Disposition::DeadLetter(DeadReason::InDoubt)),
        (OnCrash::Resume, Disposition::Ack),
    ] {
        for decision in [OnFailure::Retry, OnFailure::DeadLetter] {
            let world = World::new();
            let inbox =
                inbox(&world).with_on_crash(on_crash).with_on_failure(move |_: &InStep| decision);
            let _ = inbox.handle(message(), || with_a_step(&world, true)).await;
            let again = inbox.handle(message(), || with_a_step(&world, false)).await;
            assert_eq!(again.disposition, expected, "{on_crash:?} {decision:?}");
            assert_eq!(world.ledger.count(), 1);
        }
    }
}

#[tokio::test]
async fn a_failure_for_want_of_a_step_is_not_acked_as_the_result() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let inbox = |world: &World| {
        let inbox = inbox(world).with_on_crash(OnCrash::Resume);
        inbox.with_on_failure(|_: &InStep| OnFailure::Done)
    };
    let here = inbox(&world);
    let late = here.handle(message(), async || {
        with_a_step(&world, false).await?;
        world.clock.advance(LEASE);
        let book = async || {
            world.ledger.charge("booked");
            Ok::<_, InStep>(())
        };
        Context::current().step("book", book).await
    });
    let late = late.await;
    assert!(is_postponed(&late), "{late:?}");
    let other = world.other_process();
    let there = inbox(&other);
    let next = there.handle(message(), async || {
        with_a_step(&other, false).await?;
        let book = async || {
            other.ledger.charge("booked");
            Ok::<_, InStep>(())
        };
        Context::current().step("book", book).await
    });
    assert_eq!(next.await.disposition, Disposition::Ack);
    assert_eq!(world.ledger.charges(), ["reserved", "booked"]);
}
