//! What happens in an engine, for those who count, trace or audit it.
//!
//! An [`Observer`] is given to the [builder](crate::Builder::observer). It is called at the place
//! where something happens, in the order in which a call meets it, and with no lock that
//! another call needs. What an observer does has no influence on a call: if it panics, the panic is logged once
//! and counted ([`Idempotency::observer_panics`](crate::Idempotency::observer_panics)). It must not
//! block, because a renewal of leases may wait for it.
//!
//! Exactly one [`Finished`](What::Finished) is reported for each call that has an engine and whose
//! future was polled, however it ends: with a result, with an error, dropped or panicked. Nothing is allocated for an
//! event. Events have no keys, bodies, results or texts of the user's in them, only the name of the
//! record and names of the program.
//!
//! ```
//! # use std::time::Duration;
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use idempotency::events::{Event, Interest, Observer, Outcome, What};
//! # use idempotency::{Error, Idempotency, store::MemoryStore};
//!
//! #[derive(Default)]
//! struct Replays(AtomicU64);
//!
//! impl Observer for Replays {
//!     fn interest(&self) -> Interest {
//!         Interest::FINISHED
//!     }
//!
//!     fn observe(&self, event: &Event<'_>) {
//!         if let What::Finished { outcome: Outcome::Replayed(_), .. } = event.what {
//!             self.0.fetch_add(1, Ordering::Relaxed);
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let replays = Arc::new(Replays::default());
//! let engine = Idempotency::builder(MemoryStore::new()).observer(replays.clone()).build()?;
//! for _ in 0..3 {
//!     let call = engine.call("payments.charge", 4711).ttl(Duration::from_secs(60));
//!     call.run(|| async { Ok::<_, Error>("paid".to_owned()) }).await?;
//! }
//! assert_eq!(replays.0.load(Ordering::Relaxed), 2);
//! # Ok(())
//! # }
//! ```

mod event;
mod observer;

pub use event::{Event, Outcome, Source, What};
pub(crate) use observer::Observers;
pub use observer::{Interest, Observer};
