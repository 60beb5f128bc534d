//! Stored bytes that are no record, or no result: an error, never a panic, never a rerun.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use idempotency::clock::Timestamp;
use idempotency::key::KeyHash;
use idempotency::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Facets, Operation, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal, Resolve,
    Scan, Store, StoreError, Token, Watch, WriteOutcome, envelope, transition,
};
use idempotency::{Error, ErrorKind, Idempotency, OnError};
use proptest::prelude::*;

use crate::ledger::Ledger;
use crate::world::{DAY, OPERATION, World};

/// Keeps every record as bytes, as Redis does.
#[derive(Clone, Debug, Default)]
struct ByteStore(Arc<Mutex<HashMap<KeyHash, Vec<u8>>>>);

impl ByteStore {
    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    /// Applies `transition` to the stored bytes.
    fn apply<T>(
        &self,
        key: KeyHash,
        transition: impl FnOnce(&mut Option<Record>) -> T,
    ) -> Result<T, StoreError> {
        let mut records = self.0.lock().unwrap();
        let bytes = records.get(&key).cloned().map(Bytes::from);
        let record = bytes.map(|bytes| envelope::decode(key, bytes, Self::NOW)).transpose();
        let mut slot = record.map_err(|error| error.during(Operation::Read))?;
        let answer = transition(&mut slot);
        match slot {
            Some(record) => records.insert(key, envelope::encode(&record)),
            None => records.remove(&key),
        };
        Ok(answer)
    }
}

impl Store for ByteStore {
    fn name(&self) -> &'static str {
        "bytes"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::in_process()
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none()
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        self.apply(claim.key, |slot| transition::claim(slot, &claim, Self::NOW))
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        renewals
            .iter()
            .map(|one| self.apply(one.key, |slot| transition::renew(slot, one, Self::NOW)))
            .collect()
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        self.apply(commit.key, |slot| transition::complete(slot, &commit, Self::NOW))
    }

    async fn release(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        self.apply(release.key, |slot| transition::release(slot, &release, Self::NOW))
    }

    async fn abandon(&self, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        self.apply(abandon.key, |slot| transition::abandon(slot, &abandon, Self::NOW))
    }

    async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
        self.apply(park.key, |slot| transition::park(slot, &park, Self::NOW))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        self.apply(checkpoint.key, |slot| transition::checkpoint(slot, &checkpoint, Self::NOW))
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        self.apply(key, |slot| transition::fence(slot, token, Self::NOW))
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        self.apply(key, |slot| transition::read(slot, Self::NOW))
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        Ok(Watch::new(self.read(key).await?, tokio::time::sleep(Duration::from_millis(5))))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        self.apply(resolve.key, |slot| transition::resolve(slot, &resolve, Self::NOW))
    }

    async fn remove(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        self.apply(remove.key, |slot| transition::remove(slot, &remove, Self::NOW))
    }

    async fn scan(&self, _: Scan) -> Result<Page, StoreError> {
        Ok(Page::default())
    }

    async fn census(&self, _: CensusBudget) -> Result<Census, StoreError> {
        Ok(Census::new())
    }

    async fn purge(&self, _: usize) -> Result<PurgeOutcome, StoreError> {
        Ok(PurgeOutcome::default())
    }
}

