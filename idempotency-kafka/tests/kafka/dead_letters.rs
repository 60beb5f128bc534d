//! Dead letters: what they say, that none is lost, and that they come back as the same message.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use idempotency::inbox::OnFailure;
use idempotency::key::KeyHash;
use idempotency::record::Resolution;
use idempotency_kafka::rdkafka::Message as _;
use idempotency_kafka::rdkafka::message::OwnedMessage;
use idempotency_kafka::rdkafka::producer::FutureRecord;
use idempotency_kafka::rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use idempotency_kafka::{Kafka, TopicMessage};
use idempotency_test_support::deadline::eventually;

use crate::cluster::Cluster;
use crate::scene::{Scene, append, consume, engine, header, headers, ids, inbox, settings};
use crate::warnings::Warnings;

fn record(letter: &OwnedMessage) -> anyhow::Result<KeyHash> {
    let hash = header(letter, "idempotency-record").context("no record")?;
    ensure!(hash.len() == 64, "{hash}");
    Ok(hash.parse()?)
}

fn refuses(_: Arc<TopicMessage>) -> std::future::Ready<Result<(), &'static str>> {
    std::future::ready(Err("the card is unknown"))
}

#[tokio::test]
async fn a_dead_letter_is_the_message_with_its_story_and_the_offset_is_committed()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let engine = engine();
    let given = headers(&[("trace", "t-1"), ("trace", "t-2"), ("idempotency-key", "key-1")]);
    let record_of = FutureRecord::to(&scene.topic).partition(2).key("customer").headers(given);
    scene.send(record_of.payload("the payload").timestamp(1_234)).await?;
    // A tombstone, of which a letter says already where it came from.
    let moved = [
        ("idempotency-reason", "failed"),
        ("idempotency-topic", "shop"),
        ("idempotency-partition", "1"),
        ("idempotency-offset", "7"),
        ("idempotency-timestamp", "9"),
        ("idempotency-record", "of an earlier death"),
    ];
    let mut tombstone = FutureRecord::to(&scene.topic).partition(2).headers(headers(&moved));
    tombstone.key = Some("customer");
    scene.send(tombstone).await?;
    let failing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(failing, scene.source().await?, refuses, scene.is_empty()).await??;
    assert_eq!((scene.not_committed()?, scene.letters()?), (0, 2));

    let letter = scene.letter().await?;
    assert_eq!(
        (letter.payload(), letter.key()),
        (Some(&b"the payload"[..]), Some(&b"customer"[..]))
    );
    for (name, value) in [
        ("trace", Some("t-2")),
        ("idempotency-key", Some("key-1")),
        ("idempotency-reason", Some("failed")),
        ("idempotency-attempts", Some("1")),
        ("idempotency-topic", Some(&*scene.topic)),
        ("idempotency-partition", Some("2")),
        ("idempotency-offset", Some("0")),
        ("idempotency-timestamp", Some("1234")),
    ] {
        assert_eq!(header(&letter, name), value, "{name}");
    }
    let time = header(&letter, "idempotency-time").context("a time")?;
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 20, "{time}");
    assert_eq!(record(&letter)?, engine.record("billing", ("header", "key-1")).hash()?);

    let letter = scene.letter().await?;
    assert_eq!((letter.payload(), letter.key()), (None, Some(&b"customer"[..])));
    for (name, value) in &moved[1..5] {
        assert_eq!(header(&letter, name), Some(*value), "{name}");
    }
    assert_eq!(header(&letter, "idempotency-key"), None);
    Ok(())
}

/// Other brokers know no partitions: their dead letters say nothing of one, or a part of it.
#[tokio::test]
async fn a_dead_letter_of_another_broker_is_the_same_message_again_each_time() -> anyhow::Result<()>
{
    let scene = Scene::new().await?;
    let engine = engine();
    for topic in [None, Some(("idempotency-topic", "a queue"))] {
        let moved: Vec<_> =
            [("idempotency-reason", "failed"), ("trace", "t-1")].into_iter().chain(topic).collect();
        scene.publish_with(0, "k", &moved, "m-0").await?;
    }
    let failing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(failing, scene.source().await?, refuses, scene.is_empty()).await??;
    let letters = [scene.letter().await?, scene.letter().await?];
    for (letter, offset) in letters.iter().zip(["0", "1"]) {
        for (name, value) in [
            ("trace", "t-1"),
            ("idempotency-topic", &*scene.topic),
            ("idempotency-partition", "0"),
            ("idempotency-offset", offset),
        ] {
            assert_eq!(header(letter, name), Some(value), "{name}");
        }
        ensure!(header(letter, "idempotency-timestamp").is_some(), "no time");
        // By its position, whose record is that of the redrive.
        record(letter)?;
        for _ in 0..2 {
            scene.redrive(letter).await?;
        }
    }
    let until = scene.is_empty();
    consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
    assert_eq!((scene.effects.count("m-0")?, scene.letters()?), (2, 0));
    Ok(())
}

