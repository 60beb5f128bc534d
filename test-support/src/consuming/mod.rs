//! Consumers of a real broker: processes that are killed, stopped and poisoned, and how their
//! messages end then. What is true of all brokers is tested here once.
//!
//! An adapter's tests implement [`Broker`] for the queue of one test, and [`Protocol`] for the way
//! to it, on which acknowledgements can be lost. Their test functions call the runs: [`kills`],
//! [`fleet`], [`stalls`] and [`transactions`]. A worker is the same test binary again, in which one test
//! [obeys](obey) its [`Orders`], and another [books](book) what its [`Bookings`] say.

mod bookings;
mod broker;
mod example;
pub mod fleet;
pub mod kills;
pub mod stalls;
pub mod transactions;
mod wire;
mod worker;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::LocalBoxFuture;
use idempotent_runtime::Idempotency;
use idempotent_runtime::inbox::{ConsumeError, Consumer, FailurePolicy, Inbox, Source};
use idempotent_runtime::store::MemoryStore;

pub use bookings::{Bookings, book};
pub use broker::{Address, Broker};
pub use example::example_prints;
pub use wire::{LostAcks, Protocol, Wire};
pub use worker::{AT_ONCE, BEGUN, Orders, PLACES, POISON, obey, quiet, store};

use crate::deadline::within;
use crate::effects::EffectLog;

/// The time for which messages are recognised.
pub const DAY: Duration = Duration::from_secs(86_400);

/// Returns an engine whose store is this process.
pub fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

/// Returns an inbox whose pauses are short.
pub fn inbox(engine: &Idempotency) -> Inbox {
    Inbox::new(engine.clone(), "billing", DAY)
        .with_backoff(Duration::from_millis(100), Duration::from_secs(1))
}

/// Returns the ids `first-0`, `first-1`, and so on.
pub fn ids(first: &str, count: usize) -> impl Iterator<Item = String> + Clone + use<> {
    let first = first.to_owned();
    (0..count).map(move |number| format!("{first}-{number}"))
}

/// Writes the effect of most tests: a line with the payload.
///
/// # Panics
/// If it cannot be written.
pub fn append_payload(effects: &EffectLog, payload: &[u8]) {
    effects.append(&String::from_utf8_lossy(payload)).expect("the effect is written");
}

/// Consumes until `until` is done, and returns how that was.
///
/// # Panics
/// If a message is left in hand.
pub fn consume<'u, S, P, H, F>(
    inbox: Inbox<P>,
    source: S,
    handler: H,
    until: impl Future<Output = anyhow::Result<()>> + 'u,
) -> LocalBoxFuture<'u, anyhow::Result<Result<(), ConsumeError<S::Error>>>>
where
    S: Source,
    P: FailurePolicy<&'static str> + Send + Sync + 'static,
    H: Fn(Arc<S::Message>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), &'static str>> + Send + 'static,
{
    Box::pin(async move {
        let mut result = Ok(());
        let stop = async { result = until.await };
        let consumer = Consumer::new(inbox, source);
        let ended = within("the consumer to end", consumer.run(stop, handler)).await?;
        result.context("while consuming")?;
        Ok(ended.map(|drained| assert_eq!(drained.left, 0)))
    })
}

/// Consumes until nothing is left: what a consumer had in hand when it stopped, and what it has
/// acknowledged just before, which a broker may not have noticed.
///
/// # Errors
/// If something is left at the deadline.
pub async fn finish<B: Broker>(broker: &B, inbox: &Inbox) -> anyhow::Result<()> {
    let finished = within("nothing to be left", async {
        while broker.left().await?.0 > 0 {
            let (source, handler) = (broker.source().await?, handler(broker));
            consume(inbox.clone(), source, handler, broker.is_empty()).await??;
        }
        anyhow::Ok(())
    });
    finished.await?
}

/// Returns the handler of most tests: its effect is a line with the payload.
pub fn handler<B: Broker>(
    broker: &B,
) -> impl Fn(Arc<MessageOf<B>>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<B>
{
    let effects = broker.effects().clone();
    move |message| {
        append_payload(&effects, B::payload(&message));
        std::future::ready(Ok(()))
    }
}

/// The messages of a broker.
pub type MessageOf<B> = <<B as Broker>::Source as Source>::Message;

/// Returns the server in `place`, which is started by the first test that asks: outside of the
/// runtime of that test, since the others need the server when the test has ended.
///
/// # Errors
/// If the runtime is shut down.
///
/// # Panics
/// If the server does not start.
pub async fn shared<S, F>(
    place: &'static OnceLock<S>,
    start: impl FnOnce() -> F + Send + 'static,
) -> anyhow::Result<&'static S>
where
    S: Send + Sync,
    F: Future<Output = anyhow::Result<S>>,
{
    let start = move || {
        place.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(start()).expect("the server starts")
        })
    };
    Ok(tokio::task::spawn_blocking(start).await?)
}
