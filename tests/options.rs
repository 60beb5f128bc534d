//! What each option of the attribute does, seen from outside.

mod effects;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use effects::{Effects, once};
use idempotency::store::{MemoryStore, Store as _};
use idempotency::testing::ManualClock;
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, OnError, State, Unstored, idempotent, observe};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    user: String,
    tenant: Option<String>,
}

fn order() -> Order {
    Order { id: 7, user: "ada".to_owned(), tenant: Some("eu".to_owned()) }
}

fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

/// The state of the record, if there is one under these words.
macro_rules! state {
    ($engine:expr, $operation:expr, $key:expr $(, scope = $scope:expr)?) => {
        $engine.record($operation, $key)$(.scope($scope))?.inspect().await.unwrap().map(|view| view.state)
    };
}

mod keys {
    use super::*;

    #[idempotent(key = order.id, ttl = "1h", name = "field")]
    async fn field(order: &Order) -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = (order.user, order.tenant, (order.id, "x")), ttl = "1h", name = "tuple")]
    async fn tuple(order: Order) -> Result<Order, Error> {
        Ok(order)
    }

    #[idempotent(key = "order:{order.id}:{order.user}", ttl = "1h", name = "template")]
    async fn template(order: &Order) -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = "{a}/{b}", ttl = "1h", name = "only_separators")]
    async fn only_separators(a: &str, b: &str) -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = "{{{a}}}", ttl = "1h", name = "escaped")]
    async fn escaped(a: u64) -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = "nightly", ttl = "1h", name = "constant")]
    async fn constant() -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(
        key = (a, a, a, a, a, a, a, a, a, a, a, a, a, a, a),
        ttl = "1h",
        name = "fifteen"
    )]
    async fn fifteen(a: u64, effects: &Effects) -> Result<usize, Error> {
        Ok(effects.happen())
    }

    #[tokio::test]
    async fn a_key_is_the_value_of_its_expression() {
        let engine = engine();
        engine.scope(field(&order())).await.unwrap();
        assert_eq!(state!(engine, "field", 7), Some(State::Completed));
        engine.scope(tuple(order())).await.unwrap();
        assert_eq!(state!(engine, "tuple", ("ada", "eu", (7, "x"))), Some(State::Completed));
        engine.scope(constant()).await.unwrap();
        assert_eq!(state!(engine, "constant", "nightly"), Some(State::Completed));
    }

    #[tokio::test]
    async fn a_template_is_the_tuple_of_its_parts() {
        let engine = engine();
        engine.scope(template(&order())).await.unwrap();
        assert_eq!(state!(engine, "template", ("order:", 7, ":", "ada")), Some(State::Completed));
        assert_eq!(state!(engine, "template", "order:7:ada"), None, "it is not text");
        engine.scope(only_separators("a/b", "c")).await.unwrap();
        assert_eq!(state!(engine, "only_separators", ("a/b", "/", "c")), Some(State::Completed));
        assert_eq!(state!(engine, "only_separators", ("a", "/", "b/c")), None, "the boundary counts");
        engine.scope(escaped(5)).await.unwrap();
        assert_eq!(state!(engine, "escaped", ("{", 5, "}")), Some(State::Completed));
    }

    #[tokio::test]
    async fn a_tuple_can_have_any_number_of_parts() {
        once(async |effects| fifteen(1, effects).await).await;
    }

    #[tokio::test]
    async fn none_anywhere_is_a_missing_key() {
        let error = engine().scope(tuple(Order { tenant: None, ..order() })).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingKey);
    }

    #[idempotent(key = count(id, evaluations), ttl = "1h")]
    async fn counted(id: u64, evaluations: &Effects, effects: &Effects) -> Result<usize, Error> {
        Ok(effects.happen())
    }

    fn count(id: u64, evaluations: &Effects) -> u64 {
        evaluations.happen();
        id
    }

    #[tokio::test]
    async fn a_key_is_evaluated_once_in_each_call() {
        let evaluations = Effects::default();
        once(async |effects| counted(1, &evaluations, effects).await).await;
        assert_eq!(evaluations.count(), 2, "one call ran, one was a replay");
        drop(counted(1, &evaluations, &Effects::default()));
        assert_eq!(evaluations.count(), 2, "nothing happens before the first poll");
    }
}

