//! Free functions: what they take, change and return.

use super::*;

#[idempotent(key = order.id, ttl = "24h")]
async fn borrows(order: &Order, effects: &Effects) -> Result<String, Error> {
    tokio::task::yield_now().await;
    Ok(format!("{} #{}", order.user, effects.happen()))
}

#[idempotent(key = (order.id, order.user), ttl = "24h")]
async fn owns(order: Order, effects: &Effects) -> Result<Order, Error> {
    effects.happen();
    let moved = order;
    Ok(moved)
}

#[idempotent(key = "nothing", ttl = "24h")]
async fn takes_nothing() -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = id, ttl = "24h")]
async fn assigns_to_its_arguments(
    mut id: u64,
    mut steps: Vec<u64>,
    effects: &Effects,
) -> Result<Vec<u64>, Error> {
    effects.happen();
    id += 1;
    steps.push(id);
    Ok(steps)
}

#[idempotent(key = id, ttl = "24h")]
async fn changes_what_it_borrows(
    id: u64,
    steps: &mut Vec<u64>,
    effects: &Effects,
) -> Result<usize, Error> {
    effects.happen();
    steps.push(id);
    tokio::task::yield_now().await;
    steps.push(id);
    Ok(steps.len())
}

#[idempotent(key = id, ttl = "24h")]
async fn returns_early(id: u64, effects: &Effects) -> Result<u64, Error> {
    effects.happen();
    if id == 1 {
        return Ok(10);
    }
    for step in 0.. {
        if step == id {
            return Ok(step);
        }
    }
    Ok(20)
}

#[idempotent(key = text, ttl = "24h")]
async fn asks_with_a_question_mark(text: &str) -> Result<u64, anyhow::Error> {
    let number: u64 = text.parse()?;
    Ok(number)
}

#[tokio::test]
async fn arguments_are_borrowed_owned_or_absent() {
    assert_eq!(once(async |effects| borrows(&order(), effects).await).await, "ada #1");
    assert_eq!(once(async |effects| owns(order(), effects).await).await, order());
    takes_nothing().with_engine(&Idempotency::new(MemoryStore::new())).await.unwrap();
}

#[tokio::test]
async fn a_body_can_assign_to_its_arguments() {
    assert_eq!(
        once(async |effects| assigns_to_its_arguments(1, vec![5], effects).await).await,
        [5, 2]
    );
}

#[tokio::test]
async fn a_body_can_change_what_it_borrows() {
    let mut steps = Vec::new();
    let effects = Effects::default();
    async {
        assert_eq!(changes_what_it_borrows(3, &mut steps, &effects).await.unwrap(), 2);
        assert_eq!(changes_what_it_borrows(3, &mut steps, &effects).await.unwrap(), 2);
    }
    .with_engine(&Idempotency::new(MemoryStore::new()))
    .await;
    assert_eq!(steps, [3, 3], "the replay did not run the body");
}

#[tokio::test]
async fn a_body_can_return_early() {
    assert_eq!(once(async |effects| returns_early(1, effects).await).await, 10);
    assert_eq!(once(async |effects| returns_early(5, effects).await).await, 5);
}

#[tokio::test]
async fn a_question_mark_leaves_the_body() {
    let engine = Idempotency::new(MemoryStore::new());
    let error = asks_with_a_question_mark("x").with_engine(&engine).await.unwrap_err();
    assert!(error.to_string().contains("invalid digit"), "{error}");
    assert_eq!(asks_with_a_question_mark("12").with_engine(&engine).await.unwrap(), 12);
}

#[tokio::test]
async fn nothing_happens_before_the_first_poll() {
    let effects = Effects::default();
    drop(borrows(&order(), &effects));
    assert_eq!(effects.count(), 0);
}
