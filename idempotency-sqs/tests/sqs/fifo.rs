//! The order of a group.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::inbox::OnFailure;
use idempotency_sqs::SqsMessage;
use idempotency_sqs::aws_sdk_sqs::types::MessageSystemAttributeName;

use idempotency_test_support::deadline::eventually;

use crate::scene::{Kind, Scene, append, consume, engine, ids, inbox, server, system};
use crate::wire::Wire;

async fn publish_in(scene: &Scene, group: &str, id: &str) -> anyhow::Result<()> {
    scene.message(id).message_group_id(group).message_deduplication_id(id).send().await?;
    Ok(())
}

#[tokio::test]
async fn messages_of_a_group_are_handled_in_order_and_those_of_others_meanwhile()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Fifo).await?;
    for number in 0..20 {
        for group in ["a", "b", "c"] {
            publish_in(&scene, group, &format!("{group}-{number}")).await?;
        }
    }
    let (effects, running) = (scene.effects.clone(), Arc::new(Mutex::new(BTreeSet::new())));
    let most = Arc::new(Mutex::new(0));
    let most_at_once = most.clone();
    let handler = move |message: Arc<SqsMessage>| {
        let (effects, running, most) = (effects.clone(), running.clone(), most_at_once.clone());
        async move {
            let group = message.group().expect("a group").to_owned();
            {
                let mut running = running.lock().unwrap();
                assert!(running.insert(group.clone()), "two of a group at once");
                let mut most = most.lock().unwrap();
                *most = running.len().max(*most);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            append(&effects, &message);
            running.lock().unwrap().remove(&group);
            Ok(())
        }
    };
    consume(inbox(&engine()), scene.source().await?, handler, scene.is_empty()).await??;
    let lines = scene.effects.lines()?;
    for group in ["a", "b", "c"] {
        let of_group: Vec<_> = lines.iter().filter(|line| line.starts_with(group)).collect();
        assert!(of_group.into_iter().eq(&ids(group, 20).collect::<Vec<_>>()), "{lines:?}");
    }
    assert!(*most.lock().unwrap() > 1, "the groups wait for each other");
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn when_the_third_of_ten_fails_it_and_those_behind_it_come_again_in_order()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Fifo).await?;
    for id in ids("m", 10) {
        publish_in(&scene, "g", &id).await?;
    }
    let tries = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let tries = tries.clone();
        move |message: Arc<SqsMessage>| {
            let id = String::from_utf8_lossy(message.payload()).into_owned();
            let mut tries = tries.lock().unwrap();
            let is_first = id == "m-2" && !tries.iter().any(|(tried, _)| *tried == id);
            tries.push((id, message.deliveries()));
            std::future::ready(if is_first { Err("no connection") } else { Ok(()) })
        }
    };
    consume(inbox(&engine()), scene.source().await?, handler, scene.is_empty()).await??;
    let tries = std::mem::take(&mut *tries.lock().unwrap());
    let order: Vec<_> = tries.iter().map(|(id, _)| &**id).collect();
    let expected = ["m-0", "m-1", "m-2", "m-2", "m-3", "m-4", "m-5", "m-6", "m-7", "m-8", "m-9"];
    assert_eq!(order, expected);
    // They were in hand, and went back.
    assert!(tries[3..].iter().all(|(_, deliveries)| *deliveries == Some(2)), "{tries:?}");
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn dead_letters_keep_their_group_and_their_order() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Fifo).await?;
    for id in ids("m", 60) {
        publish_in(&scene, "g", &id).await?;
    }
    let refuses = |_: Arc<SqsMessage>| std::future::ready(Err("the card is unknown"));
    // Sent side by side, the others would be there before the first.
    let wire = Wire::to(server().await?.address()).await?;
    wire.protocol().delay_send(500);
    let source = scene.source_by(&wire.url()).await?;
    let refusing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(refusing, source, refuses, scene.is_empty()).await??;
    assert_eq!(scene.left().await?, (0, 60));
    for id in ids("m", 60) {
        let letter = scene.dead_letter().await?;
        assert_eq!(letter.body(), Some(&*id));
        let name = MessageSystemAttributeName::MessageGroupId;
        assert_eq!(system(&letter, &name).as_deref(), Some("g"));
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_without_a_queue_comes_again_and_those_behind_it_have_gone_on()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Fifo).await?;
    for id in ids("m", 3) {
        publish_in(&scene, "g", &id).await?;
    }
    let tries = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let tries = tries.clone();
        move |message: Arc<SqsMessage>| {
            let id = String::from_utf8_lossy(message.payload()).into_owned();
            let is_first = id == "m-0";
            tries.lock().unwrap().push(id);
            std::future::ready(if is_first { Err("the card is unknown") } else { Ok(()) })
        }
    };
    let refusing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let until = eventually("the second try", || tries.lock().unwrap().len() == 4);
    consume(refusing, scene.options().connect().await?, handler, until).await??;
    assert_eq!(*tries.lock().unwrap(), ["m-0", "m-1", "m-2", "m-0"]);
    Ok(())
}

#[tokio::test]
async fn groups_of_a_standard_queue_are_no_order() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    for id in ids("m", 2) {
        scene.message(&id).message_group_id("g").send().await?;
    }
    // Each waits for the other one.
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let effects = scene.effects.clone();
    let handler = move |message: Arc<SqsMessage>| {
        let (effects, both) = (effects.clone(), both.clone());
        async move {
            both.wait().await;
            append(&effects, &message);
            Ok(())
        }
    };
    consume(inbox(&engine()), scene.source().await?, handler, scene.is_empty()).await??;
    scene.assert_once(ids("m", 2))
}

#[tokio::test]
async fn the_order_of_groups_survives_failures_and_a_connection_that_is_cut() -> anyhow::Result<()>
{
    let scene = Scene::new(Kind::Fifo).await?;
    let groups = ["a", "b", "c", "d"];
    for number in 0..12 {
        for group in groups {
            publish_in(&scene, group, &format!("{group}-{number}")).await?;
        }
    }
    let wire = Wire::to(server().await?.address()).await?;
    let (effects, failed) = (scene.effects.clone(), Arc::new(Mutex::new(BTreeSet::new())));
    let handler = move |message: Arc<SqsMessage>| {
        let (effects, failed) = (effects.clone(), failed.clone());
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            // Every seventh, the first time.
            let id = String::from_utf8_lossy(message.payload()).into_owned();
            let number: u32 = id[2..].parse().expect("a number");
            if number % 7 == 3 && failed.lock().unwrap().insert(id) {
                return Err("no connection");
            }
            append(&effects, &message);
            Ok(())
        }
    };
    let until = async {
        let some = || scene.effects.lines().is_ok_and(|lines| lines.len() >= 16);
        eventually("16 effects", some).await?;
        wire.cut();
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source_by(&wire.url()).await?, handler, until).await??;
    let lines = scene.effects.lines()?;
    for group in groups {
        let of_group: Vec<_> = lines.iter().filter(|line| line.starts_with(group)).collect();
        assert!(of_group.into_iter().eq(&ids(group, 12).collect::<Vec<_>>()), "{lines:?}");
    }
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}
