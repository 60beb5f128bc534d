//! `on_crash = verify(…)` and `after_expiry`.

use idempotency::{Context, Verdict, WithEngine as _};

use super::*;

/// Somebody outside: knows what it was told, and can be made to keep the teller waiting.
#[derive(Default)]
struct Provider {
    effects: Effects,
    questions: AtomicUsize,
    known: std::sync::Mutex<Option<String>>,
    hangs: std::sync::atomic::AtomicBool,
}

impl Provider {
    async fn charge(&self, order: Order) -> Result<String, Error> {
        let receipt = format!("charge {} of {}", self.effects.happen(), order.user);
        *self.known.lock().unwrap() = Some(receipt.clone());
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(receipt)
    }

    async fn find(&self, order: &Order) -> Result<Option<String>, Error> {
        tokio::task::yield_now().await;
        assert_eq!(order.id, 7);
        self.questions.fetch_add(1, Ordering::SeqCst);
        Ok(self.known.lock().unwrap().clone())
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

fn verdict(found: Option<String>) -> Verdict<String> {
    found.map_or(Verdict::NotExecuted, Verdict::Completed)
}

/// The body moves what the question borrows.
#[idempotent(key = order.id, ttl = "1h", on_crash = verify(async |context| {
    assert_eq!(context.attempt(), Context::current().attempt());
    Ok(verdict(provider.find(&order).await?))
}, settle = "0s"))]
async fn asks(order: Order, provider: Arc<Provider>) -> Result<String, Error> {
    provider.charge(order).await
}

/// A block that would move takes nothing either.
#[idempotent(key = order.id, ttl = "1h", name = "moves", on_crash = verify(move |_| async move {
    let Some(receipt) = provider.find(&order).await? else { return Ok(Verdict::NotExecuted) };
    Ok(Verdict::Completed(receipt))
}, settle = Duration::ZERO))]
async fn asks_with_a_block(order: Order, provider: Arc<Provider>) -> Result<String, Error> {
    provider.charge(order).await
}

#[idempotent(key = order.id, ttl = "1h", name = "detached", detach, on_crash = verify(async |_| Ok(verdict(provider.find(order).await?)), settle = "0s"))]
async fn asks_and_detaches(order: &Order, provider: Arc<Provider>) -> Result<String, Error> {
    provider.charge(order.clone()).await
}

async fn ask_nobody(_: Context) -> Result<Verdict<String>, Error> {
    Ok(Verdict::Completed("known by heart".to_owned()))
}

#[idempotent(key = order.id, ttl = "1h", name = "path", on_crash = verify(ask_nobody, settle = "0s"))]
async fn asks_a_path(order: Order, provider: Arc<Provider>) -> Result<String, Error> {
    provider.charge(order).await
}

struct Shop(Arc<Provider>);

impl Shop {
    #[idempotent(key = order.id, ttl = "1h", name = "owned self", on_crash = verify(async |_| Ok(verdict(self.0.find(&order).await?)), settle = "0s"))]
    async fn charge(self, order: Order) -> Result<String, Error> {
        let provider = self.0;
        provider.charge(order).await
    }
}

#[async_trait::async_trait]
trait Charges {
    async fn charge_in_trait(&self, order: Order) -> Result<String, Error>;
}

#[async_trait::async_trait]
impl Charges for Shop {
    #[idempotent(key = order.id, ttl = "1h", name = "trait", on_crash = verify(async |_| Ok(verdict(self.0.find(&order).await?)), settle = "0s"))]
    async fn charge_in_trait(&self, order: Order) -> Result<String, Error> {
        self.0.charge(order).await
    }
}