mod names {
    use super::*;

    #[idempotent(key = 1, ttl = "1h")]
    async fn by_default() -> Result<(), Error> {
        Ok(())
    }

    const NAME: &str = "a.constant";

    #[idempotent(key = 1, ttl = "1h", name = NAME)]
    async fn by_constant() -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = 1, ttl = "1h", name = "the.same")]
    async fn one() -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = 2, ttl = "1h", name = "the.same")]
    async fn other() -> Result<(), Error> {
        Ok(())
    }

    #[tokio::test]
    async fn a_function_is_named_by_its_path_or_by_name() {
        let engine = engine();
        engine.scope(by_default()).await.unwrap();
        assert_eq!(state!(engine, "options::names::by_default", 1), Some(State::Completed));
        engine.scope(by_constant()).await.unwrap();
        assert_eq!(state!(engine, "a.constant", 1), Some(State::Completed));
    }

    #[tokio::test]
    async fn two_functions_with_one_name_are_refused() {
        let engine = engine();
        engine.scope(one()).await.unwrap();
        let error = engine.scope(other()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("name"), "{error}");
    }
}

mod scopes_and_fingerprints {
    use super::*;

    #[idempotent(key = order.id, ttl = "1h", scope = order.tenant, name = "scoped")]
    async fn scoped(order: Order) -> Result<Order, Error> {
        Ok(order)
    }

    #[idempotent(key = order.id, ttl = "1h", scope = "{order.user}-{order.id}", name = "templated")]
    async fn templated(order: &Order) -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = order.id, ttl = "1h", fingerprint = (order.user, order.tenant))]
    async fn fingerprinted(order: Order, effects: &Effects) -> Result<usize, Error> {
        drop(order);
        Ok(effects.happen())
    }

    #[tokio::test]
    async fn a_scope_is_part_of_the_key() {
        let engine = engine();
        engine.scope(scoped(order())).await.unwrap();
        assert_eq!(state!(engine, "scoped", 7, scope = "eu"), Some(State::Completed));
        assert_eq!(state!(engine, "scoped", 7), None);
        engine.scope(templated(&order())).await.unwrap();
        assert_eq!(state!(engine, "templated", 7, scope = ("ada", "-", 7)), Some(State::Completed));
    }

    #[tokio::test]
    async fn a_retry_must_repeat_the_fingerprint() {
        let effects = Effects::default();
        engine()
            .scope(async {
                fingerprinted(order(), &effects).await.unwrap();
                assert_eq!(fingerprinted(order(), &effects).await.unwrap(), 1);
                let other = Order { user: "eve".to_owned(), ..order() };
                assert_eq!(fingerprinted(other, &effects).await.unwrap_err().kind(), ErrorKind::Mismatch);
            })
            .await;
        assert_eq!(effects.count(), 1);
    }
}

mod times {
    use super::*;

    #[idempotent(key = 1, ttl = "90s", name = "by_text")]
    async fn by_text() -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = 1, ttl = ttl * 2, name = "by_expression")]
    async fn by_expression(ttl: Duration) -> Result<(), Error> {
        Ok(())
    }

    #[idempotent(key = 1, ttl = "1h", lease = "7s", name = "leased")]
    async fn leased(engine: &Idempotency, store: &MemoryStore) -> Result<u64, Error> {
        let record = store.read(engine.record("leased", 1).hash()?).await.unwrap().unwrap();
        Ok(record.lease_until.saturating_duration_since(record.read_at).as_secs())
    }

    #[tokio::test]
    async fn a_result_is_kept_for_the_ttl() {
        let clock = ManualClock::new();
        let engine = Idempotency::builder(MemoryStore::with_clock(clock.clone())).clock(clock.clone()).build();
        engine.scope(by_text()).await.unwrap();
        engine.scope(by_expression(Duration::from_secs(100))).await.unwrap();
        clock.advance(Duration::from_secs(89));
        assert_eq!(state!(engine, "by_text", 1), Some(State::Completed));
        clock.advance(Duration::from_secs(2));
        assert_eq!(state!(engine, "by_text", 1), None);
        clock.advance(Duration::from_secs(108));
        assert_eq!(state!(engine, "by_expression", 1), Some(State::Completed));
        clock.advance(Duration::from_secs(2));
        assert_eq!(state!(engine, "by_expression", 1), None);
    }

    #[tokio::test]
    async fn a_lease_is_as_long_as_it_says() {
        let clock = ManualClock::new();
        let store = MemoryStore::with_clock(clock.clone());
        let engine = Idempotency::builder(store.clone()).clock(clock).build();
        assert_eq!(engine.scope(leased(&engine, &store)).await.unwrap(), 7);
    }
}

