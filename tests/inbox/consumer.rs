//! The loop, as long as all goes well around it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::inbox::{ConsumeError, Consumer, DeadReason, Disposition, Inbox, OnFailure};
use idempotency::store::MemoryStore;
use idempotency::testing::Gate;
use idempotency::{ErrorKind, Idempotency, Verdict};

use crate::deliveries::{NoConnection, inbox};
use crate::script::{BACK, Broker, Hook, Mail, never};
use crate::world::{DAY, World};

#[tokio::test]
async fn each_message_is_handled_and_acked() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver(0..100);
    let ledger = world.ledger.clone();
    let handler = move |mail: Arc<Mail>| {
        ledger.charge(&mail.id.to_string());
        async { Ok::<_, NoConnection>(()) }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(4);
    let drained = world.while_time_passes(consumer.run(broker.has_settled(100), handler)).await;
    assert_eq!(drained.unwrap().left, 0);
    assert_eq!((broker.acked(), world.ledger.count()), (100, 100));
    assert!(broker.largest_room() <= 8, "{}", broker.largest_room());
}

#[tokio::test]
async fn no_more_handlers_run_at_once_than_there_are_places() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver(0..40);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let handler = move |_| {
        let (running, most) = (running.clone(), most.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, NoConnection>(())
        }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(3);
    world.while_time_passes(consumer.run(broker.has_settled(40), handler)).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 3);
}

/// A handler that fails as often as a message says, and notes each try.
fn fails(
    tries: Arc<Mutex<Vec<u64>>>,
    failures: impl Fn(u64) -> usize + Send + Sync + 'static,
) -> impl Fn(Arc<Mail>) -> std::future::Ready<Result<(), NoConnection>> + Send + Sync + 'static {
    move |mail| {
        let mut tries = tries.lock().unwrap();
        tries.push(mail.id);
        let count = tries.iter().filter(|id| **id == mail.id).count();
        std::future::ready(if count > failures(mail.id) { Ok(()) } else { Err(NoConnection) })
    }
}

#[tokio::test]
async fn messages_of_a_lane_run_one_after_the_other_and_in_order() {
    let world = World::new();
    let broker: Broker = Broker::new();
    for id in 0..20 {
        broker.deliver_in_lane(id % 2, [id]);
    }
    let tries = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let handler = fails(tries.clone(), |_| 0);
    world.while_time_passes(consumer.run(broker.has_settled(20), handler)).await.unwrap();
    let tries = tries.lock().unwrap();
    for lane in [0, 1] {
        let of_lane: Vec<_> = tries.iter().copied().filter(|id| id % 2 == lane).collect();
        assert!(of_lane.is_sorted(), "{of_lane:?}");
    }
}

#[tokio::test]
async fn a_failed_message_is_delivered_again_by_a_broker_that_can_do_that() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1, 2]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let handler = fails(tries.clone(), |id| usize::from(id == 1));
    world.while_time_passes(consumer.run(broker.has_settled(2), handler)).await.unwrap();
    let settled = broker.settled();
    assert!(settled.contains(&(2, Disposition::Ack)), "{settled:?}");
    assert!(
        settled.iter().any(|(id, end)| *id == 1 && matches!(end, Disposition::Retry(_))),
        "{settled:?}"
    );
}

#[tokio::test]
async fn a_lane_that_cannot_be_delivered_again_waits_for_the_next_try_and_others_go_on() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1, 2]);
    broker.deliver_in_lane(2, [3, 4, 5]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    // One place: the lane that waits does not keep it.
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(3);
    let handler = fails(tries.clone(), |id| if id == 1 { 3 } else { 0 });
    world.while_time_passes(consumer.run(broker.has_settled(5), handler)).await.unwrap();
    assert_eq!(broker.acked(), 5);
    assert_eq!(*tries.lock().unwrap(), [1, 3, 4, 5, 1, 1, 1, 2]);
}

#[tokio::test]
async fn a_message_that_waits_for_its_next_try_leaves_its_place_to_others() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1]);
    broker.deliver_in_lane(2, [2]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(1);
    let handler = fails(tries.clone(), |id| usize::from(id == 1));
    world.while_time_passes(consumer.run(broker.has_settled(2), handler)).await.unwrap();
    assert_eq!(*tries.lock().unwrap(), [1, 2, 1]);
}

