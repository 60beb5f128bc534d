//! Methods: `self` in every form.

use super::*;

#[derive(Clone)]
struct Payments {
    shop: u64,
    effects: Arc<Effects>,
}

impl Payments {
    fn new(effects: Arc<Effects>) -> Self {
        Self { shop: 1, effects }
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn associated(id: u64, effects: &Effects) -> Result<usize, Error> {
        Ok(effects.happen() + usize::from(id == 0))
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_reference(&self, id: u64) -> Result<usize, Error> {
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_mutable_reference(&mut self, id: u64) -> Result<usize, Error> {
        self.shop = id;
        tokio::task::yield_now().await;
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_value(self, id: u64) -> Result<usize, Error> {
        let Self { effects, .. } = self;
        Ok(effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_mutable_value(mut self, id: u64) -> Result<usize, Error> {
        self.shop += 1;
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_box(self: Box<Self>, id: u64) -> Result<usize, Error> {
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_arc(self: Arc<Self>, id: u64) -> Result<usize, Error> {
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_rc(self: Rc<Self>, id: u64) -> Result<usize, Error> {
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_reference_to_arc(self: &Arc<Self>, id: u64) -> Result<usize, Error> {
        Ok(self.effects.happen())
    }

    #[idempotent(key = (self.shop, id), ttl = "24h")]
    async fn by_pin(self: Pin<&mut Self>, id: u64) -> Result<usize, Error> {
        Ok(self.effects.happen())
    }
}

/// The same call twice, each on a value of its own.
async fn twice(call: impl AsyncFn(Payments) -> Result<usize, Error>) {
    let effects = Arc::new(Effects::default());
    async {
        assert_eq!(call(Payments::new(effects.clone())).await.unwrap(), 1);
        assert_eq!(call(Payments::new(effects.clone())).await.unwrap(), 1);
    }
    .with_engine(&Idempotency::new(MemoryStore::new()))
    .await;
    assert_eq!(effects.count(), 1);
}

#[tokio::test]
async fn self_in_every_form() {
    once(async |effects| Payments::associated(1, effects).await).await;
    twice(async |payments| payments.by_reference(1).await).await;
    twice(async |mut payments| payments.by_mutable_reference(1).await).await;
    twice(async |payments| payments.by_value(1).await).await;
    twice(async |payments| payments.by_mutable_value(1).await).await;
    twice(async |payments| Box::new(payments).by_box(1).await).await;
    twice(async |payments| Arc::new(payments).by_arc(1).await).await;
    twice(async |payments| Rc::new(payments).by_rc(1).await).await;
    twice(async |payments| Arc::new(payments).by_reference_to_arc(1).await).await;
    twice(async |mut payments| Pin::new(&mut payments).by_pin(1).await).await;
}
