//! `detach`: the body goes on when its caller is gone, on copies of what the caller lent.

#[allow(dead_code, reason = "a detached body cannot borrow the effects")]
#[path = "support/effects.rs"]
mod effects;

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use effects::Effects;
use idempotency::store::MemoryStore;
use idempotency::{
    Error, ErrorAction, ErrorKind, Idempotency, Verdict, WithEngine as _, idempotent,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

/// What a body and its test tell each other.
#[derive(Debug)]
struct Gate {
    started: Semaphore,
    open: Semaphore,
    done: Semaphore,
    effects: Effects,
}

impl Gate {
    fn new() -> Arc<Self> {
        let closed = || Semaphore::new(0);
        Arc::new(Self {
            started: closed(),
            open: closed(),
            done: closed(),
            effects: Effects::default(),
        })
    }

    async fn pass(&self) -> usize {
        let ending = Ending(self);
        self.started.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        let effect = self.effects.happen();
        self.done.add_permits(1);
        std::mem::forget(ending);
        effect
    }
}

/// A body that was dropped: there is nothing to wait for.
struct Ending<'a>(&'a Gate);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.done.close();
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    user: String,
}

fn order() -> Order {
    Order { id: 7, user: "ada".to_owned() }
}

#[idempotent(key = order.id, ttl = "24h", detach)]
async fn charge(order: &Order, gate: Arc<Gate>) -> Result<String, Error> {
    let effect = gate.pass().await;
    Ok(format!("{} #{effect}", order.user))
}

#[tokio::test]
async fn a_body_outlives_its_caller() {
    let (gate, engine) = (Gate::new(), engine());
    {
        let order = order();
        let caller = charge(&order, gate.clone()).with_engine(&engine);
        tokio::select! {
            _ = caller => unreachable!("the gate is closed"),
            permit = gate.started.acquire() => permit.unwrap().forget(),
        }
    }
    gate.open.add_permits(1);
    gate.done.acquire().await.unwrap().forget();
    assert_eq!(charge(&order(), gate.clone()).with_engine(&engine).await.unwrap(), "ada #1");
    assert_eq!(gate.effects.count(), 1);
}

/// Locks that nobody looks at: they are there to be held.
mod held {
    use super::*;

    type Guard = OwnedMutexGuard<()>;

    #[idempotent(key = "once", ttl = "24h", detach)]
    pub(super) async fn by_a_name(_account: Guard, gate: Arc<Gate>) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    #[idempotent(key = "once", ttl = "24h", detach)]
    pub(super) async fn without_a_name(_: Guard, gate: Arc<Gate>) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    #[allow(unused_parens, reason = "it is a pattern all the same")]
    #[idempotent(key = "once", ttl = "24h", detach)]
    pub(super) async fn in_parentheses((_): Guard, gate: Arc<Gate>) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    #[idempotent(key = "once", ttl = "24h", detach)]
    pub(super) async fn by_a_pattern(
        (_account, _): (Guard, u64),
        gate: Arc<Gate>,
    ) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    #[idempotent(key = "once", ttl = "24h", detach)]
    pub(super) async fn under_a_condition(
        #[cfg(not(any()))] _account: Guard,
        #[cfg(any())] _account: Missing,
        #[cfg(any())] _: Missing,
        gate: Arc<Gate>,
    ) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    #[idempotent(key = "once", ttl = "24h", detach, on_crash = verify(async |_| Ok(Verdict::NotExecuted)))]
    pub(super) async fn with_a_question(_account: Guard, gate: Arc<Gate>) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    #[idempotent(key = "once", ttl = "24h", detach, on_crash = verify(async |_| Ok(Verdict::NotExecuted)))]
    pub(super) async fn with_a_question_and_without_a_name(
        _: Guard,
        gate: Arc<Gate>,
    ) -> Result<usize, Error> {
        Ok(gate.pass().await)
    }

    pub(super) struct Account {
        _lock: Guard,
    }

    impl Account {
        pub(super) fn new(lock: Guard) -> Self {
            Self { _lock: lock }
        }

        #[idempotent(key = "once", ttl = "24h", detach)]
        pub(super) async fn by_itself(self, gate: Arc<Gate>) -> Result<usize, Error> {
            Ok(gate.pass().await)
        }
    }
}

type Holding =
    fn(OwnedMutexGuard<()>, Arc<Gate>) -> Pin<Box<dyn Future<Output = Result<usize, Error>>>>;

