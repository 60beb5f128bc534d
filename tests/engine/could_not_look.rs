//! The helpers of `idempotency::testing` say that they could not look where they have seen nothing
//! of what they are for.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::edge::{EdgeCall, EdgeResult, Turn};
use idempotency::key::Key;
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::testing::{FaultyStore, crash_at_every_await, run_concurrently};
use idempotency::{Call, Error, Idempotency, OnCrash, WithEngine as _, idempotent};
use tokio::task::yield_now;

use crate::faults::Fault;

const HOUR: Duration = Duration::from_secs(3600);

/// The books of what is outside.
#[derive(Clone, Default)]
struct Bank(Arc<Mutex<HashMap<usize, usize>>>);

impl Bank {
    /// A fake that is ready at once. Returns the number of charges.
    fn charge(&self, order: usize) -> usize {
        *self.0.lock().unwrap().entry(order).and_modify(|charges| *charges += 1).or_insert(1)
    }

    /// A fake as it is to be.
    async fn charge_over_there(&self, order: usize) -> usize {
        yield_now().await;
        let charges = self.charge(order);
        yield_now().await;
        charges
    }

    fn charges(&self, order: usize) -> usize {
        self.0.lock().unwrap().get(&order).copied().unwrap_or_default()
    }
}

fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

fn call(engine: &Idempotency, operation: &str, key: usize) -> Call {
    engine.call(operation, key as u64).ttl(HOUR).on_crash(OnCrash::Retry)
}

