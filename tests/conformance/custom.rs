//! The store that the documentation of `idempotency::store` shows keeps every rule.

use std::sync::Arc;
use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{Claim, Store as _, Token};
use idempotency::testing::{ClockJump, ManualClock, Subject};

#[path = "../../idempotent-runtime/src/store/custom_store.rs"]
#[expect(unreachable_pub, reason = "the documentation shows a store as a library would export it")]
mod custom_store;

use custom_store::CustomStore;

struct Custom {
    store: Arc<CustomStore>,
    clock: ManualClock,
}

impl Custom {
    fn new() -> Self {
        let clock = ManualClock::new();
        Self { store: Arc::new(CustomStore::new(clock.clone())), clock }
    }
}

impl Subject for Custom {
    type Store = Arc<CustomStore>;

    fn store(&self) -> &Arc<CustomStore> {
        &self.store
    }

    async fn second(&self) -> Arc<CustomStore> {
        Arc::clone(&self.store)
    }

    async fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn jump_clock(&self, jump: ClockJump) -> bool {
        self.clock.jump(jump);
        true
    }
}

idempotency::testing::conformance!(|| async { Custom::new() });

#[tokio::test]
async fn a_purge_reports_how_many_records_it_has_removed() {
    let custom = Custom::new();
    for number in 1..=3 {
        let key = KeyHash::from_bytes([number; 32]);
        let mut claim = Claim::new(key, Token::from_bits(number.into()), "purged".into());
        claim.linger = Duration::from_secs(1);
        custom.store.claim(claim).await.unwrap();
    }
    assert_eq!(custom.store.purge(10).await.unwrap().removed, 0);
    custom.advance(Duration::from_secs(60)).await;
    assert_eq!(custom.store.purge(2).await.unwrap().removed, 2);
    assert_eq!(custom.store.purge(2).await.unwrap().removed, 1);
}
