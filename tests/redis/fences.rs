//! The order of fences, on a server that is asked more often than once in a millisecond.

use idempotency::key::KeyHash;
use idempotency::store::{Claim, ClaimOutcome, Release, Store as _, Token};

use crate::world::{OPERATION, World};

#[tokio::test]
async fn fences_grow_over_records_that_are_gone() -> anyhow::Result<()> {
    let world = World::new().await?;
    let key = KeyHash::from_bytes([7; 32]);
    let mut fences = Vec::new();
    for number in 0..200 {
        let token = Token::from_bits(number + 1);
        let claimed = world.direct.claim(Claim::new(key, token, OPERATION.into())).await?;
        assert!(matches!(claimed, ClaimOutcome::Granted(_)), "{claimed:?}");
        fences.extend(world.direct.fence(key, token).await?);
        world.direct.release(Release::new(key, token)).await?;
    }
    assert_eq!(fences.len(), 200);
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}
