//! A store that does not answer: nothing is settled, and nothing more is taken in.

use std::sync::Arc;
use std::time::Duration;

use idempotency::inbox::{ConsumeError, Consumer, Disposition};
use idempotency::store::Operation;
use idempotency::testing::Fault;
use idempotency::{ErrorKind, edge};

use crate::deliveries::{NoConnection, inbox};
use crate::script::{Broker, Mail, never};
use crate::world::{DAY, World};

fn handler(
    world: &World,
) -> impl Fn(Arc<Mail>) -> std::future::Ready<Result<(), NoConnection>> + Send + Sync + 'static {
    let ledger = world.ledger.clone();
    move |mail| {
        ledger.charge(&mail.id.to_string());
        std::future::ready(Ok(()))
    }
}

fn away(world: &World, is_away: bool) {
    for operation in [Operation::Claim, Operation::Read] {
        world.store.always(operation, is_away.then_some(Fault::LostRequest));
    }
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_settled_and_nothing_is_taken_in() {
    let world = World::new();
    let broker: Broker = Broker::new().with_patience(Duration::from_secs(30));
    away(&world, true);
    broker.deliver(0..50);
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(4);
    let stop = async {
        // It is noticed, and the intake pauses.
        broker.is(|broker| broker.largest_room() > 0 && broker.room() == 0).await;
        let queued = broker.queued();
        let until = world.clock_now() + Duration::from_secs(120);
        world.time_is(until).await;
        assert_eq!((broker.queued(), broker.settled().len()), (queued, 0));
        assert!(!broker.kept().is_empty());
        away(&world, false);
        broker.has_settled(50).await;
    };
    world.while_time_passes(consumer.run(stop, handler(&world))).await.unwrap();
    assert_eq!((broker.acked(), broker.settled().len()), (50, 50));
    assert_eq!(world.ledger.count(), 50);
}

#[tokio::test]
async fn records_on_which_the_store_fails_cost_only_their_own_messages() {
    let world = World::new();
    let broker: Broker = Broker::new();
    for id in [1, 2_u64] {
        let locked = world.engine.record("billing", id).hash().unwrap();
        world.store.always_at(Operation::Claim, locked, Some(Fault::LostRequest));
    }
    broker.deliver([1, 2]);
    let inbox = inbox(&world).with_backoff(Duration::from_millis(100), Duration::from_secs(1));
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(2);
    let is_returned = |broker: &Broker| {
        let returned = broker.settled().into_iter();
        returned.filter(|(_, end)| matches!(end, Disposition::Postpone(_))).count() == 2
    };
    let stop = async {
        for id in 3.. {
            broker.deliver([id]);
            let acked = broker.acked() + 1;
            broker.is(|broker| broker.acked() == acked || is_returned(broker)).await;
            if is_returned(&broker) {
                break;
            }
        }
    };
    world.while_time_passes(consumer.run(stop, handler(&world))).await.unwrap();
    let returned = broker.settled().into_iter().filter(|(_, end)| *end != Disposition::Ack);
    let mut returned: Vec<_> = returned.map(|(id, _)| id).collect();
    returned.sort_unstable();
    assert_eq!(returned, [1, 2]);
}

#[tokio::test]
async fn a_store_that_answers_and_refuses_all_messages_is_not_the_fault_of_their_records() {
    let world = World::new();
    let broker: Broker = Broker::new();
    // Full, read-only or without enough replicas.
    world.store.always(Operation::Claim, Some(Fault::LostRequest));
    broker.deliver(0..50);
    let inbox = inbox(&world).with_backoff(Duration::from_secs(1), Duration::from_secs(300));
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(4);
    let stop = async {
        broker.is(|broker| broker.largest_room() > 0 && broker.room() == 0).await;
        let queued = broker.queued();
        let until = world.clock_now() + Duration::from_secs(120);
        world.time_is(until).await;
        assert_eq!((broker.queued(), broker.settled().len()), (queued, 0));
        world.store.always(Operation::Claim, None);
        broker.has_settled(50).await;
    };
    world.while_time_passes(consumer.run(stop, handler(&world))).await.unwrap();
    assert_eq!((broker.acked(), broker.settled().len()), (50, 50));
    assert_eq!(world.ledger.count(), 50);
}

#[tokio::test]
async fn as_many_bad_records_as_the_consumer_holds_do_not_keep_others_out_for_ever() {
    let world = World::new();
    let broker: Broker = Broker::new();
    for id in 1..=4_u64 {
        let locked = world.engine.record("billing", id).hash().unwrap();
        world.store.always_at(Operation::Claim, locked, Some(Fault::LostRequest));
    }
    broker.deliver(1..=4);
    let inbox = inbox(&world).with_backoff(Duration::from_millis(100), Duration::from_secs(1));
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(2);
    let stop = async {
        broker.is(|broker| broker.queued() == 0).await;
        broker.deliver(5..=8);
        broker.is(|broker| broker.acked() == 4).await;
    };
    world.while_time_passes(consumer.run(stop, handler(&world))).await.unwrap();
    let mut charges = world.ledger.charges();
    charges.sort_unstable();
    assert_eq!(charges, ["5", "6", "7", "8"]);
}

#[tokio::test]
async fn such_a_message_holds_its_lane_where_the_broker_cannot_deliver_it_again() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    let locked = world.engine.record("billing", 1_u64).hash().unwrap();
    world.store.always_at(Operation::Claim, locked, Some(Fault::LostRequest));
    broker.deliver_in_lane(1, [1, 2]);
    broker.deliver_in_lane(2, [3]);
    let inbox = inbox(&world).with_backoff(Duration::from_millis(100), Duration::from_millis(500));
    let consumer = Consumer::new(inbox, broker.clone());
    let stop = async {
        broker.has_settled(1).await;
        // For longer than a broker would have to wait that delivers it again.
        let until = world.clock_now() + Duration::from_secs(60);
        world.time_is(until).await;
        assert_eq!(broker.settled(), [(3, Disposition::Ack)]);
        world.store.always_at(Operation::Claim, locked, None);
        broker.has_settled(3).await;
    };
    world.while_time_passes(consumer.run(stop, handler(&world))).await.unwrap();
    assert_eq!(world.ledger.charges(), ["3", "1", "2"]);
}

#[tokio::test]
async fn a_record_of_another_format_ends_the_consumer_and_is_not_settled() {
    let world = World::new();
    let broker: Broker = Broker::new();
    // What another kind of caller has stored under the same name and key.
    let call =
        edge::EdgeCall::new(&world.engine, "billing", idempotency::key::Key::of(&2_u64), DAY);
    let _ = call.run(async |_| ((), edge::EdgeResult::completed("another's").into())).await;
    broker.deliver([2]);
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let ended = world.while_time_passes(consumer.run(never(), handler(&world))).await;
    let Err(ConsumeError::Refused(error)) = ended else { panic!("{ended:?}") };
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert_eq!(broker.settled(), []);
}
