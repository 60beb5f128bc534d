//! `Send` futures, and bodies that are none.

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
                    let answer = local(id, &effects).with_engine(&engine).await.unwrap();
                    (answer, effects.count())
                })
            };
            assert_eq!(call().await.unwrap(), (5, 1));
            assert_eq!(call().await.unwrap(), (5, 0));
        })
        .await;
}