mod errors {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
    enum PayError {
        #[error("declined")]
        Declined,
        #[error("timeout")]
        Timeout,
        #[error("busy")]
        Busy,
        #[error("{0}")]
        Refused(String),
    }

    impl From<Error> for PayError {
        fn from(error: Error) -> Self {
            Self::Refused(format!("{:?}", error.kind()))
        }
    }

    type Pay = Result<(), PayError>;

    fn fail(error: &PayError, effects: &Effects) -> Pay {
        effects.happen();
        Err(error.clone())
    }

    fn decide(error: &PayError) -> OnError {
        match error {
            PayError::Declined => OnError::Store,
            PayError::Timeout => OnError::Hold,
            _ => OnError::Release,
        }
    }

    #[idempotent(key = 1, ttl = "1h")]
    async fn by_default(error: PayError, effects: &Effects) -> Pay {
        fail(&error, effects)
    }

    #[idempotent(key = 1, ttl = "1h", on_error = release)]
    async fn releases(error: PayError, effects: &Effects) -> Pay {
        fail(&error, effects)
    }

    #[idempotent(key = 1, ttl = "1h", on_error = store)]
    async fn stores(error: PayError, effects: &Effects) -> Pay {
        fail(&error, effects)
    }

    #[idempotent(key = 1, ttl = "1h", on_error = hold)]
    async fn holds(error: PayError, effects: &Effects) -> Pay {
        fail(&error, effects)
    }

    #[idempotent(key = 1, ttl = "1h", on_error = decide)]
    async fn decides_by_path(error: PayError, effects: &Effects) -> Pay {
        fail(&error, effects)
    }

    #[idempotent(
        key = 1,
        ttl = "1h",
        on_error = |error| if strict && text.starts_with('t') { decide(error) } else { OnError::Release }
    )]
    async fn decides_by_closure(error: PayError, strict: bool, text: &str, effects: &Effects) -> Pay {
        fail(&error, effects)
    }

    #[idempotent(
        key = 1,
        ttl = "1h",
        on_error = |error| if error.is::<std::fmt::Error>() { Unstored::Hold } else { Unstored::Release }
    )]
    async fn decides_without_serde(error: Option<std::fmt::Error>, effects: &Effects) -> anyhow::Result<()> {
        effects.happen();
        match error {
            Some(error) => Err(error.into()),
            None => anyhow::bail!("another"),
        }
    }

    /// The second answer, and how often the body ran.
    async fn second(call: impl AsyncFn(&Effects) -> Pay) -> (Pay, usize) {
        let effects = Effects::default();
        let second = engine()
            .scope(async {
                call(&effects).await.unwrap_err();
                call(&effects).await
            })
            .await;
        (second, effects.count())
    }

    fn in_doubt() -> Pay {
        Err(PayError::Refused("InDoubt".to_owned()))
    }

    #[tokio::test]
    async fn one_answer_for_all_errors() {
        let error = || PayError::Declined;
        assert_eq!(second(async |effects| by_default(error(), effects).await).await, (Err(error()), 2));
        assert_eq!(second(async |effects| releases(error(), effects).await).await, (Err(error()), 2));
        assert_eq!(second(async |effects| stores(error(), effects).await).await, (Err(error()), 1));
        assert_eq!(second(async |effects| holds(error(), effects).await).await, (in_doubt(), 1));
    }

    #[tokio::test]
    async fn an_answer_for_each_error() {
        let declined = || PayError::Declined;
        assert_eq!(second(async |effects| decides_by_path(declined(), effects).await).await, (Err(declined()), 1));
        assert_eq!(second(async |effects| decides_by_path(PayError::Timeout, effects).await).await, (in_doubt(), 1));
        let busy = second(async |effects| decides_by_path(PayError::Busy, effects).await).await;
        assert_eq!(busy, (Err(PayError::Busy), 2));
    }

    #[tokio::test]
    async fn a_closure_sees_borrowed_and_copied_arguments() {
        let timeout = || PayError::Timeout;
        let held = second(async |effects| decides_by_closure(timeout(), true, "text", effects).await).await;
        assert_eq!(held, (in_doubt(), 1));
        let released = second(async |effects| decides_by_closure(timeout(), true, "other", effects).await).await;
        assert_eq!(released, (Err(timeout()), 2));
        let released = second(async |effects| decides_by_closure(timeout(), false, "text", effects).await).await;
        assert_eq!(released, (Err(timeout()), 2));
    }

    #[tokio::test]
    async fn errors_without_serde_are_released_or_held() {
        let effects = Effects::default();
        engine()
            .scope(async {
                decides_without_serde(None, &effects).await.unwrap_err();
                decides_without_serde(Some(std::fmt::Error), &effects).await.unwrap_err();
                let error = decides_without_serde(None, &effects).await.unwrap_err();
                assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::InDoubt);
            })
            .await;
        assert_eq!(effects.count(), 2);
    }
}