/// Calls on a store that holds `bytes` under the key; tells what came of it and how often the body
/// ran.
fn call_on_bytes(bytes: Vec<u8>) -> (Result<String, Error>, usize) {
    let store = ByteStore::default();
    let ledger = Ledger::new();
    let engine = Idempotency::builder(store.clone()).build().unwrap();
    let key = engine.record(OPERATION, 1).hash().unwrap();
    store.0.lock().unwrap().insert(key, bytes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(engine.call(OPERATION, 1).ttl(DAY).run(|| async {
        ledger.charge("charge");
        Ok::<_, Error>("charged".to_owned())
    }));
    (result, ledger.count())
}

fn completed_record() -> Vec<u8> {
    let engine = Idempotency::new(ByteStore::default());
    let key = engine.record(OPERATION, 1).hash().unwrap();
    let (claim, mut slot) = (Claim::new(key, Token::from_bits(7), OPERATION.into()), None);
    transition::claim(&mut slot, &claim, ByteStore::NOW);
    let commit = Commit::new(key, claim.token, "\"stored\"".into(), DAY);
    transition::complete(&mut slot, &commit, ByteStore::NOW);
    envelope::encode(&slot.unwrap())
}

#[test]
fn a_readable_record_replays() {
    let (result, charges) = call_on_bytes(completed_record());
    assert_eq!((result.unwrap().as_str(), charges), ("stored", 0));
}

#[test]
fn a_record_of_an_unknown_format_is_decode_and_never_a_rerun() {
    let mut bytes = completed_record();
    bytes[0] = 250;
    let (result, charges) = call_on_bytes(bytes);
    let error = result.unwrap_err();
    assert_eq!((error.kind(), charges), (ErrorKind::Decode, 0));
    let chain: Vec<_> =
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .collect();
    let reason = chain.last().unwrap().to_string();
    assert!(reason.contains("version 250"), "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_in_place_of_a_record_never_run_the_body(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (result, charges) = call_on_bytes(bytes);
        prop_assert_eq!(result.unwrap_err().kind(), ErrorKind::Decode);
        prop_assert_eq!(charges, 0);
    }

    #[test]
    fn a_truncated_record_never_runs_the_body(length in 0..completed_record().len()) {
        let (result, charges) = call_on_bytes(completed_record()[..length].to_vec());
        prop_assert_eq!(result.unwrap_err().kind(), ErrorKind::Decode);
        prop_assert_eq!(charges, 0);
    }

    #[test]
    fn arbitrary_bytes_in_place_of_a_result_never_run_the_body(body in prop::collection::vec(any::<u8>(), 0..60)) {
        let readable = serde_json::from_slice::<u32>(&body).ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (result, charges) = runtime.block_on(async {
            let world = World::new();
            let key = world.engine.record(OPERATION, 1).hash().unwrap();
            world.memory.claim(Claim::new(key, Token::from_bits(7), OPERATION.into())).await.unwrap();
            world.memory.complete(Commit::new(key, Token::from_bits(7), body.into(), DAY)).await.unwrap();
            let call = world.call(1).run(|| async {
                world.effect(1)?;
                Ok::<_, Error>(1_u32)
            });
            (call.await, world.ledger.count())
        });
        if let Some(value) = readable {
            prop_assert_eq!(result.unwrap(), value);
        } else {
            prop_assert_eq!(result.unwrap_err().kind(), ErrorKind::Decode);
        }
        prop_assert_eq!(charges, 0);
    }
}

#[tokio::test]
async fn a_result_of_another_schema_version_is_decode_unless_it_can_be_upgraded() {
    let world = World::new();
    world.call(1).run(|| async { Ok::<_, Error>(7_u32) }).await.unwrap();
    let newer = world.call(1).version(1).run(|| async { world.effect(1) }).await;
    assert_eq!(newer.unwrap_err().kind(), ErrorKind::Decode);
    let upgraded = world.call(1).version(1).run_with_upgrade(
        |version, bytes| (version == 0).then(|| format!("was {}", String::from_utf8_lossy(bytes))),
        || async { world.effect(1) },
    );
    assert_eq!(upgraded.await.unwrap(), "was 7");
    let refused =
        world.call(1).version(1).run_with_upgrade(|_, _| None, || async { world.effect(1) });
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_stored_error_of_another_schema_version_is_decode_unless_it_can_be_upgraded() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Failure(String);
    impl From<Error> for Failure {
        fn from(error: Error) -> Self {
            Self(format!("{:?}", error.kind()))
        }
    }
    let world = World::new();
    let call = |version| world.call(1).version(version).on_error(OnError::Store);
    let declined = call(0).run(|| async { Err::<String, _>(Failure("declined".into())) });
    assert_eq!(declined.await, Err(Failure("declined".into())));
    let run = || async { Ok::<_, Failure>(world.effect(1).unwrap()) };
    assert_eq!(call(1).run(run).await, Err(Failure("Decode".into())));
    let result_only = call(1).run_with_upgrade(|_, _| Some(String::new()), run);
    assert_eq!(result_only.await, Err(Failure("Decode".into())), "it is no result");
    let upgraded = call(1).run_with_upgrades(
        |_, _| Some(String::new()),
        |version, bytes| {
            (version == 0).then(|| Failure(format!("was {}", String::from_utf8_lossy(bytes))))
        },
        run,
    );
    assert_eq!(upgraded.await, Err(Failure(r#"was "declined""#.into())));
    let refused = call(1).run_with_upgrades(|_, _| None, |_, _| None, run);
    assert_eq!(refused.await, Err(Failure("Decode".into())));
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_decode_error_does_not_quote_the_stored_result() {
    let world = World::new();
    world
        .call(1)
        .run(|| async { Ok::<_, Error>("card 4242424242424242".to_owned()) })
        .await
        .unwrap();
    let error = world.call(1).run(|| async { Ok::<_, Error>(1_u32) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    let chain =
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let texts: Vec<String> = chain.map(|error| format!("{error} {error:?}")).collect();
    assert_eq!(texts.len(), 2, "the error, and where decoding failed");
    assert!(!texts.concat().contains("4242"));
}

#[tokio::test]
async fn a_result_is_stored_with_the_schema_version_of_its_call() {
    let world = World::new();
    for _ in 0..2 {
        let result = world.call(1).version(3).run(|| async { world.effect(1) }).await;
        assert_eq!(result.unwrap(), "receipt 1.1");
    }
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(world.ledger.count(), 1);
}
