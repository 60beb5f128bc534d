//! The same annotated service on any store, named by a variable. Nothing else changes.
//!
//! ```sh
//! cargo run --features redis --example swap_store
//! STORE_URL=redis://127.0.0.1/ cargo run --features redis --example swap_store   # run it twice: the second run replays
//! ```

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use idempotency::record::State;
use idempotency::{Error, ErrorKind, Idempotency, idempotent, with_report};

/// The service. It does not know the store.
#[derive(Default)]
struct Warehouse {
    parcels_packed: AtomicU32,
}

impl Warehouse {
    #[idempotent(name = "warehouse.pack", key = order, ttl = "24h", fingerprint = item)]
    async fn pack(&self, order: &str, item: &str) -> Result<String, Error> {
        self.parcels_packed.fetch_add(1, Ordering::Relaxed);
        Ok(format!("parcel with {item} for {order}"))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let url = std::env::var("STORE_URL").unwrap_or_else(|_| "memory:".into());
    match run(&url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(url: &str) -> Result<(), Error> {
    let engine = Idempotency::connect(url).await?;
    engine.clone().install()?;
    // The part after the scheme may contain a password.
    println!("store:          {}", url.split(':').next().unwrap_or_default());

    let warehouse = Warehouse::default();
    let (first, report) = with_report(warehouse.pack("order-1", "a lamp")).await;
    let replayed = report.is_some_and(|report| report.replayed);
    println!(
        "first call:     {} ({})",
        first?,
        if replayed { "packed by an earlier run" } else { "packed now" }
    );
    println!("second call:    {}", warehouse.pack("order-1", "a lamp").await?);

    let (one, other) =
        tokio::join!(warehouse.pack("order-2", "a chair"), warehouse.pack("order-2", "a chair"));
    println!("two at once:    {}, {}", one?, if other.is_ok() { "both" } else { "one failed" });

    match warehouse.pack("order-1", "a piano").await {
        Err(error) if error.kind() == ErrorKind::Mismatch => {
            println!("another item:   refused, {:?}", error.kind());
        }
        other => println!("another item:   {}", other?),
    }

    let view = engine.record("warehouse.pack", "order-1").inspect().await?;
    let state =
        view.map_or(
            "no record",
            |view| if view.state == State::Completed { "completed" } else { "open" },
        );
    println!("the record:     {state}");
    println!("parcels packed: {}", warehouse.parcels_packed.load(Ordering::Relaxed));
    Ok(())
}
