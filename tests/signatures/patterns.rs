//! Arguments that are patterns or under a `#[cfg]`.

use super::*;

#[idempotent(key = (user, id), ttl = "24h")]
async fn destructures(
    Order { id, user, .. }: Order,
    (first, [second, ..]): (u64, [u64; 2]),
    &third: &u64,
    effects: &Effects,
) -> Result<u64, Error> {
    effects.happen();
    drop(user);
    Ok(id + first + second + third)
}

#[idempotent(key = whole.id, ttl = "24h")]
async fn binds_with_at(
    whole @ Order { amount, .. }: &Order,
    _: u64,
    _unused: u64,
    effects: &Effects,
) -> Result<u32, Error> {
    effects.happen();
    Ok(whole.amount + amount)
}

#[idempotent(key = id, ttl = "24h")]
async fn has_conditional_arguments(
    id: u64,
    #[cfg(not(any()))] present: u64,
    #[cfg(any())] absent: Missing,
    effects: &Effects,
) -> Result<u64, Error> {
    effects.happen();
    #[cfg(any())]
    drop(absent);
    Ok(id + present)
}

#[tokio::test]
async fn arguments_are_taken_apart() {
    assert_eq!(
        once(async |effects| destructures(order(), (1, [2, 0]), &3, effects).await).await,
        13
    );
    assert_eq!(once(async |effects| binds_with_at(&order(), 0, 0, effects).await).await, 80);
    assert_eq!(once(async |effects| has_conditional_arguments(1, 2, effects).await).await, 3);
}
