//! Keys for services downstream, from inside of steps.

use std::collections::HashSet;

use idempotency::{Context, Error, InCurrentCall as _};

use super::hang;
use crate::world::{World, eventually, poll_once};

/// The key for the provider, seen from everywhere that code of a step can be.
async fn key(context: &Context) -> Result<String, Error> {
    let key = context.derive_key("provider");
    tokio::task::yield_now().await;
    assert_eq!(Context::current().derive_key("provider"), key);
    let spawned =
        tokio::spawn(async { Context::current().derive_key("provider") }.in_current_call()).await;
    assert_eq!(spawned.unwrap(), key);
    assert!(key.len() <= 64);
    Ok(key)
}

#[tokio::test]
async fn a_derived_key_is_unique_for_each_step_and_the_same_in_every_attempt() {
    let world = World::new();
    let mut attempts = Vec::new();
    for _ in 0..2 {
        let mut keys = Vec::new();
        {
            let mut call = Box::pin(world.fulfil().run(async || {
                let context = Context::current();
                keys.push(context.derive_key("provider"));
                for (name, index) in [("charge", 0), ("charge", 1), ("ship", 0)] {
                    // The step fails, so that it runs in each attempt.
                    let step = context.step_at(name, index, async || {
                        keys.push(key(&context).await?);
                        Err::<(), _>(context.fence().await.map_or(Failed, |_| Failed))
                    });
                    let _: Result<(), Failed> = step.await;
                }
                assert_eq!(context.derive_key("provider"), keys[0], "the step is over");
                world.ledger.charge("attempt");
                hang::<Result<(), Error>>().await
            }));
            let count = world.ledger.count();
            eventually("the attempt", async || {
                let _ = poll_once(&mut call);
                world.ledger.count() > count
            })
            .await;
        }
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 4, "{keys:?}");
        attempts.push(keys);
    }
    assert_eq!(attempts[0], attempts[1]);
}

#[derive(Debug)]
struct Failed;

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

/// A provider that got one key for two items would take the second for the first.
#[tokio::test]
async fn a_key_of_a_call_tells_its_steps_apart_also_in_a_step_of_a_call_that_a_step_makes() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let mut keys = Vec::new();
        for item in 0..2 {
            let charge = context.step_at("item", item, async || {
                let inner = world.call(100 + item).run(async || {
                    let of_item = context.derive_key("provider");
                    let step = Context::current()
                        .step("charge", async || Ok::<_, Error>(context.derive_key("provider")));
                    assert_eq!(step.await?, of_item);
                    Ok::<_, Error>(of_item)
                });
                inner.await
            });
            keys.push(charge.await?);
        }
        Ok::<_, Error>(keys)
    });
    let keys = call.await.unwrap();
    assert_ne!(keys[0], keys[1]);
}
