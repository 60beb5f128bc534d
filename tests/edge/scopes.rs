//! What the body of an edge finds around it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::edge::{Attempt, EdgeCall, EdgeOutcome, EdgeResult, End, Extensions};
use idempotency::key::Key;
use idempotency::step::StepRetry;
use idempotency::store::MemoryStore;
use idempotency::{Context, Error, Idempotency, InCurrentCall as _, WithEngine as _, idempotent};

use crate::mail::{Mail as _, mail};
use crate::world::{DAY, World};

#[derive(Clone, Debug, PartialEq)]
struct Subject(&'static str);

fn subject() -> Option<Subject> {
    Extensions::current().get().cloned()
}

#[idempotent(name = "addresses.find", key = id, ttl = "1h")]
async fn find(id: u32) -> Result<Option<String>, Error> {
    Ok(subject().map(|subject| subject.0.to_owned()))
}

#[tokio::test]
async fn an_extension_is_in_scope_of_the_body_its_calls_and_its_tasks() {
    let world = World::new();
    let outcome = world.mail().extension(Subject("outer")).extension(7_u32).run(async |_| {
        assert_eq!(subject(), Some(Subject("outer")));
        assert_eq!(find(1).await.ok().flatten().as_deref(), Some("outer"));
        let task = tokio::spawn(async { subject() }.in_current_call());
        assert_eq!(task.await.ok().flatten(), Some(Subject("outer")));
        let inner = EdgeCall::new(&world.engine, "mail", Key::of("8"), DAY);
        let inner = inner.extension(Subject("inner")).run(async |_| {
            assert_eq!(subject(), Some(Subject("inner")), "it hides the outer one");
            assert_eq!(Extensions::current().get(), Some(&7_u32));
            ((), EdgeResult::completed("").into())
        });
        assert!(matches!(inner.await, EdgeOutcome::Executed(())));
        assert_eq!(subject(), Some(Subject("outer")));
        world.send()
    });
    assert!(matches!(outcome.await, EdgeOutcome::Executed(1)));
    assert_eq!(subject(), None);
}

#[tokio::test]
async fn functions_that_name_no_engine_use_the_one_in_scope_or_else_the_edges() -> Result<(), Error>
{
    let (edges, scoped) = (World::new(), Idempotency::new(MemoryStore::new()));
    let run = || {
        edges.mail().run(async |_| {
            find(1).await.expect("there is an engine");
            ((), End::Released)
        })
    };
    assert!(matches!(run().with_engine(&scoped).await, EdgeOutcome::Executed(())));
    let found = async |engine: &Idempotency| engine.record("addresses.find", 1).inspect().await;
    assert!(found(&scoped).await?.is_some() && found(&edges.engine).await?.is_none());
    assert!(matches!(run().await, EdgeOutcome::Executed(())));
    assert!(found(&edges.engine).await?.is_some());
    Ok(())
}

/// Detached or not: a body in a task of its own carries the engines of its caller along.
#[tokio::test]
async fn functions_in_a_nested_body_use_the_engine_of_the_inner_edge() -> Result<(), Error> {
    let [outer, inner, scoped] = [(); 3].map(|()| Idempotency::new(MemoryStore::new()));
    let run = async |id: u32, is_detached: bool| {
        let nested = inner.clone();
        let innermost = async move |_| {
            let answer = find(id).await;
            (answer.is_ok(), End::Released)
        };
        let body = async move |_| {
            let call = EdgeCall::new(&nested, "mail", Key::of(&id), DAY);
            let ran = if is_detached {
                call.run_detached(innermost, |_| ()).await
            } else {
                call.run(innermost).await
            };
            assert!(matches!(ran, EdgeOutcome::Executed(true)), "{ran:?}");
            // Back in the outer body, its own engine is used again.
            find(id + 100).await.expect("there is an engine");
            ((), End::Released)
        };
        let call = EdgeCall::new(&outer, "mail", Key::of(&id), DAY);
        let ran =
            if is_detached { call.run_detached(body, |_| ()).await } else { call.run(body).await };
        assert!(matches!(ran, EdgeOutcome::Executed(())), "{ran:?}");
    };
    let found = async |id: u32| -> Result<[bool; 3], Error> {
        let mut found = [false; 3];
        for (engine, found) in [&outer, &inner, &scoped].into_iter().zip(&mut found) {
            *found = engine.record("addresses.find", id).inspect().await?.is_some();
        }
        Ok(found)
    };
    for (id, is_detached) in [(1, false), (2, true)] {
        run(id, is_detached).await;
        assert_eq!(found(id).await?, [false, true, false], "detached: {is_detached}");
        assert_eq!(found(id + 100).await?, [true, false, false], "detached: {is_detached}");
    }
    for (id, is_detached) in [(3, false), (4, true)] {
        run(id, is_detached).with_engine(&scoped).await;
        assert_eq!(found(id).await?, [false, false, true], "detached: {is_detached}");
        assert_eq!(found(id + 100).await?, [false, false, true], "detached: {is_detached}");
    }
    Ok(())
}

/// In tasks of the step too, and not in a call that it makes.
#[tokio::test]
async fn an_attempt_knows_the_try_of_its_step() {
    fn step_try() -> Option<u32> {
        Attempt::current().and_then(|attempt| attempt.step_try())
    }
    let world = World::new();
    let outcome = mail(&world.engine).run(async |_| {
        let tries = Mutex::new(Vec::new());
        let step = || async {
            let in_task = tokio::spawn(async { step_try() }.in_current_call()).await?;
            let inner = world.engine.call("addresses.find", 1).ttl(DAY);
            let inside = inner.run(async || Ok::<_, Error>(step_try())).await?;
            let mut tries = tries.lock().unwrap();
            tries.push((step_try(), in_task, inside));
            anyhow::ensure!(tries.len() == 3, "it is tried again");
            Ok(())
        };
        let retry = StepRetry::tries(3).first_pause(Duration::ZERO);
        let outcome = Context::current().step("find", step).retry(retry).await;
        assert!(outcome.is_ok() && step_try().is_none());
        (tries.into_inner().unwrap(), End::Released)
    });
    let numbers = [Some(1), Some(2), Some(3)];
    let expected = numbers.map(|number| (number, number, None));
    assert!(matches!(outcome.await, EdgeOutcome::Executed(tries) if tries == expected));
}

#[tokio::test]
async fn an_attempt_keeps_values_of_its_own() {
    #[derive(Default)]
    struct Sent(AtomicUsize);
    let next = || {
        let attempt = Attempt::current().expect("this is a body");
        attempt.extension::<Sent>().0.fetch_add(1, Ordering::Relaxed)
    };
    let world = World::new();
    for _ in 0..2 {
        let outcome = mail(&world.engine).run(async |_| ([next(), next()], End::Released));
        assert!(matches!(outcome.await, EdgeOutcome::Executed([0, 1])));
    }
}
