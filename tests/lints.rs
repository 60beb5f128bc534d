//! The expansion of every signature is clean under the strictest lints, and hides none of the
//! user's own.
//!
//! `cargo clippy --all-targets` is what checks the lints of clippy; the compiler checks the others.
#![deny(warnings, unused, clippy::all, clippy::pedantic, clippy::nursery)]
#![deny(unfulfilled_lint_expectations)]
#![allow(clippy::redundant_pub_crate, reason = "it contradicts the workspace's `unreachable_pub`")]

mod clean {
    use std::fmt::Display;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::time::Duration;

    use idempotency::{Error, ErrorAction, Idempotency, OnError, Verdict, idempotent};
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct Order {
        pub(super) id: u64,
        pub(super) user: String,
    }

    #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    pub(super) enum PayError {
        #[error("declined")]
        Declined,
        #[error("refused")]
        Refused,
    }

    impl From<Error> for PayError {
        fn from(_: Error) -> Self {
            Self::Refused
        }
    }

    const TTL: Duration = Duration::from_hours(1);

    const fn on_error(error: &PayError) -> OnError {
        match error {
            PayError::Declined => OnError::Store,
            PayError::Refused => OnError::Release,
        }
    }

    fn read_old_error(version: u32, _: &[u8]) -> Option<PayError> {
        (version == 1).then_some(PayError::Declined)
    }

    fn read_old(version: u32, _: &[u8]) -> Option<Order> {
        (version == 1).then(|| Order { id: 0, user: String::new() })
    }

    /// Charges.
    #[idempotent(key = order.id, ttl = "24h")]
    pub(super) async fn borrowed(order: &Order) -> Result<Order, Error> {
        tokio::task::yield_now().await;
        Ok(order.clone())
    }

    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn items_first(id: u64) -> Result<u64, Error> {
        const STEP: u64 = 1;
        const fn next(id: u64) -> u64 {
            id + STEP
        }
        tokio::task::yield_now().await;
        Ok(next(id))
    }

    #[idempotent(key = (order.id, order.user), ttl = TTL, lease = TTL / 60, scope = order.user, fingerprint = order)]
    pub(super) async fn owned(order: Order, mut steps: Vec<u64>) -> Result<Vec<u64>, Error> {
        steps.push(order.id);
        tokio::task::yield_now().await;
        Ok(steps)
    }

    #[idempotent(
        key = "order:{order.id}:{order.user}",
        ttl = "7 days",
        name = "lints.every_option",
        scope = "{order.user}",
        fingerprint = (order.id, order.user),
        lease = "30s",
        on_conflict = wait("5s"),
        on_crash = retry,
        on_error = on_error,
        version = 2,
        upgrade = read_old,
        upgrade_error = read_old_error,
        engine = engine,
        crate = ::idempotency
    )]
    pub(super) async fn every_option(
        engine: &Idempotency,
        order: Order,
    ) -> Result<Order, PayError> {
        if order.id == 0 {
            return Err(PayError::Declined);
        }
        tokio::task::yield_now().await;
        Ok(order)
    }

    #[idempotent(key = id, ttl = "24h", on_error = |_| if id == 0 { ErrorAction::Hold } else { ErrorAction::Release })]
    pub(super) async fn closure(id: u64) -> anyhow::Result<()> {
        tokio::task::yield_now().await;
        Ok(())
    }

    #[idempotent(
        key = order.id,
        ttl = "24h",
        after_expiry = refuse("30d"),
        on_crash = verify(
            |context| async move {
                let receipt = context.derive_key(&order.user);
                tokio::task::yield_now().await;
                Ok(Verdict::Completed(receipt))
            },
            settle = "5s"
        )
    )]
    pub(super) async fn asks(order: Order) -> Result<String, Error> {
        tokio::task::yield_now().await;
        Ok(order.user)
    }

    #[idempotent(key = "constant", ttl = "24h", on_error = hold, on_conflict = reject)]
    pub(super) async fn without_arguments() -> Result<(), Error> {
        tokio::task::yield_now().await;
        Ok(())
    }

    #[idempotent(key = order.id, ttl = "24h", detach, on_error = store, on_conflict = wait)]
    pub(super) async fn detached(
        order: &Order,
        text: &str,
        numbers: Vec<u64>,
    ) -> Result<usize, PayError> {
        tokio::task::yield_now().await;
        Ok(text.len() + numbers.len())
    }

    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn held(
        id: u64,
        _permit: Order,
        (_first, _): (Order, u64),
        #[allow(unused_variables, reason = "it is only there to be held")] lock: Order,
        _: Order,
    ) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id)
    }

    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn formats(
        id: u64,
        width: usize,
        r#precision: usize,
    ) -> Result<String, Error> {
        tokio::task::yield_now().await;
        Ok(format!("{:width$} {:.*}", "text", precision, "text"))
    }

    #[idempotent(key = (id.to_string(), N), ttl = "24h", name = "lints.generic")]
    pub(super) async fn generic<'a, T, const N: usize>(
        id: impl Display + Send + Sync,
        value: &'a [T; N],
    ) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned + Clone + Default + Send + Sync + 'a,
    {
        tokio::task::yield_now().await;
        Ok(value.first().cloned().unwrap_or_default())
    }

    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn patterns(
        Order { id, .. }: Order,
        (first, second): (u64, u64),
        &third: &u64,
    ) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        Ok(id + first + second + third)
    }

    #[idempotent(key = order.id, ttl = "24h")]
    pub(super) async fn assigns_only(
        mut order: Order,
        (mut id, _): (u64, u64),
    ) -> Result<u64, Error> {
        order.id = id;
        tokio::task::yield_now().await;
        id += 1;
        Ok(id)
    }

    #[derive(Clone)]
    pub(super) struct Payments {
        pub(super) shop: u64,
    }

    impl Payments {
        #[idempotent(key = (self.shop, id), ttl = "24h")]
        pub(super) async fn by_reference(&self, id: u64) -> Result<u64, Error> {
            tokio::task::yield_now().await;
            Ok(self.shop)
        }

        #[idempotent(key = (self.shop, id), ttl = "24h")]
        pub(super) async fn by_mutable_reference(&mut self, id: u64) -> Result<u64, Error> {
            tokio::task::yield_now().await;
            self.shop += 1;
            Ok(self.shop)
        }

        #[idempotent(key = (self.shop, id), ttl = "24h")]
        pub(super) async fn by_value(mut self, id: u64) -> Result<u64, Error> {
            tokio::task::yield_now().await;
            self.shop += 1;
            Ok(self.shop)
        }

        #[idempotent(key = (self.shop, id), ttl = "24h")]
        pub(super) async fn only_assigns(mut self, id: u64) -> Result<u64, Error> {
            self.shop += id;
            tokio::task::yield_now().await;
            Ok(id)
        }

        #[idempotent(key = (self.shop, id), ttl = "24h", detach)]
        pub(super) async fn by_arc(self: Arc<Self>, id: u64) -> Result<u64, Error> {
            tokio::task::yield_now().await;
            Ok(self.shop)
        }
    }

    #[async_trait::async_trait]
    pub(super) trait Boxing {
        async fn charge(&self, id: u64, order: &Order) -> Result<u64, Error>;
    }

    #[async_trait::async_trait]
    impl Boxing for Payments {
        // The body does not use `id`.
        #[idempotent(key = (id, order.id), ttl = "24h")]
        async fn charge(&self, id: u64, order: &Order) -> Result<u64, Error> {
            tokio::task::yield_now().await;
            Ok(self.shop + order.id)
        }
    }

    pub(super) trait Native {
        #[idempotent(key = id, ttl = "24h")]
        async fn provided(&self, id: u64) -> Result<u64, Error>
        where
            Self: Sync,
        {
            tokio::task::yield_now().await;
            Ok(id)
        }
    }

    impl Native for Payments {}

    #[idempotent(key = id, ttl = "24h")]
    pub(super) fn boxed(id: u64) -> Pin<Box<dyn Future<Output = Result<u64, Error>> + Send>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(id)
        })
    }
}