/// Makes `call` as the helper does, and once more for each look.
async fn crash<F: Future>(call: impl Fn(usize) -> F) -> usize {
    crash_at_every_await(&call, async |number, _| {
        let _ = call(number).await;
    })
    .await
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `pay`")]
async fn one_key_for_all_numbers_behind_a_wait_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(async |_| {
        yield_now().await; // authenticates
        call(&engine, "pay", 7).run(async || Ok::<_, Error>(bank.charge_over_there(7).await)).await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `pay`")]
async fn one_key_for_all_numbers_of_an_inner_call_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(async |number| {
        let pay = async || {
            yield_now().await;
            call(&engine, "pay", 7)
                .run(async || Ok::<_, Error>(bank.charge_over_there(7).await))
                .await
        };
        call(&engine, "order", number).run(pay).await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `pay`")]
async fn one_key_for_all_numbers_of_a_detached_call_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(|_| {
        let bank = bank.clone();
        async {
            yield_now().await;
            pay_detached(7, bank).await
        }
        .with_engine(&engine)
    })
    .await;
}

#[idempotent(name = "pay", key = order, ttl = "1h", detach)]
async fn pay_detached(order: usize, bank: Bank) -> Result<(), Error> {
    bank.charge_over_there(order).await;
    Ok(())
}

#[tokio::test]
async fn a_detached_body_need_not_wait_because_no_drop_ends_it() {
    let (bank, engine) = (Bank::default(), engine());
    let call = |order| {
        let bank = bank.clone();
        charge_detached(order, bank).with_engine(&engine)
    };
    let points = crash_at_every_await(call, async |order, _| {
        call(order).await.unwrap();
        assert_eq!(bank.charges(order), 1);
    });
    assert!(points.await >= 1);
}

#[idempotent(name = "charge", key = order, ttl = "1h", detach)]
async fn charge_detached(order: usize, bank: Bank) -> Result<(), Error> {
    bank.charge(order);
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Decline {
    #[error("declined")]
    Declined,
    #[error(transparent)]
    Refused(#[from] Error),
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `pay`")]
async fn one_key_that_the_first_call_frees_and_the_second_leaves_in_doubt_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    let is_first = Cell::new(true);
    crash(async |_| {
        yield_now().await;
        let call = call(&engine, "pay", 7).on_crash(OnCrash::Hold);
        call.run(async || {
            bank.charge_over_there(7).await;
            if is_first.replace(false) { Err(Decline::Declined) } else { Ok(()) }
        })
        .await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `pay`")]
async fn calls_that_are_all_refused_behind_a_wait_are_reported() {
    let (bank, store) = (Bank::default(), FaultyStore::new(MemoryStore::new()));
    let engine = Idempotency::new(store.clone());
    store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Full)));
    crash(async |number| {
        yield_now().await;
        call(&engine, "pay", number)
            .run(async || Ok::<_, Error>(bank.charge_over_there(number).await))
            .await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `pay`")]
async fn calls_without_an_engine_behind_a_wait_are_reported() {
    let bank = Bank::default();
    crash(async |number| {
        yield_now().await;
        pay_detached(number, bank.clone()).await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `charge`")]
async fn an_inner_call_whose_fake_never_waits_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(async |number| {
        let order = async || {
            yield_now().await;
            let charge = async || {
                bank.charge(number);
                Ok::<_, Error>(())
            };
            call(&engine, "charge", number).run(charge).await?;
            yield_now().await;
            Ok::<_, Error>(())
        };
        call(&engine, "order", number).on_crash(OnCrash::Hold).run(order).await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `charge`")]
async fn a_fake_that_never_waits_beside_one_of_another_engine_that_does_is_reported() {
    let (bank, one, other) = (Bank::default(), engine(), engine());
    crash(async |number| {
        let waits = async || Ok::<_, Error>(bank.charge_over_there(2 * number).await);
        call(&one, "charge", number).run(waits).await?;
        let is_ready = async || Ok::<_, Error>(bank.charge(2 * number + 1));
        call(&other, "charge", number).run(is_ready).await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `charge`")]
async fn a_body_of_a_disabled_operation_that_never_waits_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    engine.disable("charge");
    crash(async |number| {
        yield_now().await;
        let is_ready = async || Ok::<_, Error>(bank.charge(number));
        call(&engine, "charge", number).run(is_ready).await
    })
    .await;
}

fn mail(engine: &Idempotency, key: usize) -> EdgeCall {
    EdgeCall::new(engine, "mail", Key::of(&(key as u64)), HOUR).on_crash(OnCrash::Retry)
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `mail`")]
async fn a_body_of_an_edge_that_waits_only_for_its_turn_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(async |number| {
        let send = async |turn: Turn| {
            let waiting = turn.wait();
            yield_now().await; // a permit
            waiting.begin().expect("no caller has taken the claim");
            bank.charge(number);
            ((), EdgeResult::completed("").into())
        };
        let _ = mail(&engine, number).run(send).await;
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `mail`")]
async fn one_key_for_all_numbers_of_a_detached_call_of_an_edge_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(async |_| {
        yield_now().await;
        let bank = bank.clone();
        let send = async move |_: Turn| {
            bank.charge_over_there(7).await;
            ((), EdgeResult::completed("").into())
        };
        let _ = mail(&engine, 7).run_detached(send, |_| {}).await;
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `mail`")]
async fn an_unprotected_body_of_an_edge_that_never_waits_is_reported() {
    let (bank, engine) = (Bank::default(), engine());
    crash(async |number| {
        yield_now().await;
        let send = async || bank.charge(number);
        let _ = mail(&engine, number).run_unprotected(send).unwrap().await;
    })
    .await;
}

#[tokio::test]
async fn a_body_that_only_makes_calls_that_wait_is_looked_at() {
    let (bank, engine) = (Bank::default(), engine());
    let points = crash(async |number| {
        let order = async || {
            let charge = async || Ok::<_, Error>(bank.charge_over_there(number).await);
            call(&engine, "charge", number).run(charge).await
        };
        call(&engine, "order", number).run(order).await
    });
    assert!(points.await >= 2);
}

/// Checks whether there is a seat, and then takes it.
fn book(seats: &Mutex<usize>) -> usize {
    let booked = *seats.lock().unwrap();
    if booked == 0 {
        *seats.lock().unwrap() += 1;
    }
    booked
}

#[tokio::test]
#[should_panic(expected = "run_concurrently at")]
async fn calls_that_are_tasks_which_never_wait_are_reported() {
    let seats = Arc::new(Mutex::new(0));
    run_concurrently(64, |_| {
        let seats = seats.clone();
        tokio::spawn(async move { book(&seats) })
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "run_concurrently at")]
async fn calls_that_spawn_a_task_which_never_waits_are_reported() {
    let seats = Arc::new(Mutex::new(0));
    run_concurrently(64, |_| {
        let seats = seats.clone();
        async move { tokio::spawn(async move { book(&seats) }).await }
    })
    .await;
}

#[tokio::test]
async fn calls_that_are_tasks_which_wait_are_looked_at() {
    let seats = Arc::new(Mutex::new(0));
    run_concurrently(64, |_| {
        let seats = seats.clone();
        tokio::spawn(async move {
            if *seats.lock().unwrap() == 0 {
                yield_now().await;
                *seats.lock().unwrap() += 1;
            }
        })
    })
    .await;
    assert_eq!(*seats.lock().unwrap(), 64);
}

#[tokio::test]
async fn calls_to_a_task_that_answers_them_one_by_one_are_looked_at() {
    let (orders, mut received) = tokio::sync::mpsc::unbounded_channel();
    let serves = tokio::spawn(async move {
        let mut booked = 0;
        while let Some(answer) = received.recv().await {
            let answer: tokio::sync::oneshot::Sender<usize> = answer;
            booked += 1;
            let _ = answer.send(booked);
        }
    });
    let answers = run_concurrently(64, |_| {
        let (sender, answer) = tokio::sync::oneshot::channel();
        orders.send(sender).unwrap();
        async move { answer.await.unwrap() }
    });
    assert_eq!(answers.await.len(), 64);
    drop(orders);
    serves.await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "could not look: no body of `book` waited while another call of it was \
    under way")]
async fn a_guarded_call_that_never_waits_behind_a_wait_is_reported() {
    let (seats, engine) = (Mutex::new(0), engine());
    let number = Cell::new(0);
    run_concurrently(64, async |_| {
        yield_now().await; // authenticates
        number.set(number.get() + 1); // the fault: a key that is new in every call
        call(&engine, "book", number.get()).run(async || Ok::<_, Error>(book(&seats))).await
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no body of `book` waited while another call of it was \
    under way")]
async fn a_guarded_call_inside_another_one_that_waits_is_looked_at_too() {
    let (seats, engine) = (&Mutex::new(0), &engine());
    let number = &Cell::new(0);
    run_concurrently(64, |order| {
        call(engine, "order", order).run(async move || {
            yield_now().await;
            number.set(number.get() + 1); // the fault: a key that is new in every call
            call(engine, "book", number.get()).run(async || Ok::<_, Error>(book(seats))).await
        })
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call of `book` was under way when another one came")]
async fn replays_behind_a_wait_are_reported() {
    let (seats, engine) = (Mutex::new(0), engine());
    let call = async || call(&engine, "book", 1).run(async || Ok::<_, Error>(book(&seats))).await;
    call().await.unwrap();
    run_concurrently(64, async |_| {
        yield_now().await;
        call().await
    })
    .await;
}

#[tokio::test]
async fn detached_calls_whose_bodies_wait_are_looked_at() {
    let (bank, engine) = (Bank::default(), engine());
    let answers =
        run_concurrently(64, |_| pay_detached(7, bank.clone()).with_engine(&engine)).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(bank.charges(7), 1);
}

#[tokio::test]
#[should_panic(expected = "could not look: no body of `charge` waited while another call of it \
    was under way")]
async fn detached_calls_whose_bodies_never_wait_are_reported() {
    let (bank, engine) = (Bank::default(), engine());
    run_concurrently(64, |_| charge_detached(7, bank.clone()).with_engine(&engine)).await;
}

#[tokio::test]
async fn a_body_that_makes_calls_one_after_the_other_is_looked_at() {
    let (bank, engine) = (Bank::default(), engine());
    run_concurrently(64, async |_| {
        let order = async || {
            for item in [1, 2] {
                let charge = async || Ok::<_, Error>(bank.charge_over_there(item).await);
                call(&engine, "charge", item).run(charge).await?;
            }
            Ok::<_, Error>(())
        };
        call(&engine, "order", 1).run(order).await
    })
    .await;
    assert_eq!([bank.charges(1), bank.charges(2)], [1, 1]);
}