mod conflicts_and_crashes {
    use super::*;

    /// A body that says that it started and waits until it may end.
    struct Gate {
        started: Semaphore,
        open: Semaphore,
        effects: Effects,
    }

    impl Gate {
        fn new() -> Arc<Self> {
            Arc::new(Self { started: Semaphore::new(0), open: Semaphore::new(0), effects: Effects::default() })
        }

        async fn pass(&self) -> Result<usize, Error> {
            self.started.add_permits(1);
            self.open.acquire().await.unwrap().forget();
            Ok(self.effects.happen())
        }

        async fn started(&self) {
            self.started.acquire().await.unwrap().forget();
        }
    }

    #[idempotent(key = 1, ttl = "1h", on_conflict = reject)]
    async fn rejects(gate: Arc<Gate>) -> Result<usize, Error> {
        gate.pass().await
    }

    #[idempotent(key = 1, ttl = "1h", on_conflict = wait("1ms"))]
    async fn waits_shortly(gate: Arc<Gate>) -> Result<usize, Error> {
        gate.pass().await
    }

    #[idempotent(key = 1, ttl = "1h", on_conflict = wait)]
    async fn waits(gate: Arc<Gate>) -> Result<usize, Error> {
        gate.pass().await
    }

    #[idempotent(key = 1, ttl = "1h", on_crash = hold)]
    async fn holds(gate: Arc<Gate>) -> Result<usize, Error> {
        gate.pass().await
    }

    #[idempotent(key = 1, ttl = "1h", on_crash = retry)]
    async fn retries(gate: Arc<Gate>) -> Result<usize, Error> {
        gate.pass().await
    }