/// Runs `call` until its effect has happened, drops it there, and runs it again.
async fn crashed_and_called_again<F>(call: impl Fn(Arc<Provider>) -> F) -> (Arc<Provider>, String)
where
    F: Future<Output = Result<String, Error>> + Send + 'static,
{
    let (provider, engine) = (Arc::new(Provider::default()), engine());
    provider.hangs.store(true, Ordering::SeqCst);
    let crashed = tokio::spawn(call(provider.clone()).with_engine(&engine));
    while provider.effects.count() == 0 {
        tokio::task::yield_now().await;
    }
    crashed.abort();
    assert!(crashed.await.unwrap_err().is_cancelled());
    provider.hangs.store(false, Ordering::SeqCst);
    let receipt = call(provider.clone()).with_engine(&engine).await.unwrap();
    assert_eq!(call(provider.clone()).with_engine(&engine).await.unwrap(), receipt, "a replay");
    (provider, receipt)
}

#[tokio::test]
async fn a_question_sees_the_arguments_that_the_body_moves() {
    for (provider, receipt) in [
        crashed_and_called_again(|provider| asks(order(), provider)).await,
        crashed_and_called_again(|provider| asks_with_a_block(order(), provider)).await,
        crashed_and_called_again(|provider| Shop(provider).charge(order())).await,
        crashed_and_called_again(|provider| async move {
            Shop(provider).charge_in_trait(order()).await
        })
        .await,
    ] {
        assert_eq!(receipt, "charge 1 of ada");
        assert_eq!((provider.effects.count(), provider.questions()), (1, 1));
    }
}

#[tokio::test]
async fn a_question_can_be_a_function() {
    let (provider, receipt) =
        crashed_and_called_again(|provider| asks_a_path(order(), provider)).await;
    assert_eq!((receipt.as_str(), provider.effects.count()), ("known by heart", 1));
}

#[tokio::test]
async fn what_did_not_happen_runs_in_the_same_call() {
    let (provider, engine) = (Arc::new(Provider::default()), engine());
    provider.hangs.store(true, Ordering::SeqCst);
    let crashed = tokio::spawn(asks(order(), provider.clone()).with_engine(&engine));
    while provider.effects.count() == 0 {
        tokio::task::yield_now().await;
    }
    crashed.abort();
    assert!(crashed.await.unwrap_err().is_cancelled());
    *provider.known.lock().unwrap() = None;
    provider.hangs.store(false, Ordering::SeqCst);
    let (receipt, report) = with_report(asks(order(), provider.clone())).with_engine(&engine).await;
    assert_eq!(receipt.unwrap(), "charge 2 of ada");
    assert_eq!((provider.questions(), report.unwrap().attempt), (1, 2));
}

#[tokio::test]
async fn a_detached_body_needs_no_question_when_its_caller_is_gone() {
    let (provider, engine) = (Arc::new(Provider::default()), engine());
    let (there, order) = (provider.clone(), order());
    let copy = order.clone();
    let crashed =
        tokio::spawn(async move { asks_and_detaches(&copy, there).await }.with_engine(&engine));
    while provider.effects.count() == 0 {
        tokio::task::yield_now().await;
    }
    crashed.abort();
    let _ = crashed.await;
    assert_eq!(
        asks_and_detaches(&order, provider.clone()).with_engine(&engine).await.unwrap(),
        "charge 1 of ada"
    );
    assert_eq!(provider.questions(), 0);
}

#[idempotent(key = 1, ttl = "90s", name = "refusing", after_expiry = refuse("30d"))]
async fn refuses_late_retries(effects: &Effects) -> Result<usize, Error> {
    Ok(effects.happen())
}

#[tokio::test]
async fn a_late_retry_is_refused_for_as_long_as_it_says() {
    let (clock, effects) = (ManualClock::new(), Effects::default());
    let engine = Idempotency::builder(MemoryStore::with_clock(clock.clone()))
        .clock(clock.clone())
        .build()
        .unwrap();
    assert_eq!(refuses_late_retries(&effects).with_engine(&engine).await.unwrap(), 1);
    clock.advance(Duration::from_secs(90));
    let late = refuses_late_retries(&effects).with_engine(&engine).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Expired);
    clock.advance(Duration::from_secs(30 * 86_400));
    assert_eq!(refuses_late_retries(&effects).with_engine(&engine).await.unwrap(), 2);
}