/// What the user's own code is told without the attribute, it is told with it.
mod told {
    use idempotency::{Error, idempotent};

    #[expect(dead_code, reason = "nobody calls it")]
    #[idempotent(key = id, ttl = "24h")]
    async fn unused_function(id: u64) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(unused_variables, reason = "neither the key nor the body uses it")]
    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn unused_argument(id: u64, unused: u64) -> Result<u64, Error> {
        Ok(id)
    }

    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn unused_variable(id: u64) -> Result<u64, Error> {
        #[expect(unused_variables, reason = "it is said of the body as well")]
        let unused = 1;
        Ok(id)
    }

    #[expect(unused_variables, reason = "neither the key nor the body uses it")]
    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn unused_detached(id: u64, unused: u64, lent: &str) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(unused_variables, reason = "neither the key nor the body uses it")]
    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn unused_moved(id: u64, unused: String) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(unused_variables, reason = "neither the key nor the body uses it")]
    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn unused_part(id: u64, (unused, _): (String, u64)) -> Result<u64, Error> {
        Ok(id)
    }

    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn unused_there(
        id: u64,
        #[expect(unused_variables, reason = "it is said of the argument as well")] unused: String,
    ) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(unused_variables, unused_mut, reason = "nothing uses it, and nothing changes it")]
    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn unused_and_mut(id: u64, mut unused: String) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(non_snake_case, unused_variables, reason = "a name in capitals is told once more")]
    #[idempotent(key = id, ttl = "24h", detach)]
    pub(super) async fn unused_in_capitals(id: u64, UNUSED: String) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(unused_mut, reason = "nothing changes it")]
    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn unused_mut(mut id: u64) -> Result<u64, Error> {
        Ok(id)
    }

    #[expect(unreachable_code, reason = "the edge that names the return type must not hide it")]
    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn unreachable(id: u64) -> Result<u64, Error> {
        return Ok(id);
        Ok(0)
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "clippy looks at the signature")]
    #[idempotent(key = (a, b, c, d), ttl = "24h")]
    pub(super) async fn excessive(a: bool, b: bool, c: bool, d: bool) -> Result<bool, Error> {
        Ok(a || b || c || d)
    }

    #[expect(clippy::len_zero, clippy::clone_on_copy, reason = "clippy looks into the body")]
    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn body(id: u64, text: String) -> Result<bool, Error> {
        Ok(text.len() == 0 && id.clone() == 0)
    }

    #[must_use = "it is proof"]
    #[idempotent(key = id, ttl = "24h")]
    pub(super) async fn must_be_used(id: u64) -> Result<u64, Error> {
        Ok(id)
    }
}