/// The client of the dead letters has a limit of its own, by its default.
#[tokio::test]
async fn a_dead_letter_may_be_as_large_as_its_message() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let large = "x".repeat(2_000_000);
    scene.publish_with(0, "k", &[], &large).await?;
    let failing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(failing, scene.source().await?, refuses, scene.is_empty()).await??;
    assert_eq!(scene.letter().await?.payload().map(<[u8]>::len), Some(large.len()));
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_failure_runs_when_it_is_moved_back_and_then_is_a_duplicate()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let engine = engine();
    // Without a header: by its position.
    scene.publish_with(1, "k", &[], "m-0").await?;
    let inbox = || inbox(&engine).with_max_attempts(2);
    let mut positions = Vec::new();
    for _ in 0..2 {
        consume(inbox(), scene.source().await?, refuses, scene.is_empty()).await??;
        let letter = scene.letter().await?;
        assert_eq!(header(&letter, "idempotency-reason"), Some("attempts"));
        assert_eq!(header(&letter, "idempotency-attempts"), Some("2"));
        positions.push(header(&letter, "idempotency-offset").map(str::to_owned));
        positions.push(header(&letter, "idempotency-record").map(str::to_owned));
        scene.redrive(&letter).await?;
        if positions.len() == 4 {
            // Two copies.
            scene.redrive(&letter).await?;
        }
    }
    assert_eq!(positions[..2], positions[2..], "it does not say where it came from first");
    consume(inbox(), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_in_doubt_is_committed_or_runs_as_the_operator_says() -> anyhow::Result<()> {
    for has_happened in [true, false] {
        let scene = Scene::new().await?;
        let engine = engine();
        scene.publish_with(0, "k", &[], "m-0").await?;
        let holding = inbox(&engine).with_on_failure(|_: &&str| OnFailure::Hold);
        consume(holding, scene.source().await?, refuses, scene.is_empty()).await??;
        let letter = scene.letter().await?;
        assert_eq!(header(&letter, "idempotency-reason"), Some("in-doubt"));
        let record = engine.record_by_hash(record(&letter)?);
        let view = record.inspect().await?.context("the record")?;
        let answer =
            if has_happened { Resolution::completed(()) } else { Resolution::not_executed() };
        record.resolve(&view, answer).await?;
        scene.redrive(&letter).await?;
        let until = scene.is_empty();
        consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
        let expected = if has_happened { vec![] } else { vec!["m-0"] };
        scene.assert_once(expected.into_iter().map(str::to_owned))?;
        assert_eq!(scene.letters()?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn without_a_place_its_partition_waits_the_others_go_on_and_nothing_is_dropped()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish_with(0, "k", &[], "bad").await?;
    for (partition, first) in [(0, "behind"), (1, "other")] {
        for id in ids(first, 200) {
            scene.publish_with(partition, &id, &[], &id).await?;
        }
    }
    let source = Kafka::new(settings(scene.cluster.url(), &scene.topic), [&*scene.topic]);
    let (effects, tries) = (scene.effects.clone(), Arc::new(AtomicU32::new(0)));
    let counter = tries.clone();
    let handler = move |message: Arc<TopicMessage>| {
        if message.payload() == Some(b"bad") {
            counter.fetch_add(1, Ordering::SeqCst);
            return std::future::ready(Err("the card is unknown"));
        }
        append(&effects, &message);
        std::future::ready(Ok(()))
    };
    let failing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let warnings = Warnings::listen();
    let until = async {
        eventually("three tries", || tries.load(Ordering::SeqCst) >= 3).await?;
        scene.have_happened(ids("other", 200)).await
    };
    consume(failing, source.connect().await?, handler, until).await??;
    ensure!(warnings.count("a dead letter has not arrived") >= 3, "an error for each try");
    // It waits: nothing behind it was handled.
    let behind = scene.effects.lines()?.iter().filter(|line| line.starts_with("behind")).count();
    ensure!(behind == 0, "{behind} were handled");
    let committed = scene.committed()?;
    ensure!(!committed.contains_key(&0) && committed[&1] == 200, "{committed:?}");

    // The next one has a place.
    let until = scene.is_empty();
    consume(inbox(&engine()), scene.source().await?, scene.handler(), until).await??;
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_the_broker_refuses_comes_later_after_growing_pauses()
-> anyhow::Result<()> {
    let scene = Scene::at(Cluster::mock(1)?, "partitions", 1).await?;
    scene.publish_with(0, "k", &[], "m-0").await?;
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 2];
    scene.cluster.ask(move |mock| mock.request_errors(RDKafkaApiKey::Produce, &refused))?;
    let tries = Arc::new(Mutex::new(Vec::new()));
    let counter = tries.clone();
    let handler = move |_: Arc<TopicMessage>| {
        counter.lock().unwrap().push(Instant::now());
        std::future::ready(Err("the card is unknown"))
    };
    let failing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let until = async {
        eventually("three tries", || tries.lock().unwrap().len() == 3).await?;
        scene.is_empty().await
    };
    consume(failing, scene.source().await?, handler, until).await??;
    assert_eq!((scene.letters()?, scene.letter().await?.payload()), (1, Some(&b"m-0"[..])));
    let tries = tries.lock().unwrap();
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let seconds = Duration::from_secs;
    assert!(pauses[0] >= seconds(1) && pauses[1] >= seconds(2), "{pauses:?}");
    Ok(())
}

/// The broker takes the connection, and answers nothing about the dead letter. Other partitions go on
/// meanwhile, and their offsets are committed; its own waits.
#[tokio::test]
async fn a_confirmation_that_does_not_come_is_not_waited_for() -> anyhow::Result<()> {
    let scene = Scene::at(Cluster::mock(1)?, "partitions", 2).await?;
    scene.publish_with(0, "k", &[], "bad").await?;
    scene.publish_with(0, "k", &[], "behind").await?;
    for id in ids("other", 100) {
        scene.publish_with(1, "k", &[], &id).await?;
    }
    let (effects, tries) = (scene.effects.clone(), Arc::new(Mutex::new(Vec::new())));
    let counter = tries.clone();
    let handler = move |message: Arc<TopicMessage>| {
        if message.payload() == Some(b"bad") {
            counter.lock().unwrap().push(Instant::now());
            return std::future::ready(Err("the card is unknown"));
        }
        append(&effects, &message);
        std::future::ready(Ok(()))
    };
    let failing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let source = scene.source().await?;
    // Again and again, for longer than the test.
    let timed_out = vec![RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 10_000];
    scene.cluster.ask(move |mock| mock.request_errors(RDKafkaApiKey::Produce, &timed_out))?;
    let until = async {
        eventually("the first try", || !tries.lock().unwrap().is_empty()).await?;
        let committed = || scene.committed().is_ok_and(|all| all.get(&1) == Some(&100));
        let at_once = Duration::from_secs(6);
        tokio::time::timeout(at_once, eventually("the commit of the others", committed)).await??;
        ensure!(tries.lock().unwrap().len() == 1, "the commit has waited for the dead letter");
        eventually("a second try", || tries.lock().unwrap().len() == 2).await?;
        ensure!(scene.effects.count("behind")? == 0, "its partition has not waited");
        scene.cluster.ask(|mock| mock.clear_request_errors(RDKafkaApiKey::Produce))?;
        scene.publish_with(1, "k", &[], "good").await?;
        scene.is_empty().await
    };
    consume(failing, source, handler, until).await??;
    let tries = tries.lock().unwrap();
    let pause = tries[1] - tries[0];
    assert!((Duration::from_secs(10)..Duration::from_secs(20)).contains(&pause), "{pause:?}");
    scene.assert_once(ids("other", 100).chain(["behind", "good"].map(str::to_owned)))?;
    ensure!(scene.letters()? >= 1, "the dead letter is lost");
    Ok(())
}
