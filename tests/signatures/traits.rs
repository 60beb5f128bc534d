//! Methods of traits: native, `#[async_trait]`, boxed by hand.

use super::*;

trait Native {
    async fn implemented(&self, id: u64, effects: &Effects) -> Result<usize, Error>;

    #[idempotent(key = id, ttl = "24h")]
    async fn provided(&self, id: u64, effects: &Effects) -> Result<usize, Error> {
        self.implemented(id, effects).await
    }
}

struct Card;

impl Native for Card {
    #[idempotent(key = id, ttl = "24h")]
    async fn implemented(&self, id: u64, effects: &Effects) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(effects.happen())
    }
}

#[async_trait::async_trait]
trait Boxing {
    async fn charge(&self, order: &Order, effects: &Effects) -> Result<usize, Error>;
    async fn refund(
        &mut self,
        id: u64,
        mut order: Order,
        effects: &Effects,
    ) -> Result<Order, anyhow::Error>;
}

#[async_trait::async_trait]
impl Boxing for Card {
    #[idempotent(key = order.id, ttl = "24h", fingerprint = order)]
    async fn charge(&self, order: &Order, effects: &Effects) -> Result<usize, Error> {
        tokio::task::yield_now().await;
        Ok(effects.happen() + order.user.len())
    }

    #[idempotent(key = (id, order.user), ttl = "24h")]
    async fn refund(
        &mut self,
        id: u64,
        mut order: Order,
        effects: &Effects,
    ) -> Result<Order, anyhow::Error> {
        order.amount = "0".parse()?;
        effects.happen();
        Ok(order)
    }
}

#[async_trait::async_trait(?Send)]
trait Local {
    #[idempotent(key = id, ttl = "24h")]
    async fn provided(&self, id: u64, effects: &Effects) -> Result<usize, Error> {
        let local = Rc::new(id);
        tokio::task::yield_now().await;
        drop(local);
        Ok(effects.happen())
    }
}

impl Local for Card {}

#[idempotent(key = id, ttl = "24h")]
fn boxed_by_hand(
    id: u64,
    effects: &Effects,
) -> Pin<Box<dyn Future<Output = Result<usize, Error>> + Send + '_>> {
    let more = usize::from(id == 0);
    Box::pin(async move {
        tokio::task::yield_now().await;
        Ok(effects.happen() + more)
    })
}

#[idempotent(key = depth, ttl = "24h")]
fn recursive(depth: u64) -> Pin<Box<dyn Future<Output = Result<u64, Error>> + Send>> {
    if depth == 0 {
        return Box::pin(async { Ok(0) });
    }
    Box::pin(async move { Ok(recursive(depth - 1).await? + depth) })
}

#[tokio::test]
async fn native_methods() {
    once(async |effects| Card.implemented(1, effects).await).await;
    once(async |effects| Native::provided(&Card, 1, effects).await).await;
}

#[tokio::test]
async fn async_trait_methods() {
    assert_eq!(once(async |effects| Card.charge(&order(), effects).await).await, 4);
    assert_eq!(
        once(async |effects| Boxing::refund(&mut Card, 1, order(), effects).await).await.amount,
        0
    );
    once(async |effects| Local::provided(&Card, 1, effects).await).await;
    let dynamic: Box<dyn Boxing> = Box::new(Card);
    once(async |effects| dynamic.charge(&order(), effects).await).await;
}

#[tokio::test]
async fn boxed_functions() {
    assert_eq!(once(async |effects| boxed_by_hand(1, effects).await).await, 1);
    assert_eq!(recursive(3).with_engine(&Idempotency::new(MemoryStore::new())).await.unwrap(), 6);
    let effects = Effects::default();
    drop(boxed_by_hand(1, &effects));
    assert_eq!(effects.count(), 0, "nothing happens before the first poll");
}