#[tokio::test]
async fn what_nobody_mentions_is_held_until_the_body_is_over() {
    let kinds: [(&str, Holding); 8] = [
        ("by a name", |account, gate| Box::pin(held::by_a_name(account, gate))),
        ("without a name", |account, gate| Box::pin(held::without_a_name(account, gate))),
        ("in parentheses", |account, gate| Box::pin(held::in_parentheses(account, gate))),
        ("by a pattern", |account, gate| Box::pin(held::by_a_pattern((account, 1), gate))),
        ("under a condition", |account, gate| Box::pin(held::under_a_condition(account, gate))),
        ("with a question", |account, gate| Box::pin(held::with_a_question(account, gate))),
        ("with a question and without a name", |account, gate| {
            Box::pin(held::with_a_question_and_without_a_name(account, gate))
        }),
        ("by itself", |account, gate| Box::pin(held::Account::new(account).by_itself(gate))),
    ];
    let mut released = Vec::new();
    for (kind, call) in kinds {
        let (gate, engine, account) = (Gate::new(), engine(), Arc::new(Mutex::new(())));
        {
            let caller =
                call(account.clone().lock_owned().await, gate.clone()).with_engine(&engine);
            tokio::select! {
                _ = caller => unreachable!("the gate is closed"),
                permit = gate.started.acquire() => permit.unwrap().forget(),
            }
        }
        if account.try_lock().is_ok() {
            released.push(kind);
        }
        gate.open.add_permits(1);
        gate.done.acquire().await.unwrap().forget();
        // Would wait for ever for a guard that nobody drops.
        drop(account.lock().await);
    }
    assert!(released.is_empty(), "released while the body runs: {released:?}");
}

#[allow(clippy::too_many_arguments, reason = "one of each kind")]
#[idempotent(key = (text, N, *number), ttl = "24h", detach, name = "detach.lent")]
async fn lent<T, const N: usize>(
    text: &str,
    numbers: &[u64],
    array: &[u64; N],
    path: &Path,
    mut number: &u64,
    value: T,
    mut fixed: &'static str,
    #[cfg(any())] absent: &Missing,
    mut map: BTreeMap<u64, String>,
    (first, second): (u64, u64),
    _: &str,
    _unused: &str,
) -> Result<String, Error>
where
    T: std::fmt::Display + Send + Sync + 'static,
{
    if *number == 1 {
        number = &numbers[0];
        fixed = fixed.trim();
    }
    map.insert(9, text.to_owned());
    tokio::task::yield_now().await;
    let path = path.display();
    Ok(format!(
        "{text} {numbers:?} {array:?} {path} {number} {value} {fixed} {map:?} {first} {second}"
    ))
}

#[tokio::test]
async fn what_was_lent_is_copied_and_looks_the_same() {
    let engine = engine();
    for _ in 0..2 {
        let text = "text".to_owned();
        let call = lent(
            &text,
            &[4, 5],
            &[6],
            Path::new("/"),
            &1,
            2.5,
            " fixed",
            BTreeMap::new(),
            (7, 8),
            "",
            "",
        );
        assert_eq!(
            call.with_engine(&engine).await.unwrap(),
            "text [4, 5] [6] / 4 2.5 fixed {9: \"text\"} 7 8"
        );
    }
}

struct Payments {
    shop: u64,
}

impl Payments {
    #[idempotent(key = (self.shop, id), ttl = "24h", detach, on_error = |_| if id == 0 { ErrorAction::Hold } else { ErrorAction::Release })]
    async fn by_arc(self: Arc<Self>, id: u64) -> anyhow::Result<u64> {
        tokio::task::yield_now().await;
        if id == 0 {
            anyhow::bail!("zero");
        }
        Ok(self.shop + id)
    }

    #[idempotent(key = (self.shop, id), ttl = "24h", detach)]
    async fn by_value(mut self, id: u64) -> Result<u64, Error> {
        tokio::task::yield_now().await;
        self.shop += id;
        Ok(self.shop)
    }
}

#[tokio::test]
async fn methods_that_own_themselves() {
    let engine = engine();
    let payments = Arc::new(Payments { shop: 1 });
    assert_eq!(payments.clone().by_arc(4).with_engine(&engine).await.unwrap(), 5);
    assert_eq!(Payments { shop: 1 }.by_value(2).with_engine(&engine).await.unwrap(), 3);
    payments.clone().by_arc(0).with_engine(&engine).await.unwrap_err();
    let error = payments.by_arc(0).with_engine(&engine).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::InDoubt);
}

#[idempotent(key = id, ttl = "24h", detach)]
fn boxed(id: u64) -> Pin<Box<dyn Future<Output = Result<u64, Error>> + Send>> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        Ok(id)
    })
}

#[tokio::test]
async fn a_boxed_future_that_owns_all_can_be_detached() {
    assert_eq!(boxed(3).with_engine(&engine()).await.unwrap(), 3);
}

#[idempotent(key = id, ttl = "24h", detach)]
async fn panics(id: u64) -> Result<(), Error> {
    panic!("the body of {id} panics");
}

#[tokio::test]
async fn a_panic_reaches_the_caller() {
    let engine = engine();
    let panic = tokio::spawn(panics(1).with_engine(&engine)).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<String>().unwrap(), "the body of 1 panics");
    assert_eq!(panics(1).with_engine(&engine).await.unwrap_err().kind(), ErrorKind::InDoubt);
}

#[idempotent(key = id, ttl = "24h", detach)]
async fn outer(id: u64) -> Result<u64, Error> {
    inner(id).await
}

#[idempotent(key = id, ttl = "24h")]
async fn inner(id: u64) -> Result<u64, Error> {
    Ok(id + 1)
}

#[tokio::test]
async fn the_task_has_the_engine_of_its_caller() {
    assert_eq!(outer(1).with_engine(&engine()).await.unwrap(), 2);
}
