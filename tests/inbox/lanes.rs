//! Lanes that are held: what waits in one keeps no other waiting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::inbox::{Consumer, DeadReason, Disposition, OnFailure};
use tokio::sync::Semaphore;

use crate::deliveries::{NoConnection, inbox};
use crate::script::{Broker, Mail};
use crate::world::World;

const FAILED: Disposition = Disposition::DeadLetter(DeadReason::Failed);

/// How many messages of the lanes from 100 on are acked.
fn others(broker: &Broker<1>) -> usize {
    broker.settled().iter().filter(|(id, end)| *id >= 10_000 && *end == Disposition::Ack).count()
}

#[tokio::test]
async fn a_handler_that_is_slow_keeps_no_other_lane_waiting() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, 0..200);
    broker.deliver_in_lane(100, 10_000..10_040);
    let gate = Arc::new(Semaphore::new(0));
    let closed = gate.clone();
    let handler = move |mail: Arc<Mail>| {
        let gate = closed.clone();
        async move {
            if mail.id == 0 {
                let _ = gate.acquire().await;
            }
            Ok::<_, NoConnection>(())
        }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(4);
    let stop = async {
        broker.is(|broker| others(broker) == 40).await;
        // Its lane waits, and most of that is still the broker's.
        assert_eq!(broker.acked(), 40);
        assert!(broker.queued() >= 200 - 13, "{}", broker.queued());
        gate.add_permits(1);
        broker.has_settled(240).await;
    };
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let settled = broker.settled();
    let of_lane: Vec<u64> = settled.iter().map(|(id, _)| *id).filter(|id| *id < 200).collect();
    assert_eq!(of_lane, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn lanes_that_fail_keep_no_other_waiting_however_many_they_are() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    for lane in 0..60 {
        broker.deliver_in_lane(lane, lane * 100..lane * 100 + 5);
    }
    broker.deliver_in_lane(100, 10_000..10_040);
    let inbox = inbox(&world).with_backoff(Duration::from_secs(3600), Duration::from_secs(3600));
    let handler =
        |mail: Arc<Mail>| async move { if mail.id < 10_000 { Err(NoConnection) } else { Ok(()) } };
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(2);
    let stop = broker.is(|broker| others(broker) == 40);
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
}

#[tokio::test]
async fn handlers_that_hang_keep_their_lanes_and_leave_their_places_to_others() {
    let world = World::with(|builder| builder.max_run(Duration::from_secs(60)));
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1, 11, 12]);
    broker.deliver_in_lane(2, [2, 21, 22]);
    broker.deliver_in_lane(100, 10_000..10_020);
    let gate = Arc::new(Semaphore::new(0));
    let (begun, running, most) =
        <(Arc<Mutex<Vec<_>>>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let handler = {
        let (clock, gate, begun) = (world.clock.clone(), gate.clone(), begun.clone());
        let (running, most) = (running.clone(), most.clone());
        move |mail: Arc<Mail>| {
            let (clock, gate, begun) = (clock.clone(), gate.clone(), begun.clone());
            let (running, most) = (running.clone(), most.clone());
            async move {
                begun.lock().unwrap().push(mail.id);
                if mail.id < 10 {
                    let _ = gate.acquire().await;
                    return Ok::<_, NoConnection>(());
                }
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                clock.sleep(Duration::from_secs(1)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(2);
    let stop = async {
        broker.is(|broker| others(broker) == 20).await;
        let of_lanes: Vec<u64> =
            begun.lock().unwrap().iter().copied().filter(|id| *id < 100).collect();
        assert_eq!(of_lanes, [1, 2], "nothing behind them");
        // They end, and no more places are left than before.
        gate.add_permits(2);
        for lane in 101..110 {
            broker.deliver_in_lane(lane, lane * 100..lane * 100 + 4);
        }
        broker.has_settled(20 + 6 + 36).await;
    };
    let drained = world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    assert_eq!((drained.left, most.load(Ordering::SeqCst)), (0, 2));
}

#[tokio::test]
async fn a_dead_letter_on_its_way_keeps_its_own_lane_waiting_alone() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.delay_dead_letters(true);
    broker.deliver_in_lane(1, [1, 2]);
    broker.deliver_in_lane(2, [3]);
    broker.deliver_in_lane(100, 10_000..10_040);
    let inbox = inbox(&world).with_on_failure(|_: &NoConnection| OnFailure::DeadLetter);
    let handler = |mail: Arc<Mail>| async move {
        if mail.id % 2 == 1 && mail.id < 10 { Err(NoConnection) } else { Ok(()) }
    };
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(2);
    let stop = async {
        broker.is(|broker| others(broker) == 40).await;
        assert_eq!(broker.settled().len(), 40, "neither they nor what is behind them");
        broker.delay_dead_letters(false);
        broker.has_settled(43).await;
    };
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let mut last = broker.settled().split_off(40);
    last.sort_by_key(|(id, _)| *id);
    assert_eq!(last, [(1, FAILED), (2, Disposition::Ack), (3, FAILED)]);
}

#[tokio::test]
async fn a_message_whose_dead_letter_is_refused_is_handled_again_before_those_behind_it() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.refuse_dead_letters(true);
    broker.deliver_in_lane(1, [1, 2]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let inbox = inbox(&world).with_on_failure(|_: &NoConnection| OnFailure::DeadLetter);
    let handler = {
        let (tries, clock) = (tries.clone(), world.clock.clone());
        move |mail: Arc<Mail>| {
            tries.lock().unwrap().push((mail.id, clock.monotonic()));
            async move { if mail.id == 1 { Err(NoConnection) } else { Ok(()) } }
        }
    };
    let consumer = Consumer::new(inbox, broker.clone());
    let stop = async {
        broker.is(|broker| broker.refused_reports() == 3).await;
        broker.refuse_dead_letters(false);
        broker.has_settled(2).await;
    };
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    assert_eq!(broker.settled(), [(1, FAILED), (2, Disposition::Ack)]);
    let tries = tries.lock().unwrap();
    assert_eq!(tries.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 1, 1, 1, 2]);
    let pause = |two: &[(u64, Duration)]| two[1].1.saturating_sub(two[0].1);
    let pauses: Vec<_> = tries.windows(2).take(3).map(pause).collect();
    for (pause, seconds) in pauses.iter().zip([1, 2, 4]) {
        let bound = Duration::from_secs(seconds);
        assert!((bound..bound * 2).contains(pause), "{pauses:?}");
    }
}

/// It was not reported, and the broker delivers it to the next consumer.
#[tokio::test]
async fn a_consumer_that_stops_does_not_wait_for_the_next_try_of_a_dead_letter() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.refuse_dead_letters(true);
    broker.deliver_in_lane(1, [1, 2]);
    let inbox = inbox(&world).with_on_failure(|_: &NoConnection| OnFailure::DeadLetter);
    let handler = |_| async { Err::<(), _>(NoConnection) };
    let consumer = Consumer::new(inbox, broker.clone());
    let stop = broker.is(|broker| broker.refused_reports() == 5);
    let limit = Duration::from_secs(25);
    let drained = world.while_at_most(limit, consumer.run(stop, handler)).await.unwrap();
    assert_eq!(drained.left, 0);
    let returned = Disposition::Postpone(Duration::ZERO);
    assert_eq!(broker.settled(), [(2, returned), (1, returned)]);
}
