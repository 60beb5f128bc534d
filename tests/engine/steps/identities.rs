//! What a step is recognised by, and what becomes of steps that the code does not have any more.

use idempotency::record::State;
use idempotency::{Context, Error, ErrorKind, OnError};

use super::hang;
use crate::world::World;

#[tokio::test]
async fn a_name_and_an_index_tell_steps_apart() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let mut results = Vec::new();
        for (name, index) in [("item", 0), ("item", 1), ("item 1", 0), ("", 1)] {
            results
                .push(context.step_at(name, index, || world.act(format!("{name}/{index}"))).await?);
        }
        Ok::<_, Error>(results)
    });
    assert_eq!(call.await.unwrap().len(), 4);
    assert_eq!(world.ledger.charges(), ["item/0", "item/1", "item 1/0", "/1"]);
}

#[tokio::test]
async fn an_identity_that_is_used_twice_in_an_attempt_is_an_error_that_says_so() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        world.step("reserve").await?;
        let again = context.step_at("reserve", 0, || world.act("again")).await.unwrap_err();
        assert_eq!((again.kind(), again.step()), (ErrorKind::Config, Some("reserve")));
        assert!(again.to_string().contains("step `reserve`: a step is used twice"), "{again}");
        // Also while the first one runs.
        let (first, second) = tokio::join!(world.step("ship"), world.step("ship"));
        first.and(second)
    });
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(world.ledger.charges(), ["reserve", "ship"]);
}

#[tokio::test]
async fn a_recorded_step_that_the_code_does_not_ask_for_is_an_error_at_commit() {
    let world = World::new();
    let died = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.step("charge").await?;
        hang::<Result<String, Error>>().await
    });
    world.crash_after(2, 2, died).await;
    let renamed = || world.fulfil().on_error(OnError::Store);
    for _ in 0..2 {
        let error = renamed().run(async || world.step("reserve").await.map_err(Into::into)).await;
        let error: TextError = error.unwrap_err();
        assert!(error.0.starts_with("Decode"), "{}", error.0);
        assert!(
            error.0.contains("step `charge`") && error.0.contains("`charge` is recorded"),
            "{}",
            error.0
        );
        // An error that would be the result does not hide it either.
        let error = renamed()
            .run(async || Err::<String, _>(TextError("declined".into())))
            .await
            .unwrap_err();
        assert!(error.0.starts_with("Decode"), "{}", error.0);
    }
    assert_eq!(world.record(1).await.unwrap().state, State::InProgress);
    let whole = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.step("charge").await
    });
    assert_eq!(whole.await.unwrap(), "charge done", "the code that has the step can finish");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct TextError(String);

impl From<Error> for TextError {
    fn from(error: Error) -> Self {
        Self(format!("{:?}: {error}", error.kind()))
    }
}

#[tokio::test]
async fn a_step_inside_of_a_step_is_refused() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let nested = context.step("outer", async || {
            assert_eq!(world.step("inner").await.unwrap_err().kind(), ErrorKind::Unsupported);
            // A guarded call has steps of its own, wherever it is made.
            let other = world
                .call(2)
                .run(async || Context::current().step("inner", || world.act("other")).await);
            other.await
        });
        nested.await
    });
    assert_eq!(call.await.unwrap(), "other done");
    assert_eq!(world.ledger.charges(), ["other"]);
}

#[tokio::test]
async fn a_step_inside_of_a_step_is_refused_also_in_a_step_of_a_call_between_them() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let outer = context.step("outer", async || {
            let between = world.call(2).run(async || {
                let step = Context::current().step("step", async || {
                    let nested = context.step("inner", || world.act("inner")).await;
                    assert_eq!(nested.unwrap_err().kind(), ErrorKind::Unsupported);
                    world.act("other").await
                });
                step.await
            });
            between.await
        });
        outer.await
    });
    assert_eq!(call.await.unwrap(), "other done");
    assert_eq!(world.ledger.charges(), ["other"]);
}