#[tokio::test]
async fn what_is_behind_a_failed_message_goes_back_with_it_where_the_broker_keeps_the_order() {
    let world = World::new();
    let broker: Broker<2> = Broker::new();
    broker.deliver_in_lane(1, [1, 2, 3]);
    broker.deliver_in_lane(2, [4]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let handler = fails(tries.clone(), |id| usize::from(id == 1));
    world.while_time_passes(consumer.run(broker.has_settled(4), handler)).await.unwrap();
    let settled = broker.settled();
    assert!(matches!(settled[0], (1, Disposition::Retry(_))), "{settled:?}");
    assert!(settled.contains(&(2, BACK)) && settled.contains(&(3, BACK)), "{settled:?}");
    assert!(settled.contains(&(4, Disposition::Ack)), "{settled:?}");
    assert_eq!(*tries.lock().unwrap(), [1, 4]);
}

#[tokio::test]
async fn the_broker_is_asked_to_leave_all_that_runs_or_waits() {
    let world = World::new();
    let broker: Broker = Broker::new().with_patience(Duration::from_secs(30));
    broker.deliver([1]);
    broker.deliver_in_lane(7, [2, 3]);
    let gate = Gate::new();
    let held = gate.clone();
    let handler = move |_| {
        let gate = gate.clone();
        async move {
            gate.wait().await;
            Ok::<_, NoConnection>(())
        }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let started = world.clock_now();
    let stop = async {
        broker.is(|broker| broker.kept().len() == 3).await;
        let kept = world.clock_now().saturating_sub(started);
        assert!((Duration::from_secs(30)..Duration::from_secs(33)).contains(&kept), "{kept:?}");
        held.open();
        broker.has_settled(3).await;
    };
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    assert_eq!(broker.kept()[..3], [[1, 2, 3], [1, 2, 3], [1, 2, 3]]);
}

#[tokio::test]
async fn a_message_whose_handler_hangs_is_not_kept_from_others_for_ever() {
    let world = World::with(|builder| builder.max_run(Duration::from_secs(60)));
    let broker: Broker = Broker::new().with_patience(Duration::from_secs(30));
    broker.deliver([1]);
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = begun.clone();
    let handler = move |mail: Arc<Mail>| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            if mail.id == 1 {
                std::future::pending::<()>().await;
            }
            Ok::<_, NoConnection>(())
        }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let stop = async {
        world.clock.sleep(Duration::from_secs(120)).await;
        // The broker delivers it again: its record is in doubt.
        broker.deliver([1]);
        broker.has_settled(1).await;
    };
    let drained = world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let kept = broker.kept();
    assert!((5..=7).contains(&kept.len()) && kept.iter().all(|kept| *kept == [1]), "{kept:?}");
    assert_eq!(broker.settled(), [(1, Disposition::DeadLetter(DeadReason::InDoubt))]);
    assert_eq!((begun.load(Ordering::SeqCst), drained.left), (1, 1));
}

#[tokio::test]
async fn a_handler_that_hangs_does_not_hold_its_lane_for_ever() {
    let world = World::with(|builder| builder.max_run(Duration::from_secs(60)));
    let broker: Broker<2> = Broker::new().with_patience(Duration::from_secs(30));
    broker.deliver_in_lane(7, [1, 2]);
    let handler = |mail: Arc<Mail>| async move {
        if mail.id == 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, NoConnection>(())
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let stop = async {
        // The broker delivers no message of the lane while one is in hand.
        broker.has_settled(1).await;
        world.clock.sleep(Duration::from_secs(60)).await;
        broker.deliver_in_lane(7, [1, 2]);
        broker.has_settled(3).await;
    };
    let drained = world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let dead = Disposition::DeadLetter(DeadReason::InDoubt);
    assert_eq!(broker.settled(), [(2, BACK), (1, dead), (2, Disposition::Ack)]);
    assert_eq!(drained.left, 1);
}

#[tokio::test]
async fn the_broker_is_asked_to_leave_a_dead_letter_until_its_copy_is_confirmed() {
    let world = World::new();
    let broker: Broker = Broker::new().with_patience(Duration::from_secs(30));
    broker.delay_reports(true);
    broker.deliver([1]);
    let dead_letter = |_: &NoConnection| OnFailure::DeadLetter;
    let inbox = inbox(&world).with_on_failure(dead_letter);
    let stop = async {
        broker.is(|broker| broker.kept().len() == 2).await;
        broker.delay_reports(false);
        broker.has_settled(1).await;
    };
    let handler = |_| async { Err::<(), _>(NoConnection) };
    let consumer = Consumer::new(inbox, broker.clone());
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    assert_eq!(broker.kept()[..2], [[1], [1]]);
    assert_eq!(broker.settled(), [(1, Disposition::DeadLetter(DeadReason::Failed))]);
}

#[tokio::test]
async fn a_handler_that_panics_costs_only_its_own_message() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver(1..=3);
    let handler = |mail: Arc<Mail>| async move {
        assert!(mail.id != 2, "on purpose");
        Ok::<_, NoConnection>(())
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    world.while_time_passes(consumer.run(broker.has_settled(3), handler)).await.unwrap();
    let mut settled = broker.settled();
    settled.sort_by_key(|(id, _)| *id);
    let dead = Disposition::DeadLetter(DeadReason::InDoubt);
    assert_eq!(settled, [(1, Disposition::Ack), (2, dead), (3, Disposition::Ack)]);
}

#[tokio::test]
async fn under_another_policy_a_message_whose_handler_panicked_is_tried_again() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let handler = |_| async {
        assert!(std::env::args().len() == usize::MAX, "on purpose");
        Ok::<_, NoConnection>(())
    };
    let asks = |_, _| async { Verdict::Unknown };
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_on_crash_verify(asks);
    world.while_time_passes(consumer.run(broker.has_settled(1), handler)).await.unwrap();
    assert!(matches!(broker.settled()[..], [(1, Disposition::Retry(_))]), "{:?}", broker.settled());
}

#[tokio::test]
async fn a_question_is_asked_about_the_message_whose_attempt_broke_off() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let died = inbox(&world.other_process());
    let delivery = idempotency::inbox::Delivery::new(1_u64);
    let asks = async |_| Verdict::Unknown;
    let never_ends = async || std::future::pending::<Result<(), NoConnection>>().await;
    let mut call = Box::pin(died.handle_verifying(delivery, asks, never_ends));
    assert!(futures::poll!(call.as_mut()).is_pending());
    drop(call);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let question = move |mail: Arc<Mail>, _| {
        asked.lock().unwrap().push(mail.id);
        async { Verdict::Completed(()) }
    };
    let ledger = world.ledger.clone();
    let handler = move |_| {
        ledger.charge("it");
        async { Ok::<_, NoConnection>(()) }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_on_crash_verify(question);
    let stop = broker.is(|broker| broker.acked() == 1);
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [1]);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn dispositions_that_do_not_reach_the_broker_end_nothing() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.refuse_dispositions(true);
    broker.deliver([1]);
    let handler = |_| async { Ok::<_, NoConnection>(()) };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let stop = async {
        broker.is(|broker| broker.refused_reports() == 1).await;
        // The broker delivers it again.
        broker.refuse_dispositions(false);
        broker.deliver([1, 2]);
        broker.has_settled(2).await;
    };
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    assert_eq!(broker.acked(), 2);
}

