//! How often a message is tried.

use futures::FutureExt as _;
use idempotency::OnCrash;
use idempotency::inbox::{DeadReason, Delivery, Disposition, Inbox, OnFailure, Outcome};
use idempotency::record::Resolution;

use crate::deliveries::{NoConnection, books, inbox};
use crate::world::World;

const DEAD: Disposition = Disposition::DeadLetter(DeadReason::Attempts);

async fn fails(inbox: &Inbox) -> (Disposition, u32) {
    let handled = inbox.handle(Delivery::new("m-1"), async || Err(NoConnection)).await;
    (handled.disposition, handled.attempt)
}

/// A process that dies in the handler.
fn dies(world: &World, inbox: &Inbox) {
    let handler = async || {
        let _ = books(world).await;
        std::future::pending::<Result<(), NoConnection>>().await
    };
    let _ = inbox.handle(Delivery::new("m-1"), handler).now_or_never();
}

#[tokio::test]
async fn a_message_that_goes_on_failing_is_a_dead_letter_after_its_last_attempt() {
    let world = World::new();
    let inbox = inbox(&world).with_max_attempts(3);
    for attempt in 1..=2 {
        let (disposition, counted) = fails(&inbox).await;
        assert!(matches!(disposition, Disposition::Retry(_)), "{disposition:?}");
        assert_eq!(counted, attempt);
    }
    assert_eq!(fails(&inbox).await, (DEAD, 3));
}

#[tokio::test]
async fn a_redrive_of_a_message_that_failed_begins_to_count_from_one() {
    let world = World::new();
    let inbox = inbox(&world).with_max_attempts(2);
    for attempt in [1, 2, 1, 2] {
        assert_eq!(fails(&inbox).await.1, attempt);
    }
    let dead = inbox.clone().with_on_failure(|_: &NoConnection| OnFailure::DeadLetter);
    let handled = dead.handle(Delivery::new("m-1"), async || Err(NoConnection)).await;
    assert_eq!(
        (handled.disposition, handled.attempt),
        (Disposition::DeadLetter(DeadReason::Failed), 1)
    );
    let handled = inbox.handle(Delivery::new("m-1"), || books(&world)).await;
    assert_eq!((handled.disposition, handled.attempt), (Disposition::Ack, 1));
}

#[tokio::test]
async fn attempts_of_processes_that_died_count_and_one_more_does_not_run() {
    let world = World::new();
    let of = |process: &World| inbox(process).with_on_crash(OnCrash::Retry).with_max_attempts(2);
    for _ in 0..2 {
        let process = world.other_process();
        let inbox = of(&process);
        dies(&process, &inbox);
        world.clock.advance(crate::world::LEASE * 4);
    }
    assert_eq!(world.ledger.count(), 2);
    for _ in 0..3 {
        let handled = of(&world).handle(Delivery::new("m-1"), || books(&world)).await;
        assert_eq!(handled.disposition, DEAD);
        assert_eq!(world.ledger.count(), 2);
    }
    // An operator has looked.
    let handled = of(&world).handle(Delivery::new("m-1"), || books(&world)).await;
    let record = world.engine.record_by_hash(handled.record.expect("it has a key"));
    let view = record.inspect().await.unwrap().expect("it is there");
    record.resolve(&view, Resolution::not_executed()).await.unwrap();
    let handled = of(&world).handle(Delivery::new("m-1"), || books(&world)).await;
    assert_eq!((handled.disposition, handled.attempt), (Disposition::Ack, 1));
}

#[tokio::test]
async fn without_a_limit_a_message_is_tried_for_ever() {
    let world = World::new();
    let inbox = inbox(&world).with_max_attempts(0);
    for attempt in 1..=40 {
        let (disposition, counted) = fails(&inbox).await;
        assert!(matches!(disposition, Disposition::Retry(_)), "{disposition:?}");
        assert_eq!(counted, attempt);
    }
}

#[tokio::test]
async fn a_lower_limit_makes_dead_letters_once_and_a_redrive_runs() {
    let world = World::new();
    for _ in 0..3 {
        let _ = fails(&inbox(&world)).await;
    }
    let lower = inbox(&world).with_max_attempts(2);
    let handled = lower.handle(Delivery::new("m-1"), || books(&world)).await;
    assert_eq!(handled.disposition, DEAD);
    assert!(matches!(handled.outcome, Outcome::Exhausted), "{handled:?}");
    assert_eq!(world.ledger.count(), 0);
    let handled = lower.handle(Delivery::new("m-1"), || books(&world)).await;
    assert_eq!((handled.disposition, handled.attempt), (Disposition::Ack, 1));
}
