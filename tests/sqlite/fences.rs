//! The order of fences, on a clock that counts milliseconds.

use idempotency::key::KeyHash;
use idempotency::store::{Claim, Claimed, Release, Store as _, Token};

use crate::world::World;

#[tokio::test]
async fn fences_grow_over_records_that_are_gone_while_the_clock_stands_still() -> anyhow::Result<()> {
    let world = World::new().await?;
    let key = KeyHash::from_bytes([7; 32]);
    let mut fences = Vec::new();
    for number in 0..3 {
        let token = Token::from_bits(number);
        let claimed = world.store.claim(Claim::new(key, token, "payments.charge".into())).await?;
        assert!(matches!(claimed, Claimed::Mine(_)), "{claimed:?}");
        fences.extend(world.store.fence(key, token).await?);
        world.store.release(Release::new(key, token)).await?;
    }
    assert_eq!(fences.len(), 3);
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}
