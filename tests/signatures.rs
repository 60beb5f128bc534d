//! Every kind of function that the attribute can be on, executed.

mod effects;

use std::collections::HashMap;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use effects::{Effects, once};
use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency, idempotent};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    user: String,
    amount: u32,
}

fn order() -> Order {
    Order { id: 7, user: "ada".to_owned(), amount: 40 }
}

mod free_functions {
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
    async fn assigns_to_its_arguments(mut id: u64, mut steps: Vec<u64>, effects: &Effects) -> Result<Vec<u64>, Error> {
        effects.happen();
        id += 1;
        steps.push(id);
        Ok(steps)
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn changes_what_it_borrows(id: u64, steps: &mut Vec<u64>, effects: &Effects) -> Result<usize, Error> {
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
        Idempotency::new(MemoryStore::new()).scope(takes_nothing()).await.unwrap();
    }

    #[tokio::test]
    async fn a_body_can_assign_to_its_arguments() {
        assert_eq!(once(async |effects| assigns_to_its_arguments(1, vec![5], effects).await).await, [5, 2]);
    }

    #[tokio::test]
    async fn a_body_can_change_what_it_borrows() {
        let mut steps = Vec::new();
        let effects = Effects::default();
        Idempotency::new(MemoryStore::new())
            .scope(async {
                assert_eq!(changes_what_it_borrows(3, &mut steps, &effects).await.unwrap(), 2);
                assert_eq!(changes_what_it_borrows(3, &mut steps, &effects).await.unwrap(), 2);
            })
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
        let error = engine.scope(asks_with_a_question_mark("x")).await.unwrap_err();
        assert!(error.to_string().contains("invalid digit"), "{error}");
        assert_eq!(engine.scope(asks_with_a_question_mark("12")).await.unwrap(), 12);
    }

    #[tokio::test]
    async fn nothing_happens_before_the_first_poll() {
        let effects = Effects::default();
        drop(borrows(&order(), &effects));
        assert_eq!(effects.count(), 0);
    }
}

mod receivers {
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
        Idempotency::new(MemoryStore::new())
            .scope(async {
                assert_eq!(call(Payments::new(effects.clone())).await.unwrap(), 1);
                assert_eq!(call(Payments::new(effects.clone())).await.unwrap(), 1);
            })
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
}

mod generics {
    use super::*;

    #[idempotent(key = id, ttl = "24h", name = "signatures.type_parameter")]
    async fn type_parameter<T>(id: u64, value: T, effects: &Effects) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        effects.happen();
        Ok(value)
    }

    #[idempotent(key = (N, id), ttl = "24h", name = "signatures.const_parameter")]
    async fn const_parameter<const N: usize>(id: u64, effects: &Effects) -> Result<[usize; 1], Error> {
        Ok([effects.happen() + N])
    }

    #[idempotent(key = name, ttl = "24h")]
    async fn lifetimes<'name, 'effects: 'name>(name: &'name str, effects: &'effects Effects) -> Result<String, Error> {
        Ok(format!("{name}{}", effects.happen()))
    }

    #[idempotent(key = "{id.to_string()}", ttl = "24h", name = "signatures.impl_trait")]
    async fn impl_trait(
        id: impl Display,
        mut more: impl Iterator<Item = u64>,
        effects: &Effects,
    ) -> Result<u64, Error> {
        effects.happen();
        Ok(more.next().unwrap_or(0) + id.to_string().len() as u64)
    }

    #[idempotent(key = id, ttl = "24h", name = "signatures.impl_error")]
    async fn where_clause<T, E>(id: u64, value: T, effects: &Effects) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send,
        E: From<Error>,
    {
        effects.happen();
        Ok(value)
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn hidden_result(id: u64) -> Result<impl Serialize + DeserializeOwned + Debug + PartialEq, Error> {
        Ok(id + 1)
    }

    struct Repository<T>(PhantomData<T>);

    impl<T: Serialize + DeserializeOwned + Clone> Repository<T> {
        #[idempotent(key = id, ttl = "24h")]
        async fn save(&self, id: u64, value: &T, effects: &Effects) -> Result<T, Error> {
            effects.happen();
            Ok(value.clone())
        }
    }

    #[tokio::test]
    async fn types_constants_and_lifetimes() {
        assert_eq!(once(async |effects| type_parameter(1, "a".to_owned(), effects).await).await, "a");
        assert_eq!(once(async |effects| const_parameter::<4>(1, effects).await).await, [5]);
        assert_eq!(once(async |effects| lifetimes("a", effects).await).await, "a1");
        assert_eq!(once(async |effects| impl_trait("ab", [3].into_iter(), effects).await).await, 5);
        assert_eq!(once(async |effects| where_clause::<_, anyhow::Error>(1, 5, effects).await).await, 5);
        let hidden = Idempotency::new(MemoryStore::new()).scope(hidden_result(1)).await.unwrap();
        assert_eq!(format!("{hidden:?}"), "2");
        assert_eq!(once(async |effects| Repository(PhantomData).save(1, &9, effects).await).await, 9);
    }

    #[tokio::test]
    async fn all_instantiations_are_one_operation() {
        let effects = Effects::default();
        let second = Idempotency::new(MemoryStore::new())
            .scope(async {
                type_parameter(1, 8_u8, &effects).await.unwrap();
                type_parameter(1, "text".to_owned(), &effects).await
            })
            .await;
        assert_eq!(second.unwrap_err().kind(), ErrorKind::Decode, "the stored result is of the other type");
        assert_eq!(effects.count(), 1);
    }
}

