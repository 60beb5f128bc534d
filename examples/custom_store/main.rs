//! A custom store, and a service that uses it. The store is complete: `file_store.rs` contains its
//! operations, `directory.rs` keeps the records.
//!
//! ```sh
//! cargo run --example custom_store
//! ```
//!
//! `tests/conformance/file.rs` checks it against every rule of the protocol, with
//! `idempotency::testing::conformance!` (feature `testing`).

mod directory;
mod file_store;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use file_store::FileStore;
use futures::future::join_all;
use idempotency::clock::SystemClock;
use idempotency::{Error, ErrorKind, Idempotency, WithEngine as _, idempotent};

/// The world outside of the service: labels that were printed stay printed.
#[derive(Default)]
struct LabelPrinter {
    printed: AtomicU32,
}

impl LabelPrinter {
    fn print(&self) -> u32 {
        self.printed.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn printed(&self) -> u32 {
        self.printed.load(Ordering::Relaxed)
    }
}

#[idempotent(key = parcel, ttl = "7 days", name = "shop.label")]
async fn label(printer: &LabelPrinter, parcel: &str) -> Result<String, Error> {
    tokio::task::yield_now().await;
    Ok(format!("label {} for {parcel}", printer.print()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let printer = LabelPrinter::default();

    let engine = open(directory.path())?;
    println!("first call:     {}", label(&printer, "parcel-1").with_engine(&engine).await?);
    println!("second call:    {}", label(&printer, "parcel-1").with_engine(&engine).await?);

    let labels = join_all((0..32).map(|_| label(&printer, "parcel-2").with_engine(&engine))).await;
    let labels = labels.into_iter().collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(
        labels.iter().all(|label| *label == labels[0]),
        "the callers got different labels: {labels:?}"
    );
    println!("32 at once:     {}", labels[0]);

    drop(engine);
    let engine = open(directory.path())?;
    println!("after restart:  {}", label(&printer, "parcel-1").with_engine(&engine).await?);

    let record = engine.record("shop.label", "parcel-1").hash()?;
    fs::write(directory.path().join(record.to_hex()), "no record")?;
    let Err(error) = label(&printer, "parcel-1").with_engine(&engine).await else {
        anyhow::bail!("a damaged record was taken for a result");
    };
    anyhow::ensure!(error.kind() == ErrorKind::Decode, "{error}");
    println!("damaged record: {error}");

    anyhow::ensure!(
        printer.printed() == 2,
        "{} labels were printed for 2 parcels",
        printer.printed()
    );
    println!("labels printed: {} for 2 parcels", printer.printed());
    Ok(())
}

fn open(directory: &Path) -> anyhow::Result<Idempotency> {
    let store = FileStore::open(directory, SystemClock::new());
    let store = store.with_context(|| format!("cannot open {}", directory.display()))?;
    Ok(Idempotency::new(store))
}
