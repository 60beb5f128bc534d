//! A consumer that stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency::inbox::Source as _;
use idempotency_rabbitmq::{QueueMessage, RabbitMq};
use idempotency_test_support::consuming::stalls;
use idempotency_test_support::deadline::{eventually, within};
use tokio::sync::Semaphore;

use crate::scene::{Kind, Scene, append, consume, engine, ids, inbox};

#[tokio::test]
async fn what_waits_goes_back_at_once_and_what_runs_is_finished() -> anyhow::Result<()> {
    for kind in [Kind::Classic, Kind::Quorum] {
        let scene = Scene::new(kind).await?;
        // More than a consumer takes: some wait in the client too.
        scene.publish_all(ids("m", 100)).await?;
        let source = RabbitMq::new(&scene.connection().await?, &*scene.queue)
            .dead_letters(&*scene.dead)
            .with_prefetch(60)
            .connect()
            .await?;
        let (effects, gate) = (scene.effects.clone(), Arc::new(Semaphore::new(0)));
        let (running, failed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let handler = {
            let (gate, running, failed) = (gate.clone(), running.clone(), failed.clone());
            move |message: Arc<QueueMessage>| {
                let (effects, gate) = (effects.clone(), gate.clone());
                // Four wait for their next try.
                let fails = failed.fetch_add(1, Ordering::SeqCst) < 4;
                if !fails {
                    running.fetch_add(1, Ordering::SeqCst);
                }
                async move {
                    if fails {
                        return Err("no connection");
                    }
                    let _ = gate.acquire().await;
                    append(&effects, &message);
                    Ok(())
                }
            }
        };
        let inbox = inbox(&engine());
        let minute = Duration::from_secs(60);
        let inbox = inbox.with_backoff(minute, minute);
        let until = eventually("16 handlers to run", || running.load(Ordering::SeqCst) == 16);
        let goes_on = async {
            // The handlers still run.
            scene.is_ready(&scene.queue, 84).await?;
            gate.add_permits(16);
            anyhow::Ok(())
        };
        let stopped = consume(inbox, source, handler, until);
        let (ended, went_on) = tokio::join!(stopped, async {
            eventually("16 handlers to run", || running.load(Ordering::SeqCst) == 16).await?;
            goes_on.await
        });
        went_on?;
        ended??;
        assert_eq!(scene.effects.lines()?.len(), 16);
        let (ready, dead) = scene.left().await?;
        assert!(ready >= 84 && dead == 0, "{ready} and {dead} are left");
    }
    Ok(())
}

/// The broker delivers what is returned to it at once, to a consumer that it still knows.
#[tokio::test]
async fn what_waits_for_its_next_try_is_delivered_once_more_when_the_consumer_stops()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    scene.publish_all(ids("m", 300)).await?;
    let failed = Arc::new(AtomicU32::new(0));
    let counter = failed.clone();
    let handler = move |_: Arc<QueueMessage>| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err("no connection"))
    };
    let minute = Duration::from_secs(60);
    let inbox = inbox(&engine()).with_backoff(minute, minute);
    // With no more in hand than that: each return makes room for another delivery.
    let connection = scene.connection().await?;
    let source = || RabbitMq::new(&connection, &*scene.queue).with_prefetch(300).connect();
    let until = eventually("all failures", || failed.load(Ordering::SeqCst) == 300);
    consume(inbox, source().await?, handler, until).await??;
    let again = source().await?;
    let mut counts = Vec::new();
    while counts.len() < 300 {
        let messages = within("the next delivery", again.receive(300)).await??;
        counts.extend(messages.iter().map(|message| message.deliveries()));
    }
    assert_eq!(counts.iter().filter(|count| **count != Some(2)).count(), 0, "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn under_hold_a_process_that_stood_still_stores_its_late_result() -> anyhow::Result<()> {
    stalls::stand_still::<Scene>(false).await
}

#[tokio::test]
async fn under_retry_the_late_result_of_a_process_that_stood_still_is_refused() -> anyhow::Result<()>
{
    stalls::stand_still::<Scene>(true).await
}
