//! The end of a consumer: what waits goes back, what runs is settled, and what is left is not.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::inbox::{Consumer, Disposition};
use idempotency::record::State;
use idempotency::testing::Gate;

use crate::deliveries::{NoConnection, inbox};
use crate::script::{BACK, Broker, Mail};
use crate::world::{World, eventually};

/// A handler that waits at the gate, and notes that it has begun.
fn waits(
    world: &World,
    gate: &Gate,
) -> impl Fn(Arc<Mail>) -> futures::future::BoxFuture<'static, Result<(), NoConnection>>
+ Send
+ Sync
+ 'static {
    let (ledger, gate) = (world.ledger.clone(), gate.clone());
    move |mail| {
        let (ledger, gate) = (ledger.clone(), gate.clone());
        async move {
            ledger.charge(&mail.id.to_string());
            gate.wait().await;
            Ok(())
        }
        .boxed()
    }
}

async fn has_begun(world: &World, count: usize) {
    eventually("the handlers to begin", async || world.ledger.count() >= count).await;
}

#[tokio::test]
async fn what_waits_goes_back_and_what_runs_is_settled() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver(1..=4);
    let gate = Gate::new();
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(2);
    let run = consumer.run(has_begun(&world, 2), waits(&world, &gate));
    let opens = async {
        broker.has_settled(2).await;
        assert_eq!(broker.settled(), [(3, BACK), (4, BACK)]);
        assert!(broker.is_stopped());
        gate.open();
    };
    let (drained, ()) = world.while_time_passes(futures::future::join(run, opens)).await;
    assert_eq!(drained.unwrap().left, 0);
    assert_eq!(broker.acked(), 2);
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn a_handler_that_outlasts_the_drain_is_not_settled_and_its_result_is_stored() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let gate = Gate::new();
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_drain(Duration::from_secs(2));
    let run = consumer.run(has_begun(&world, 1), waits(&world, &gate));
    let drained = world.while_time_passes(run).await;
    assert_eq!(drained.unwrap().left, 1);
    assert_eq!(broker.settled(), []);
    gate.open();
    is_completed(&world).await;
}

#[tokio::test]
async fn a_consumer_that_is_dropped_settles_nothing_and_cuts_no_handler_off() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let gate = Gate::new();
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let run = consumer.run(crate::script::never(), waits(&world, &gate));
    let dropped = async {
        tokio::select! {
            ended = run => panic!("{ended:?}"),
            () = has_begun(&world, 1) => {}
        }
    };
    world.while_time_passes(dropped).await;
    assert_eq!(broker.settled(), []);
    gate.open();
    is_completed(&world).await;
    assert_eq!(broker.settled(), []);
}

async fn is_completed(world: &World) {
    let record = world.engine.record("billing", 1_u64);
    eventually("the result", async || {
        let view = record.inspect().await.unwrap();
        view.is_some_and(|view| view.state == State::Completed)
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_of_the_engine_stops_the_consumer_and_counts_nothing() {
    let world = World::new();
    let broker: Broker = Broker::new();
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let gate = Gate::new();
    world.engine.shutdown(Duration::ZERO).await;
    broker.deliver([1, 2]);
    let run = consumer.run(crate::script::never(), waits(&world, &gate));
    let drained = world.while_time_passes(run).await;
    assert_eq!(drained.unwrap().left, 0);
    let mut settled = broker.settled();
    settled.sort_by_key(|(id, _)| *id);
    assert_eq!(settled, [(1, BACK), (2, BACK)]);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_message_that_waits_for_its_next_try_goes_back_at_once() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1, 2]);
    let ledger = world.ledger.clone();
    let handler = move |_| {
        ledger.charge("it");
        async { Err(NoConnection) }
    };
    let inbox = inbox(&world).with_backoff(Duration::from_secs(3600), Duration::from_secs(3600));
    let consumer = Consumer::new(inbox, broker.clone());
    let stop = async {
        has_begun(&world, 1).await;
        let until = world.clock_now() + Duration::from_secs(60);
        world.time_is(until).await;
    };
    let drained = world.while_time_passes(consumer.run(stop, handler)).await;
    assert_eq!(drained.unwrap().left, 0);
    let mut settled = broker.settled();
    settled.sort_by_key(|(id, _)| *id);
    assert_eq!(settled, [(1, BACK), (2, BACK)]);
}

#[tokio::test]
async fn a_message_that_waits_for_its_next_try_is_not_tried_again_without_its_consumer() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1]);
    let ledger = world.ledger.clone();
    let handler = move |_| {
        ledger.charge("it");
        async { Err(NoConnection) }
    };
    let minute = Duration::from_secs(60);
    let consumer = Consumer::new(inbox(&world).with_backoff(minute, minute), broker.clone());
    let gone = async {
        tokio::select! {
            _ = consumer.run(crate::script::never(), handler) => panic!("it ends"),
            () = broker.is(|broker| broker.held_lanes() == [1]) => {}
        }
    };
    world.while_time_passes(gone).await;
    let until = world.clock_now() + minute + minute / 2;
    world.while_time_passes(world.time_is(until)).await;
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn the_broker_leaves_what_still_runs_until_the_end_of_the_drain() {
    let world = World::new();
    let broker: Broker = Broker::new().with_patience(Duration::from_secs(3));
    broker.deliver([1]);
    let gate = Gate::new();
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_drain(Duration::from_secs(60));
    let run = consumer.run(has_begun(&world, 1), waits(&world, &gate));
    let opens = async {
        broker.is(Broker::is_stopped).await;
        let before = broker.kept().len();
        broker.is(|broker| broker.kept().len() >= before + 5).await;
        gate.open();
    };
    let (drained, ()) = world.while_time_passes(futures::future::join(run, opens)).await;
    assert_eq!(drained.unwrap().left, 0);
    assert_eq!(broker.settled(), [(1, Disposition::Ack)]);
}

#[tokio::test]
async fn a_consumer_without_messages_says_that_it_stops() {
    let world = World::new();
    let broker: Broker = Broker::new();
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let run = consumer.run(std::future::ready(()), waits(&world, &Gate::new()));
    assert_eq!(world.while_time_passes(run).await.unwrap().left, 0);
    assert!(broker.is_stopped());
}