mod patterns {
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
        assert_eq!(once(async |effects| destructures(order(), (1, [2, 0]), &3, effects).await).await, 13);
        assert_eq!(once(async |effects| binds_with_at(&order(), 0, 0, effects).await).await, 80);
        assert_eq!(once(async |effects| has_conditional_arguments(1, 2, effects).await).await, 3);
    }
}

mod attributes {
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
}

mod traits {
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
        async fn refund(&mut self, id: u64, mut order: Order, effects: &Effects) -> Result<Order, anyhow::Error>;
    }

    #[async_trait::async_trait]
    impl Boxing for Card {
        #[idempotent(key = order.id, ttl = "24h", fingerprint = order)]
        async fn charge(&self, order: &Order, effects: &Effects) -> Result<usize, Error> {
            tokio::task::yield_now().await;
            Ok(effects.happen() + order.user.len())
        }

        #[idempotent(key = (id, order.user), ttl = "24h")]
        async fn refund(&mut self, id: u64, mut order: Order, effects: &Effects) -> Result<Order, anyhow::Error> {
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
    fn boxed_by_hand(id: u64, effects: &Effects) -> Pin<Box<dyn Future<Output = Result<usize, Error>> + Send + '_>> {
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
        assert_eq!(once(async |effects| Boxing::refund(&mut Card, 1, order(), effects).await).await.amount, 0);
        once(async |effects| Local::provided(&Card, 1, effects).await).await;
        let dynamic: Box<dyn Boxing> = Box::new(Card);
        once(async |effects| dynamic.charge(&order(), effects).await).await;
    }

    #[tokio::test]
    async fn boxed_functions() {
        assert_eq!(once(async |effects| boxed_by_hand(1, effects).await).await, 1);
        assert_eq!(Idempotency::new(MemoryStore::new()).scope(recursive(3)).await.unwrap(), 6);
        let effects = Effects::default();
        drop(boxed_by_hand(1, &effects));
        assert_eq!(effects.count(), 0, "nothing happens before the first poll");
    }
}

mod results {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum PayError {
        #[error("declined")]
        Declined,
        #[error(transparent)]
        Idempotency(#[from] Error),
    }

    type PayResult<T> = Result<T, PayError>;

    #[idempotent(key = id, ttl = "24h")]
    async fn alias(id: u64, effects: &Effects) -> PayResult<usize> {
        Ok(effects.happen())
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn thiserror(id: Option<u64>) -> Result<u64, PayError> {
        Err(PayError::Declined)
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn anyhow(id: u64, effects: &Effects) -> anyhow::Result<usize> {
        Ok(effects.happen())
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn boxed_error(id: Option<u64>) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        if id == Some(0) {
            return Err("zero".into());
        }
        Err(Box::new(PayError::Declined))
    }

    #[allow(unused_qualifications, reason = "the path is what is tested")]
    #[idempotent(key = id, ttl = "24h")]
    async fn std_path(id: u64, effects: &Effects) -> core::result::Result<HashMap<String, Vec<Option<u8>>>, Error> {
        effects.happen();
        Ok(HashMap::from([("a".to_owned(), vec![None, Some(0)])]))
    }

    #[idempotent(key = id, ttl = "24h")]
    async fn static_text(id: u64, effects: &Effects) -> Result<std::borrow::Cow<'static, str>, Error> {
        effects.happen();
        Ok("text".into())
    }

    #[tokio::test]
    async fn aliases_and_error_types() {
        assert_eq!(once(async |effects| alias(1, effects).await).await, 1);
        assert_eq!(once(async |effects| anyhow(1, effects).await).await, 1);
        once(async |effects| std_path(1, effects).await).await;
        assert_eq!(once(async |effects| static_text(1, effects).await).await, "text");
    }

    #[tokio::test]
    async fn errors_of_the_engine_arrive_in_the_users_type() {
        let engine = Idempotency::new(MemoryStore::new());
        assert!(matches!(engine.scope(thiserror(Some(1))).await, Err(PayError::Declined)));
        let Err(PayError::Idempotency(error)) = engine.scope(thiserror(None)).await else { panic!("no key") };
        assert_eq!(error.kind(), ErrorKind::MissingKey);
        let error = engine.scope(boxed_error(None)).await.unwrap_err();
        assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::MissingKey);
        assert_eq!(engine.scope(boxed_error(Some(0))).await.unwrap_err().to_string(), "zero");
        let error = anyhow(1, &Effects::default()).await.unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::NotInstalled);
    }
}

