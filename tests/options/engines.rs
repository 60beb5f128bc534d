//! `engine`, and a call without one.

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
    assert_eq!(
        payments.charge(1).with_engine(&engine()).await.unwrap(),
        1,
        "it goes before the task's"
    );
    assert_eq!(payments.charge(2).await.unwrap(), 2);
}

#[tokio::test]
async fn a_call_without_an_engine_is_refused() {
    assert_eq!(without_engine().await.unwrap_err().kind(), ErrorKind::NotInstalled);
}