#[tokio::test]
async fn dispositions_wait_for_no_others_while_nothing_is_handled() {
    for handlers in [1, 16] {
        let world = World::new();
        let broker: Broker = Broker::new();
        broker.deliver(0..5);
        let handler = fails(Arc::default(), |_| 0);
        let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(handlers);
        // No time passes.
        consumer.run(broker.has_settled(5), handler).await.unwrap();
        assert_eq!(broker.acked(), 5);
    }
}

#[tokio::test]
async fn what_comes_before_the_broker_knows_of_a_failure_goes_back_too() {
    let world = World::new();
    let broker: Broker<2> = Broker::new();
    broker.deliver_in_lane(1, [1]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let (fails, sends) = (fails(tries.clone(), |id| usize::from(id == 1)), broker.clone());
    let handler = move |mail: Arc<Mail>| {
        if mail.id == 1 {
            sends.deliver_in_lane(1, [2, 3]);
        }
        fails(mail)
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    broker.delay_reports(true);
    let stop = async {
        broker.is(|broker| tries.lock().unwrap().len() == 1 && broker.queued() == 0).await;
        broker.delay_reports(false);
        broker.has_settled(3).await;
    };
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let settled = broker.settled();
    assert!(matches!(settled[0], (1, Disposition::Retry(_))), "{settled:?}");
    assert_eq!(settled[1..], [(2, BACK), (3, BACK)]);
    assert_eq!(*tries.lock().unwrap(), [1]);
}

#[tokio::test]
async fn a_message_that_has_gone_to_another_consumer_before_its_turn_is_not_handled() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1, 2, 3, 4]);
    broker.deliver([5]);
    let (tries, gives) = (Arc::new(Mutex::new(Vec::new())), broker.clone());
    let notes = fails(tries.clone(), |_| 0);
    let handler = move |mail: Arc<Mail>| {
        if mail.id == 1 {
            gives.give_away([1, 2, 3]);
        }
        notes(mail)
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let drained = world.while_time_passes(consumer.run(broker.has_settled(5), handler)).await;
    assert_eq!(drained.unwrap().left, 0);
    let (mut tries, mut settled) = (tries.lock().unwrap().clone(), broker.settled());
    tries.sort_unstable();
    settled.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(tries, [1, 4, 5], "what has begun is finished, and what is behind goes on");
    let ack = Disposition::Ack;
    assert_eq!(settled, [(1, ack), (2, BACK), (3, BACK), (4, ack), (5, ack)]);
}