mod guards {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A guard that says whether it is gone.
    struct Guard {
        gone: Arc<AtomicBool>,
        id: u64,
    }

    impl Guard {
        fn new(gone: &Arc<AtomicBool>) -> Self {
            Self { gone: gone.clone(), id: 1 }
        }

        fn id(&self) -> u64 {
            self.id
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            self.gone.store(true, Ordering::SeqCst);
        }
    }

    struct Request {
        _guard: Guard,
        id: u64,
    }

    async fn is_gone(gone: &AtomicBool) -> Result<bool, Error> {
        tokio::task::yield_now().await;
        Ok(gone.load(Ordering::SeqCst))
    }

    #[idempotent(key = guard.id(), ttl = "24h")]
    async fn only_the_key_uses_it(guard: Guard, gone: &AtomicBool) -> Result<bool, Error> {
        is_gone(gone).await
    }

    #[idempotent(key = guard.id(), ttl = "24h")]
    async fn only_the_key_uses_what_is_bound((guard, _): (Guard, u64), gone: &AtomicBool) -> Result<bool, Error> {
        is_gone(gone).await
    }

    #[idempotent(key = 1, ttl = "24h")]
    async fn the_body_uses_another_field(request: Request, gone: &AtomicBool) -> Result<bool, Error> {
        Ok(is_gone(gone).await? || request.id == 0)
    }

    #[idempotent(key = 1, ttl = "24h")]
    async fn nobody_uses_it(_guard: Guard, _: Guard, gone: &AtomicBool) -> Result<bool, Error> {
        is_gone(gone).await
    }

    #[tokio::test]
    async fn arguments_are_dropped_when_the_body_is_over() {
        let engine = Idempotency::new(MemoryStore::new());
        let check = async |call: fn(Guard, Arc<AtomicBool>) -> Pin<Box<dyn Future<Output = Result<bool, Error>>>>| {
            let gone = Arc::new(AtomicBool::new(false));
            let was_gone = engine.scope(call(Guard::new(&gone), gone.clone())).await.unwrap();
            assert!(!was_gone, "the guard was dropped before the body was over");
            assert!(gone.load(Ordering::SeqCst));
        };
        check(|guard, gone| Box::pin(async move { only_the_key_uses_it(guard, &gone).await })).await;
        check(|guard, gone| Box::pin(async move { only_the_key_uses_what_is_bound((guard, 1), &gone).await })).await;
        check(|guard, gone| {
            let request = Request { id: guard.id, _guard: guard };
            Box::pin(async move { the_body_uses_another_field(request, &gone).await })
        })
        .await;
        check(|guard, gone| {
            Box::pin(async move {
                let other = Guard::new(&gone);
                nobody_uses_it(guard, other, &gone).await
            })
        })
        .await;
    }
}

mod sending {
    use super::*;

    #[idempotent(key = id, ttl = "24h")]
    async fn sendable(id: u64, text: String, effects: &Effects) -> Result<String, Error> {
        tokio::task::yield_now().await;
        effects.happen();
        Ok(text)
    }

    #[idempotent(key = *id, ttl = "24h")]
    async fn local(id: Rc<u64>, effects: &Effects) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        effects.happen();
        Ok(*id)
    }

    fn assert_send<T: Send>(future: T) -> T {
        future
    }

    #[tokio::test]
    async fn the_future_is_send_when_the_body_is() {
        once(async |effects| assert_send(sendable(1, String::new(), effects)).await).await;
    }

    #[tokio::test]
    async fn a_body_that_is_not_send_runs_in_a_local_set() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let engine = Idempotency::new(MemoryStore::new());
                let call = || {
                    let (id, engine) = (Rc::new(5), engine.clone());
                    tokio::task::spawn_local(async move {
                        let effects = Effects::default();
                        let answer = engine.scope(local(id, &effects)).await.unwrap();
                        (answer, effects.count())
                    })
                };
                assert_eq!(call().await.unwrap(), (5, 1));
                assert_eq!(call().await.unwrap(), (5, 0));
            })
            .await;
    }
}
