//! What SQS is answered about each delivery.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::{Consumer, Order, Settled, Source};
use idempotency_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;
use idempotency_sqs::{Error, SqsMessage, SqsQueue};
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use tokio::time::Instant;

use crate::scene::{Kind, Scene, append, consume, engine, ids, inbox, text};

#[tokio::test]
async fn messages_are_handled_once_and_deleted() -> anyhow::Result<()> {
    for kind in [Kind::Standard, Kind::Fifo] {
        let scene = Scene::new(kind).await?;
        scene.publish_all(ids("m", 200)).await?;
        consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty())
            .await??;
        scene.assert_once(ids("m", 200))?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_message_comes_again_after_its_pause_with_its_count() -> anyhow::Result<()> {
    let scene = Scene::with(Kind::Standard, &[(Attribute::VisibilityTimeout, "30")]).await?;
    scene.publish("m-0", "m-0").await?;
    let (effects, seen) = (scene.effects.clone(), Arc::new(Mutex::new(Vec::new())));
    let tries = seen.clone();
    let handler = move |message: Arc<SqsMessage>| {
        let mut tries = tries.lock().unwrap();
        tries.push((Instant::now(), message.deliveries()));
        let is_enough = tries.len() == 3;
        if is_enough {
            append(&effects, &message);
        }
        std::future::ready(if is_enough { Ok(()) } else { Err("no connection") })
    };
    let slow = inbox(&engine()).with_backoff(Duration::from_millis(600), Duration::from_secs(60));
    consume(slow, scene.source().await?, handler, scene.is_empty()).await??;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let counts: Vec<_> = seen.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [Some(1), Some(2), Some(3)]);
    // Of whole seconds, and far shorter than the visibility timeout.
    let pauses: Vec<_> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let seconds = Duration::from_secs;
    assert!(pauses.iter().all(|pause| (seconds(1)..seconds(15)).contains(pause)), "{pauses:?}");
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_handler_that_is_slower_than_the_visibility_timeout_runs_once() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    // The second one waits in the consumer meanwhile.
    scene.publish_all(ids("m", 2)).await?;
    let effects = scene.effects.clone();
    let handler = move |message: Arc<SqsMessage>| {
        let effects = effects.clone();
        async move {
            // The visibility timeout is three seconds.
            tokio::time::sleep(Duration::from_secs(5)).await;
            append(&effects, &message);
            Ok::<_, &'static str>(())
        }
    };
    let consumer = Consumer::new(inbox(&engine()), scene.source().await?).with_concurrency(1);
    let stop = async {
        let _ = scene.is_empty().await;
    };
    // It would get what the first one does not keep.
    let other = scene.source().await?;
    let watch = async {
        eventually_async("both to be in hand", async || {
            scene.pending().await.is_ok_and(|pending| pending == (0, 2))
        })
        .await?;
        let taken = other.receive(1).await?;
        anyhow::bail!("delivered to another consumer: {taken:?}")
    };
    tokio::select! {
        ended = consumer.run(stop, handler) => ensure!(ended?.left == 0),
        failed = watch => return failed,
    }
    scene.assert_once(ids("m", 2))?;
    Ok(())
}

/// A queue that delivers each message twice, at once.
struct Twice(SqsQueue);

impl Source for Twice {
    type Message = SqsMessage;
    type Error = Error;
    const ORDER: Order = SqsQueue::ORDER;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<SqsMessage>>, Error> {
        let received = self.0.receive(room / 2).await?;
        Ok(received.into_iter().flat_map(|message| [message.clone(), message]).collect())
    }

    async fn settle(&self, settled: Vec<Settled<SqsMessage>>) -> Result<(), Error> {
        self.0.settle(settled).await
    }

    fn patience(&self) -> Option<Duration> {
        self.0.patience()
    }

    async fn keep(&self, held: Vec<Arc<SqsMessage>>) -> Result<(), Error> {
        self.0.keep(held).await
    }

    async fn stop(&self) -> Result<(), Error> {
        self.0.stop().await
    }
}

/// A queue whose messages are kept once more after their answers.
struct KeptLate(SqsQueue);

impl Source for KeptLate {
    type Message = SqsMessage;
    type Error = Error;
    const ORDER: Order = SqsQueue::ORDER;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<SqsMessage>>, Error> {
        self.0.receive(room).await
    }