#[tokio::test]
async fn a_disabled_inbox_counts_its_tries_of_a_lane_that_it_holds() {
    let world = World::new();
    world.engine.disable("billing");
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1]);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let inbox = inbox(&world).with_max_attempts(3);
    let consumer = Consumer::new(inbox, broker.clone());
    let handler = fails(tries.clone(), |_| 100);
    world.while_time_passes(consumer.run(broker.has_settled(1), handler)).await.unwrap();
    assert_eq!(broker.settled(), [(1, Disposition::DeadLetter(DeadReason::Attempts))]);
    assert_eq!(*tries.lock().unwrap(), [1, 1, 1]);
}

#[tokio::test]
async fn a_connection_that_ends_ends_the_consumer_after_what_runs() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let (gate, closes) = (Gate::new(), broker.clone());
    let handler = move |_| {
        let gate = gate.clone();
        closes.close();
        async move {
            let opens = gate.clone();
            tokio::task::yield_now().await;
            opens.open();
            gate.wait().await;
            Ok::<_, NoConnection>(())
        }
    };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    let ended = world.while_time_passes(consumer.run(never(), handler)).await;
    assert!(matches!(ended, Err(ConsumeError::Source(_))), "{ended:?}");
    assert_eq!(broker.settled(), [(1, Disposition::Ack)]);
}

#[tokio::test]
async fn what_is_configured_wrongly_is_refused_before_the_first_message() {
    let world = World::new();
    let engine = || world.engine.clone();
    let inbox = |engine: Idempotency, name: &'static str, ttl| Inbox::new(engine, name, ttl);
    let long: &'static str = Box::leak("n".repeat(201).into_boxed_str());
    for (inbox, concurrency) in [
        (inbox(engine(), "", DAY), 1),
        (inbox(engine(), long, DAY), 1),
        (inbox(engine(), "billing", Duration::ZERO), 1),
        (inbox(engine(), "billing", DAY * 100_000), 1),
        (inbox(engine(), "billing", DAY), 0),
    ] {
        let broker: Broker = Broker::new();
        broker.deliver([1]);
        let shown = format!("{inbox:?} {concurrency}");
        let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(concurrency);
        let refused = consumer.run(never(), |_| async { Ok::<_, NoConnection>(()) }).await;
        let Err(ConsumeError::Refused(error)) = refused else { panic!("{refused:?} {shown}") };
        assert_eq!(error.kind(), ErrorKind::Config, "{shown}");
        assert_eq!(broker.queued(), 1, "{shown}");
    }
}