#[tokio::test]
async fn everything_that_is_clean_also_works() {
    use std::sync::Arc;

    use clean::{Boxing, Native, Order, Payments};
    use idempotency::store::MemoryStore;
    use idempotency::{Idempotency, WithEngine as _};

    let engine = Idempotency::new(MemoryStore::new());
    let order = Order { id: 1, user: "ada".to_owned() };
    let payments = Payments { shop: 1 };
    let calls = async {
        clean::borrowed(&order).await.unwrap();
        clean::owned(order.clone(), Vec::new()).await.unwrap();
        clean::every_option(&engine, order.clone()).await.unwrap();
        clean::asks(order.clone()).await.unwrap();
        clean::items_first(1).await.unwrap();
        clean::closure(1).await.unwrap();
        clean::without_arguments().await.unwrap();
        clean::detached(&order, "text", Vec::new()).await.unwrap();
        let held = clean::held(1, order.clone(), (order.clone(), 1), order.clone(), order.clone());
        held.await.unwrap();
        clean::formats(1, 1, 1).await.unwrap();
        clean::generic(1, &[1_u8]).await.unwrap();
        clean::patterns(order.clone(), (1, 2), &3).await.unwrap();
        clean::assigns_only(order.clone(), (1, 2)).await.unwrap();
        payments.by_reference(1).await.unwrap();
        payments.clone().by_mutable_reference(1).await.unwrap();
        payments.clone().by_value(1).await.unwrap();
        payments.clone().only_assigns(1).await.unwrap();
        Arc::new(payments.clone()).by_arc(1).await.unwrap();
        payments.charge(1, &order).await.unwrap();
        payments.provided(1).await.unwrap();
        clean::boxed(1).await.unwrap();
        told::unused_argument(1, 1).await.unwrap();
        told::unused_variable(1).await.unwrap();
        told::unused_detached(1, 1, "").await.unwrap();
        told::unused_moved(1, String::new()).await.unwrap();
        told::unused_part(1, (String::new(), 1)).await.unwrap();
        told::unused_there(1, String::new()).await.unwrap();
        told::unused_and_mut(1, String::new()).await.unwrap();
        told::unused_in_capitals(1, String::new()).await.unwrap();
        told::unused_mut(1).await.unwrap();
        told::unreachable(1).await.unwrap();
        told::excessive(true, true, true, true).await.unwrap();
        told::body(1, String::new()).await.unwrap();
        #[expect(unused_must_use, reason = "what `must_use` says goes for the awaited result")]
        told::must_be_used(1).await;
    };
    calls.with_engine(&engine).await;
}
