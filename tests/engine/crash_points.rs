//! `crash_at_every_await` finds what is charged twice wherever the charge is, or says that it could
//! not look.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::store::MemoryStore;
use idempotency::testing::crash_at_every_await;
use idempotency::{Error, ErrorKind, Idempotency, OnCrash};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How often a planted fault must be found.
const RUNS: usize = 20;

/// The books of what is outside.
#[derive(Clone, Debug, Default)]
struct Bank(Arc<Mutex<HashMap<usize, usize>>>);

impl Bank {
    fn charge(&self, order: usize) {
        *self.0.lock().unwrap().entry(order).or_default() += 1;
    }

    fn charges(&self, order: usize) -> usize {
        self.0.lock().unwrap().get(&order).copied().unwrap_or_default()
    }

    /// Charges for each order that it reads from a socket, and says so.
    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (bank, address) = (self.clone(), listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let bank = bank.clone();
                tokio::spawn(async move {
                    while let Ok(order) = socket.read_u64().await {
                        bank.charge(usize::try_from(order).unwrap());
                        let _ = socket.write_u8(1).await;
                    }
                });
            }
        });
        address
    }
}

async fn charge_over_a_socket(bank: SocketAddr, order: usize) -> Result<(), Error> {
    let mut socket = TcpStream::connect(bank).await.unwrap();
    socket.write_u64(order as u64).await.unwrap();
    socket.read_u8().await.unwrap();
    Ok(())
}

/// Charges in a task that nobody awaits, after some time.
fn charge_later(
    bank: &Bank,
    order: usize,
    delay: Duration,
) -> impl Future<Output = Result<(), Error>> + use<> {
    let bank = bank.clone();
    async move {
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            bank.charge(order);
        });
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// Whether the tool says of this service, which retries after a crash, that it charges twice.
async fn finds<F: Future<Output = Result<(), Error>>>(
    policy: OnCrash,
    bank: &Bank,
    charge: impl Fn(usize) -> F,
) -> bool {
    let engine = Idempotency::new(MemoryStore::new());
    let call = |order: usize| {
        let charge = &charge;
        engine
            .call("charge", order as u64)
            .ttl(Duration::from_secs(3600))
            .on_crash(policy)
            .run(move || charge(order))
    };
    let mut is_found = false;
    let points = crash_at_every_await(call, async |order, _| {
        let _ = call(order).await;
        is_found |= bank.charges(order) > 1;
    })
    .await;
    assert!(points > 0);
    is_found
}

/// Runs `check` on both kinds of runtime.
fn on_each_runtime<F: Future<Output = ()>>(check: impl Fn() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(check());
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(check());
}

#[test]
fn a_double_charge_over_a_socket_is_found_every_time() {
    on_each_runtime(async || {
        for run in 0..RUNS {
            let bank = Bank::default();
            let address = bank.listen().await;
            let is_found =
                finds(OnCrash::Retry, &bank, |order| charge_over_a_socket(address, order)).await;
            assert!(is_found, "run {run}: {bank:?}");
        }
    });
}

#[test]
fn a_double_charge_in_a_spawned_task_is_found_every_time() {
    on_each_runtime(async || {
        for run in 0..RUNS {
            let bank = Bank::default();
            let charge = |order| {
                let bank = bank.clone();
                async move {
                    tokio::spawn(async move { bank.charge(order) }).await.unwrap();
                    Ok(())
                }
            };
            assert!(finds(OnCrash::Retry, &bank, charge).await, "run {run}");
        }
    });
}

#[test]
fn a_double_charge_after_a_timer_is_found_every_time() {
    on_each_runtime(async || {
        for run in 0..RUNS {
            let bank = Bank::default();
            let charge = |order| {
                let bank = bank.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    bank.charge(order);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Ok(())
                }
            };
            assert!(finds(OnCrash::Retry, &bank, charge).await, "run {run}");
        }
    });
}