    #[tokio::test]
    async fn a_conflict_is_refused_at_once() {
        let (gate, engine) = (Gate::new(), engine());
        let first = tokio::spawn(engine.scope(rejects(gate.clone())));
        gate.started().await;
        let (second, report) = engine.scope(observe(rejects(gate.clone()))).await;
        assert_eq!(second.unwrap_err().kind(), ErrorKind::InProgress);
        assert!(!report.unwrap().waited);
        gate.open.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_conflict_is_waited_for_as_long_as_it_says() {
        let gate = Gate::new();
        let engine = Idempotency::builder(MemoryStore::new()).on_conflict(OnConflict::Reject).build();
        let first = tokio::spawn(engine.scope(waits_shortly(gate.clone())));
        gate.started().await;
        let (second, report) = engine.scope(observe(waits_shortly(gate.clone()))).await;
        assert_eq!(second.unwrap_err().kind(), ErrorKind::InProgress);
        assert!(report.unwrap().waited);
        gate.open.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn waiting_is_said_although_the_engine_refuses() {
        let gate = Gate::new();
        let engine = Idempotency::builder(MemoryStore::new()).on_conflict(OnConflict::Reject).build();
        let first = tokio::spawn(engine.scope(waits(gate.clone())));
        gate.started().await;
        let second = tokio::spawn(engine.scope(waits(gate.clone())));
        tokio::task::yield_now().await;
        gate.open.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap(), 1);
        assert_eq!(second.await.unwrap().unwrap(), 1);
        assert_eq!(gate.effects.count(), 1);
    }

    #[tokio::test]
    async fn after_a_crash_the_call_is_in_doubt_or_runs_again() {
        let (gate, engine) = (Gate::new(), engine());
        let crashed = tokio::spawn(engine.scope(holds(gate.clone())));
        gate.started().await;
        crashed.abort();
        assert!(crashed.await.unwrap_err().is_cancelled());
        let second = engine.scope(holds(gate.clone())).await;
        assert_eq!(second.unwrap_err().kind(), ErrorKind::InDoubt);

        let crashed = tokio::spawn(engine.scope(retries(gate.clone())));
        gate.started().await;
        crashed.abort();
        assert!(crashed.await.unwrap_err().is_cancelled());
        gate.open.add_permits(1);
        assert_eq!(engine.scope(retries(gate.clone())).await.unwrap(), 1);
    }
}

mod versions {
    use super::*;

    #[idempotent(key = 1, ttl = "1h", name = "versions", version = 1, engine = engine)]
    async fn old(engine: &Idempotency) -> Result<u32, Error> {
        Ok(5)
    }

    #[idempotent(key = 1, ttl = "1h", name = "versions", version = 2, engine = engine)]
    async fn new(engine: &Idempotency, effects: &Effects) -> Result<String, Error> {
        effects.happen();
        Ok(String::new())
    }

    #[idempotent(key = 1, ttl = "1h", name = "versions", version = 2, upgrade = read_old, engine = engine)]
    async fn upgrading(engine: &Idempotency, effects: &Effects) -> Result<String, Error> {
        effects.happen();
        Ok(String::new())
    }

    fn read_old(version: u32, body: &[u8]) -> Option<String> {
        (version == 1).then(|| format!("upgraded {}", String::from_utf8_lossy(body)))
    }

    /// Another process on the same store: in one, a name is one function.
    fn process(store: &MemoryStore) -> Idempotency {
        Idempotency::new(store.clone())
    }

    #[tokio::test]
    async fn a_result_of_another_version_is_upgraded_or_refused() {
        let (store, effects) = (MemoryStore::new(), Effects::default());
        assert_eq!(old(&process(&store)).await.unwrap(), 5);
        let error = new(&process(&store), &effects).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert_eq!(upgrading(&process(&store), &effects).await.unwrap(), "upgraded 5");
        assert_eq!(effects.count(), 0);
    }
}

mod engines {
    use super::*;

    struct Payments {
        engine: Idempotency,
        charges: AtomicUsize,
    }

    impl Payments {
        #[idempotent(key = id, ttl = "1h", engine = &self.engine)]
        async fn charge(&self, id: u64) -> Result<usize, Error> {
            Ok(self.charges.fetch_add(1, Ordering::SeqCst) + 1)
        }
    }

    #[idempotent(key = 1, ttl = "1h")]
    async fn without_engine() -> Result<(), Error> {
        Ok(())
    }

    #[tokio::test]
    async fn an_engine_can_be_a_field() {
        let payments = Payments { engine: engine(), charges: AtomicUsize::new(0) };
        assert_eq!(payments.charge(1).await.unwrap(), 1);
        assert_eq!(engine().scope(payments.charge(1)).await.unwrap(), 1, "it goes before the task's");
        assert_eq!(payments.charge(2).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_call_without_an_engine_is_refused() {
        assert_eq!(without_engine().await.unwrap_err().kind(), ErrorKind::NotInstalled);
    }
}
