//! The names and shapes that programs are compiled against.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::record::{Resolution, State};
use idempotency::store::{DynStore, MemoryStore};
use idempotency::task::OnEngine;
use idempotency::{
    Context, Error, ErrorAction, ErrorKind, Idempotency, InCurrentCall as _, OnConflict, OnCrash,
    OnError, WithEngine as _, idempotent,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Order {
    id: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt(String);

#[derive(Debug, thiserror::Error)]
enum PayError {
    #[error(transparent)]
    Idempotency(#[from] Error),
}

#[idempotent(key = order.id, ttl = "24h")]
async fn charge(order: &Order) -> Result<Receipt, PayError> {
    Ok(Receipt(format!("receipt {}", order.id)))
}

#[tokio::test]
async fn an_engine_is_made_from_a_store_with_settings_and_from_a_url() -> Result<(), Error> {
    let _plain = Idempotency::new(MemoryStore::new());
    let _with_settings = Idempotency::builder(MemoryStore::new())
        .namespace("shop")
        .lease(Duration::from_secs(30))
        .on_conflict(OnConflict::Wait(Duration::from_secs(10)))
        .build()?;
    let from_url = Idempotency::connect("memory:").await?;
    assert_eq!(
        charge(&Order { id: 1 }).with_engine(&from_url).await.unwrap(),
        Receipt("receipt 1".into())
    );
    Ok(())
}

#[tokio::test]
async fn a_scheme_of_ones_own_is_registered_in_five_lines() -> Result<(), Error> {
    idempotency::store::register_scheme("contract", async |url: String| {
        assert_eq!(url, "contract:own");
        Ok(MemoryStore::new())
    })?;
    let engine = Idempotency::connect("contract:own").await?;
    let receipt = charge(&Order { id: 8 }).with_engine(&engine).await.unwrap();
    assert_eq!(receipt, Receipt("receipt 8".into()));
    let store: Arc<dyn DynStore> = idempotency::store::connect("contract:own").await?;
    assert_eq!(store.name(), "memory");
    Ok(())
}

#[tokio::test]
async fn an_engine_takes_a_store_that_is_chosen_while_the_program_runs() {
    let store: Arc<dyn DynStore> = Arc::new(MemoryStore::new());
    let engine = Idempotency::new(store.clone());
    let first = charge(&Order { id: 7 }).with_engine(&engine).await.unwrap();
    // Both engines see the records of the store inside.
    let record = Idempotency::new(store).record("contract::charge", 7_u64).inspect().await.unwrap();
    assert_eq!((first, record.unwrap().state), (Receipt("receipt 7".into()), State::Completed));
}

#[tokio::test]
async fn a_future_with_an_engine_has_a_name_and_can_be_spawned() {
    /// A future kept in a struct.
    struct Kept<F> {
        future: OnEngine<F>,
    }
    let engine = Idempotency::new(MemoryStore::new());
    let kept = Kept { future: async { charge(&Order { id: 2 }).await }.with_engine(&engine) };
    drop(engine);
    assert!(tokio::spawn(kept.future).await.unwrap().is_ok());
}

/// Reports whether a call surrounds it where it is dropped.
struct Reports(Arc<AtomicBool>);

impl Drop for Reports {
    fn drop(&mut self) {
        self.0.store(Context::try_current().is_some(), Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_future_in_a_call_is_dropped_in_it() -> Result<(), Error> {
    let engine = Idempotency::new(MemoryStore::new());
    let surrounded = Arc::new(AtomicBool::new(false));
    let reports = Reports(Arc::clone(&surrounded));
    let call = engine.call("payments.charge", 9).ttl(Duration::from_secs(60)).run(|| async {
        let waits = async move {
            let _reports = reports;
            std::future::pending::<()>().await;
        };
        let task = tokio::spawn(waits.in_current_call());
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        Ok::<_, Error>(())
    });
    call.await?;
    assert!(surrounded.load(Ordering::Relaxed));
    Ok(())
}

#[tokio::test]
async fn a_call_takes_closures_and_async_closures() {
    let engine = Idempotency::new(MemoryStore::new());
    let order = Order { id: 3 };
    let receipt: Result<Receipt, PayError> = engine
        .call("payments.charge", order.id)
        .ttl(Duration::from_secs(86_400))
        .fingerprint(&order)
        .on_crash(OnCrash::Retry)
        .run(|| async { Ok(Receipt("first".into())) })
        .await;
    let again: Result<Receipt, PayError> = engine
        .call("payments.charge", order.id)
        .ttl(Duration::from_secs(86_400))
        .fingerprint(&order)
        .on_conflict(OnConflict::Reject)
        .run(async || Ok(Receipt("second".into())))
        .await;
    assert_eq!(receipt.unwrap(), again.unwrap());
}

#[tokio::test]
async fn an_observer_sees_what_a_call_did() {
    let engine = Idempotency::new(MemoryStore::new());
    let order = Order { id: 4 };
    for replayed in [false, true] {
        let (result, report) = idempotency::with_report(charge(&order)).with_engine(&engine).await;
        let report = report.unwrap();
        assert!(result.is_ok());
        assert_eq!((report.replayed, report.waited, report.attempt), (replayed, false, 1));
        assert_eq!(
            Ok(report.key),
            engine.record("contract::charge", order.id).hash().map_err(|_| ())
        );
    }
}

#[tokio::test]
async fn a_record_is_inspected_resolved_and_forgotten() -> Result<(), Error> {
    let engine = Idempotency::new(MemoryStore::new());
    let record = engine.record("payments.charge", 5).scope("tenant-7");
    let call = engine.call("payments.charge", 5).scope("tenant-7").ttl(Duration::from_secs(60));
    let held: Result<(), Error> = call
        .on_error(ErrorAction::Hold)
        .run(|| async { Err(engine.find("none").await.unwrap_err()) })
        .await;
    assert!(held.is_err());
    let view = record.inspect().await?.unwrap();
    let _ = (
        view.created,
        view.expires,
        view.attempts,
        view.fence,
        view.size,
        view.reason,
        view.revision,
    );
    assert_eq!(view.state, State::InDoubt);
    record.resolve(&view, Resolution::completed(Receipt("found".into()))).await?;
    assert!(record.resolve(&view, Resolution::not_executed()).await.is_err());
    assert!(record.resolve(&view, Resolution::failed("declined")).await.is_err());
    let by_hash = engine.record_by_hash(view.key);
    let found: Vec<KeyHash> = engine.find(&view.key.to_string()).await?;
    assert_eq!(found, [view.key]);
    assert_eq!(by_hash.inspect().await?.unwrap().state, State::Completed);
    record.forget().await?;
    assert!(record.inspect().await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_body_asks_its_context() -> Result<(), Error> {
    assert!(Context::try_current().is_none());
    let engine = Idempotency::new(MemoryStore::new());
    let call = engine.call("payments.charge", 6).ttl(Duration::from_secs(60)).run(|| async {
        let ctx = Context::current();
        let _: (u32, u64, bool) = (ctx.attempt(), ctx.fence().await?, ctx.lease_lost());
        let derived: String = ctx.derive_key("psp");
        let moved = tokio::spawn(async { Context::current().key() }.in_current_call());
        assert_eq!(moved.await.unwrap(), ctx.key());
        Ok::<_, Error>(derived)
    });
    assert!(call.await?.len() <= 64);
    Ok(())
}

#[tokio::test]
async fn an_error_tells_kind_operation_key_store_and_source() {
    let engine = Idempotency::new(MemoryStore::new());
    let call = engine.call("payments.charge", None::<u64>).ttl(Duration::from_secs(60));
    let result: Result<(), Stored> =
        call.on_error(OnError::Store).run(|| async { Err(Stored::Declined) }).await;
    let Err(Stored::Idempotency(error)) = result else { panic!("the call has no key") };
    assert_eq!(
        (error.kind(), error.operation(), error.key()),
        (ErrorKind::MissingKey, Some("payments.charge"), None)
    );
    assert!(!error.is_retryable() && error.retry_after().is_none() && error.store().is_none());
    let wrapped = anyhow::Error::from(PayError::from(error));
    assert!(Error::find(wrapped.as_ref()).is_some());
    let kinds = [
        ErrorKind::InProgress,
        ErrorKind::Mismatch,
        ErrorKind::InDoubt,
        ErrorKind::MissingKey,
        ErrorKind::InvalidKey,
        ErrorKind::StoreUnavailable,
        ErrorKind::NotStored,
        ErrorKind::TooLarge,
        ErrorKind::Full,
        ErrorKind::Encode,
        ErrorKind::Decode,
        ErrorKind::Superseded,
        ErrorKind::StepInterrupted,
        ErrorKind::Expired,
        ErrorKind::Reentrant,
        ErrorKind::Config,
        ErrorKind::Unsupported,
        ErrorKind::NotInstalled,
        ErrorKind::ShuttingDown,
    ];
    assert_eq!(kinds.len(), 19);
}

/// An error that can be stored.
#[derive(Debug, Serialize, Deserialize)]
enum Stored {
    Declined,
    #[serde(skip)]
    Idempotency(Error),
}

impl From<Error> for Stored {
    fn from(error: Error) -> Self {
        Self::Idempotency(error)
    }
}

#[tokio::test]
async fn an_engine_is_installed_once_and_drained_at_the_end() -> Result<(), Error> {
    let engine = Idempotency::new(MemoryStore::new());
    assert_eq!(
        charge(&Order { id: 7 }).await.map_err(|PayError::Idempotency(error)| error.kind()),
        Err(ErrorKind::NotInstalled)
    );
    engine.clone().install()?;
    assert!(engine.clone().install().is_err());
    assert!(charge(&Order { id: 7 }).await.is_ok());
    engine.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