#[test]
fn a_double_charge_after_a_timer_in_a_task_that_nobody_awaits_is_found_every_time() {
    on_each_runtime(async || {
        for run in 0..RUNS / 4 {
            let bank = Bank::default();
            let charge = |order| charge_later(&bank, order, Duration::from_millis(50));
            assert!(finds(OnCrash::Retry, &bank, charge).await, "run {run}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_brings_the_timers_of_tasks_that_nobody_awaits() {
    let bank = Bank::default();
    let charge = |order| charge_later(&bank, order, Duration::from_secs(3600));
    assert!(finds(OnCrash::Retry, &bank, charge).await);
}

#[tokio::test(start_paused = true)]
async fn with_a_paused_clock_every_retry_of_a_dropped_call_gets_its_answer() {
    let (bank, engine) = (Bank::default(), Idempotency::new(MemoryStore::new()));
    let call = |order: usize| {
        let bank = bank.clone();
        engine.call("charge", order as u64).ttl(Duration::from_secs(3600)).run(move || async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tokio::spawn(async move { bank.charge(order) }).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Error>(())
        })
    };
    let points = crash_at_every_await(call, async |order, _| match call(order).await {
        Ok(()) => assert_eq!(bank.charges(order), 1),
        Err(error) => assert_eq!(
            (error.kind(), bank.charges(order) <= 1),
            (ErrorKind::InDoubt, true),
            "{error}"
        ),
    });
    assert!(points.await >= 3);
}

#[test]
fn a_service_that_holds_passes_over_a_socket() {
    on_each_runtime(async || {
        let bank = Bank::default();
        let address = bank.listen().await;
        assert!(!finds(OnCrash::Hold, &bank, |order| charge_over_a_socket(address, order)).await);
    });
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside")]
async fn a_call_that_never_waits_is_reported() {
    let bank = Bank::default();
    let charge = |order| {
        bank.charge(order);
        std::future::ready(Ok(()))
    };
    finds(OnCrash::Retry, &bank, charge).await;
}

#[tokio::test]
#[should_panic(expected = "tasks that calls left behind still run")]
async fn tasks_that_go_on_for_longer_than_anybody_looks_are_reported() {
    let bank = Bank::default();
    let charge = |order| charge_later(&bank, order, Duration::from_secs(3600));
    finds(OnCrash::Retry, &bank, charge).await;
}

#[tokio::test]
async fn every_point_is_met_from_both_sides() {
    let (begun, gone_on) = (Mutex::new(HashMap::new()), Mutex::new(HashMap::new()));
    let call = |number| {
        let (begun, gone_on) = (&begun, &gone_on);
        async move {
            for part in 1..=3 {
                begun.lock().unwrap().insert(number, part);
                tokio::task::yield_now().await;
                gone_on.lock().unwrap().insert(number, part);
            }
        }
    };
    let mut looks = HashMap::new();
    let points = crash_at_every_await(call, async |number, output| {
        looks.entry(number).or_insert_with(Vec::new).push(output.is_some());
    })
    .await;
    assert_eq!(points, 3);
    // The first is left in peace, then two for each point, and those that find no other point.
    let (begun, gone_on) = (begun.into_inner().unwrap(), gone_on.into_inner().unwrap());
    let parts: Vec<_> = (1..=7)
        .map(|number| (begun[&number], gone_on.get(&number).copied().unwrap_or(0)))
        .collect();
    assert_eq!(
        parts,
        [(3, 3), (1, 0), (1, 0), (2, 1), (2, 1), (3, 2), (3, 2)],
        "dropped when it began to wait, and when it was about to go on"
    );
    for (number, seen) in looks {
        assert_eq!(
            seen,
            [!(2..=7).contains(&number), false],
            "call {number}: at once, and at the end"
        );
        assert_eq!(
            begun[&number] == 3 && gone_on.get(&number) == Some(&3),
            seen[0],
            "call {number}"
        );
    }
}