    async fn settle(&self, settled: Vec<Settled<SqsMessage>>) -> Result<(), Error> {
        let messages = settled.iter().map(|settled| settled.message.clone()).collect();
        self.0.settle(settled).await?;
        self.0.keep(messages).await
    }

    fn patience(&self) -> Option<Duration> {
        self.0.patience()
    }

    async fn keep(&self, held: Vec<Arc<SqsMessage>>) -> Result<(), Error> {
        self.0.keep(held).await
    }

    async fn stop(&self) -> Result<(), Error> {
        self.0.stop().await
    }
}

#[tokio::test]
async fn a_message_that_is_kept_when_it_has_its_answer_does_not_stay_for_it() -> anyhow::Result<()>
{
    let scene = Scene::with(Kind::Standard, &[(Attribute::VisibilityTimeout, "300")]).await?;
    scene.publish("m-0", "m-0").await?;
    let effects = scene.effects.clone();
    let handler = move |message: Arc<SqsMessage>| {
        let fails = message.deliveries() == Some(1);
        if !fails {
            append(&effects, &message);
        }
        std::future::ready(if fails { Err("no connection") } else { Ok(()) })
    };
    let source = KeptLate(scene.source().await?);
    consume(inbox(&engine()), source, handler, scene.is_empty()).await??;
    scene.assert_once(["m-0".to_owned()])
}

#[tokio::test]
async fn a_message_that_is_twice_in_a_batch_costs_the_others_nothing() -> anyhow::Result<()> {
    let scene = Scene::with(Kind::Standard, &[(Attribute::VisibilityTimeout, "300")]).await?;
    scene.publish_all(ids("m", 4)).await?;
    let source = Twice(scene.source().await?);
    consume(inbox(&engine()), source, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(ids("m", 4))?;

    // And when they are kept.
    let scene = Scene::new(Kind::Standard).await?;
    scene.publish("m-0", "m-0").await?;
    let source = scene.source().await?;
    let message = within("the message", source.receive(1)).await??.remove(0);
    source.keep(vec![message.clone(), message]).await?;
    Ok(())
}

#[tokio::test]
async fn answers_that_sqs_does_not_take_are_an_error_with_their_number() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    scene.publish_all(ids("m", 12)).await?;
    let source = scene.source().await?;
    let mut held = Vec::new();
    while held.len() < 12 {
        held.extend(source.receive(12 - held.len()).await?);
    }
    source.keep(held.clone()).await?;
    let purge = scene.client.purge_queue().queue_url(scene.url_of(&scene.queue));
    purge.send().await?;
    let error = source.keep(held).await.expect_err("they are gone");
    assert!(matches!(error, Error::Unanswered { failed: 12, of: 12, .. }), "{error:?}");
    assert!(error.to_string().contains("ReceiptHandleIsInvalid"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_message_reads_as_it_was_sent() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Fifo).await?;
    let sent = scene
        .message(r#"{"amount":100}"#)
        .message_group_id("g-1")
        .message_deduplication_id("d-1")
        .message_attributes("trace", text("t-1"))
        .send()
        .await?;
    let seen = Arc::new(Mutex::new(None));
    let handler = {
        let seen = seen.clone();
        move |message: Arc<SqsMessage>| {
            *seen.lock().unwrap() = Some(message);
            std::future::ready(Ok(()))
        }
    };
    let until = eventually("the message", || seen.lock().unwrap().is_some());
    consume(inbox(&engine()), scene.source().await?, handler, until).await??;
    let message = seen.lock().unwrap().take().unwrap();
    let json: std::collections::BTreeMap<String, u32> = message.json()?;
    assert_eq!(json["amount"], 100);
    assert!(message.json::<Vec<u32>>().is_err());
    assert_eq!((message.attribute("trace"), message.attribute("Trace")), (Some("t-1"), None));
    assert_eq!(message.attributes().len(), 1);
    assert_eq!((Some(message.id()), message.topic()), (sent.message_id(), None));
    assert_eq!((message.group(), message.deduplication_id()), (Some("g-1"), Some("d-1")));
    assert_eq!((message.body(), message.deliveries()), (r#"{"amount":100}"#, Some(1)));
    // Neither keys nor payloads belong in logs.
    let shown = format!("{message:?}");
    assert!(!shown.contains("amount") && !shown.contains("g-1"), "{shown}");
    assert!(!shown.contains(message.id()), "{shown}");
    Ok(())
}
