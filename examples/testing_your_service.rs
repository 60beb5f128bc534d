//! Tests of a service whose function is `#[idempotent]`: what to check, and how to use one store
//! per test.
//!
//! ```sh
//! cargo run --example testing_your_service
//! ```
//!
//! In your crate, each check is a `#[tokio::test]`. The `testing` feature adds more: calls that are
//! dropped at every point, a fault-injecting store and a manual clock. Its documentation,
//! `idempotency::testing`, shows a service with all of them.

use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency, WithEngine as _, idempotent, with_report};
use serde::{Deserialize, Serialize};

/// The service under test. It uses the engine of the current scope, so a test need not pass one.
#[idempotent(key = (show, seat), ttl = "1h", fingerprint = guest)]
async fn reserve(hall: &Hall, show: &str, seat: u32, guest: &str) -> Result<Ticket, Error> {
    tokio::task::yield_now().await; // other calls run while this body does
    Ok(hall.sell(show, seat, guest))
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ticket {
    number: usize,
    guest: String,
}

/// The fake of the outside world. It counts effects, knows nothing of engines, and the service
/// cannot change the count.
#[derive(Default)]
struct Hall {
    sold: Mutex<Vec<String>>,
}

impl Hall {
    fn sell(&self, show: &str, seat: u32, guest: &str) -> Ticket {
        let mut sold = self.sold.lock().unwrap_or_else(PoisonError::into_inner);
        sold.push(format!("{show}, seat {seat}"));
        Ticket { number: sold.len(), guest: guest.to_owned() }
    }

    fn sold(&self) -> Vec<String> {
        self.sold.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Creates an engine with a store of its own: tests may run in parallel and use the same keys.
fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

async fn a_retry_gets_the_first_ticket() -> Result<(), Error> {
    let (hall, engine) = (Hall::default(), engine());
    let first = reserve(&hall, "Hamlet", 7, "Ada").with_engine(&engine).await?;
    let (retry, report) =
        with_report(reserve(&hall, "Hamlet", 7, "Ada")).with_engine(&engine).await;
    assert_eq!(retry?, first);
    assert!(report.is_some_and(|report| report.replayed), "the retry came from the record");
    assert_eq!(hall.sold(), ["Hamlet, seat 7"]);
    Ok(())
}

async fn calls_at_once_share_one_ticket() -> Result<(), Error> {
    let (hall, engine) = (Hall::default(), engine());
    let calls =
        (0..50).map(|_| with_report(reserve(&hall, "Hamlet", 7, "Ada")).with_engine(&engine));
    let (tickets, reports): (Vec<_>, Vec<_>) = join_all(calls).await.into_iter().unzip();
    for ticket in tickets {
        assert_eq!(ticket?, Ticket { number: 1, guest: "Ada".to_owned() });
    }
    assert_eq!(
        reports.iter().flatten().filter(|report| report.joined).count(),
        49,
        "the calls overlapped"
    );
    assert_eq!(hall.sold(), ["Hamlet, seat 7"]);
    Ok(())
}

async fn another_guest_is_refused() -> Result<(), Error> {
    let (hall, engine) = (Hall::default(), engine());
    reserve(&hall, "Hamlet", 7, "Ada").with_engine(&engine).await?;
    let refused = reserve(&hall, "Hamlet", 7, "Grace").with_engine(&engine).await;
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::Mismatch));
    assert_eq!(hall.sold(), ["Hamlet, seat 7"]);
    Ok(())
}

async fn nothing_is_sold_without_a_store_that_remembers() {
    let hall = Hall::default();
    let full = Idempotency::new(MemoryStore::builder().max_records(0).build());
    let refused = reserve(&hall, "Hamlet", 7, "Ada").with_engine(&full).await;
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::Full));
    assert!(hall.sold().is_empty());
}

async fn another_store_knows_nothing() -> Result<(), Error> {
    let hall = Hall::default();
    reserve(&hall, "Hamlet", 7, "Ada").await?; // on the installed engine
    reserve(&hall, "Hamlet", 7, "Ada").with_engine(&engine()).await?;
    assert_eq!(
        hall.sold(),
        ["Hamlet, seat 7", "Hamlet, seat 7"],
        "each store let one call through"
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    engine().install()?; // as the service's own `main` does with its real store
    a_retry_gets_the_first_ticket().await?;
    println!("a retry gets the first ticket                   1 sold");
    calls_at_once_share_one_ticket().await?;
    println!("50 calls at once share one ticket               1 sold");
    another_guest_is_refused().await?;
    println!("another guest on the same seat is refused       1 sold");
    nothing_is_sold_without_a_store_that_remembers().await;
    println!("nothing is sold without a store that remembers  0 sold");
    another_store_knows_nothing().await?;
    println!("another store knows nothing: one sale each      2 sold");
    Ok(())
}
