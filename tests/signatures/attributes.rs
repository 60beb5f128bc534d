//! Attributes before and after ours, and inside of the body.

use super::*;

#[must_use = "it is the answer"]
#[inline]
#[idempotent(key = id, ttl = "24h")]
#[doc = "After."]
#[allow(clippy::mixed_attributes_style, reason = "it stands after the attribute")]
async fn before_and_after(id: u64, effects: &Effects) -> Result<usize, Error> {
    #![allow(unused_variables, reason = "inner attributes are the function's")]
    let unused = id;
    Ok(effects.happen())
}

#[idempotent(key = "in a test", ttl = "24h", engine = &Idempotency::new(MemoryStore::new()))]
#[tokio::test]
async fn the_test_attribute_after() -> Result<(), Error> {
    Ok(())
}

#[tokio::test]
async fn other_attributes_stay() {
    assert_eq!(once(async |effects| before_and_after(1, effects).await).await, 1);
}