/// The pause before a question has bounds of its own.
#[tokio::test]
async fn a_question_that_the_engine_never_asks_is_refused_before_the_first_message() {
    let engine = Idempotency::builder(MemoryStore::new()).max_run(Duration::from_millis(500));
    let engine = engine.lease(Duration::from_millis(200)).build().unwrap();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let consumer = Consumer::new(Inbox::new(engine, "billing", DAY), broker.clone())
        .with_on_crash_verify(|_, _| async { Verdict::Unknown });
    let refused = consumer.run(never(), |_| async { Ok::<_, NoConnection>(()) }).await;
    let Err(ConsumeError::Refused(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(broker.queued(), 1);
}

#[tokio::test]
async fn a_lane_that_is_held_takes_no_room_of_others() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    // Three lanes whose first messages fail, and more behind them than there is room for.
    for lane in 1..=3 {
        broker.deliver_in_lane(lane, lane * 100..lane * 100 + 30);
    }
    broker.deliver_in_lane(4, 400..420);
    let inbox = inbox(&world).with_backoff(Duration::from_secs(3600), Duration::from_secs(3600));
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(2);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let handler = fails(tries.clone(), |id| if id < 400 { 100 } else { 0 });
    let stop = broker.is(|broker| broker.acked() == 20);
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let mut of_lane_4 = tries.lock().unwrap().clone();
    of_lane_4.retain(|id| *id >= 400);
    assert_eq!(of_lane_4, (400..420).collect::<Vec<_>>());
    // What was held back is still the broker's.
    assert!(broker.queued() >= 70, "{}", broker.queued());
    assert!(broker.held_lanes().is_empty(), "all lanes go on when the consumer stops");
}

#[tokio::test]
async fn a_lane_that_goes_on_gets_all_its_messages() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, 1..=40);
    let tries = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(2);
    let handler = fails(tries.clone(), |id| usize::from(id % 10 == 1));
    let stop = broker.is(|broker| broker.acked() == 40);
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let mut tries = tries.lock().unwrap().clone();
    tries.dedup();
    assert_eq!(tries, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_whose_code_panics_costs_only_itself() {
    let world = World::new();
    for (hook, expected) in [
        (Hook::Delivery, Disposition::DeadLetter(DeadReason::InvalidKey)),
        (Hook::Lane, Disposition::DeadLetter(DeadReason::InvalidKey)),
        (Hook::Label, Disposition::Ack),
    ] {
        let broker: Broker = Broker::new();
        broker.deliver([1]);
        broker.deliver_one_that_panics(2, hook);
        broker.deliver([3]);
        let consumer = Consumer::new(inbox(&world), broker.clone()).with_concurrency(1);
        let handler = |_| async { Ok::<_, NoConnection>(()) };
        world.while_time_passes(consumer.run(broker.has_settled(3), handler)).await.unwrap();
        let mut settled = broker.settled();
        settled.sort_by_key(|(id, _)| *id);
        let ack = Disposition::Ack;
        assert_eq!(settled, [(1, ack), (2, expected), (3, ack)], "{hook:?}");
    }
}

#[tokio::test]
async fn the_source_gets_the_record_and_the_attempt_for_a_dead_letter() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1]);
    let handler = |_| async { Err(NoConnection) };
    let inbox = inbox(&world).with_max_attempts(1);
    let consumer = Consumer::new(inbox, broker.clone());
    world.while_time_passes(consumer.run(broker.has_settled(1), handler)).await.unwrap();
    assert_eq!(broker.settled(), [(1, Disposition::DeadLetter(DeadReason::Attempts))]);
    let record = world.engine.record("billing", 1_u64).hash().unwrap();
    assert_eq!(broker.tried(), [(1, Some(record), 1)]);
}

#[tokio::test]
async fn a_message_that_waits_for_a_place_gets_it_beside_others_that_are_tried_again() {
    let world = World::new();
    let broker: Broker<1> = Broker::new();
    broker.deliver_in_lane(1, [1]);
    broker.deliver_in_lane(2, [2]);
    broker.deliver_in_lane(3, [3]);
    let (clock, tries) = (world.clock.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = tries.clone();
    let handler = move |mail: Arc<Mail>| {
        let (clock, tries) = (clock.clone(), tries.clone());
        async move {
            tries.lock().unwrap().push(mail.id);
            clock.sleep(Duration::from_secs(2)).await;
            if mail.id == 3 { Ok(()) } else { Err(NoConnection) }
        }
    };
    let retries = |_: &NoConnection| OnFailure::RetryAfter(Duration::from_secs(1));
    let inbox = inbox(&world).with_max_attempts(0).with_on_failure(retries);
    let consumer = Consumer::new(inbox, broker.clone()).with_concurrency(1);
    let stop = broker.is(|broker| broker.acked() == 1);
    world.while_time_passes(consumer.run(stop, handler)).await.unwrap();
    let before = seen.lock().unwrap().iter().take_while(|id| **id != 3).count();
    assert!(before <= 4, "{:?}", seen.lock().unwrap());
}

/// Code of the user that panics where an error is shown and where it is dropped.
struct Explosive;

impl std::fmt::Debug for Explosive {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("on purpose")
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "on purpose");
    }
}

#[tokio::test]
async fn an_error_that_panics_costs_only_its_own_message() {
    let world = World::new();
    let broker: Broker = Broker::new();
    broker.deliver([1, 2]);
    let handler =
        |mail: Arc<Mail>| async move { if mail.id == 1 { Err(Explosive) } else { Ok(()) } };
    let consumer = Consumer::new(inbox(&world), broker.clone());
    world.while_time_passes(consumer.run(broker.has_settled(2), handler)).await.unwrap();
    let mut settled = broker.settled();
    settled.sort_by_key(|(id, _)| *id);
    assert!(
        matches!(settled[..], [(1, Disposition::Retry(_)), (2, Disposition::Ack)]),
        "{settled:?}"
    );
}
