//! What is there after a call in a transaction, by how its body and the transaction ended.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;
use idempotency::record::State;
use idempotency::store::{Reason, SqliteStore};
use idempotency::tx::{OpenTransaction, in_transaction};
use idempotency::{Context, ErrorAction, ErrorKind, Idempotency, OnCrash, Verdict, with_report};
use idempotency_test_support::deadline::{eventually_async, within};
use sqlx::Sqlite;
use tokio::sync::Notify;

use crate::warnings::Warnings;
use crate::world::{DAY, Fault, OPERATION, World, add};

#[tokio::test]
async fn what_is_committed_is_replayed_and_has_one_effect() -> anyhow::Result<()> {
    let world = World::new().await?;
    for round in 0..3 {
        let mut transaction = world.begin().await?;
        let call = world
            .call("a")
            .run_in(&mut transaction, async |transaction| add(transaction, "a").await);
        let (result, report) = with_report(call).await;
        assert_eq!(result?, "added a");
        assert_eq!(report.expect("the call reports").replayed, round > 0);
        transaction.commit().await?;
        assert_eq!(
            (world.entries("a").await?, world.state("a").await?),
            (1, Some(State::Completed))
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_key_with_a_window_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let call = world.engine.call(OPERATION, ("a", idempotency::key::window(DAY))).ttl(DAY);
    let refused =
        call.run_in(&mut transaction, async |transaction| add(transaction, "a").await).await;
    let Err(Fault::Idempotency(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    transaction.commit().await?;
    assert_eq!(world.entries("a").await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_is_rolled_back_has_not_happened() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    world
        .call("a")
        .run_in(&mut transaction, async |transaction| add(transaction, "a").await)
        .await?;
    transaction.rollback().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    Ok(())
}

#[tokio::test]
async fn an_error_leaves_neither_effect_nor_record_under_the_callers_commit() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    add(&mut transaction, "before").await?;
    let failing = world.call("a").run_in(&mut transaction, async |transaction| {
        add(transaction, "a").await?;
        Err::<String, _>(Fault::No)
    });
    assert!(matches!(failing.await, Err(Fault::No)));
    add(&mut transaction, "after").await?;
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    assert_eq!((world.entries("before").await?, world.entries("after").await?), (1, 1));
    Ok(())
}

#[tokio::test]
async fn a_result_that_json_would_change_undoes_the_effect() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let refused = world.call("a").run_in(&mut transaction, async |transaction| {
        add(transaction, "a").await?;
        Ok::<_, Fault>(f64::INFINITY)
    });
    let Err(Fault::Idempotency(error)) = refused.await else { panic!("it was stored") };
    assert_eq!(error.kind(), ErrorKind::Encode);
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    Ok(())
}

#[tokio::test]
async fn the_caller_gets_what_was_stored() -> anyhow::Result<()> {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Receipt(u8, #[serde(skip)] u8);
    let world = World::new().await?;
    for _ in 0..2 {
        let mut transaction = world.begin().await?;
        let call =
            world.call("a").run_in(&mut transaction, async |_| Ok::<_, Fault>(Receipt(1, 2)));
        assert_eq!(call.await?, Receipt(1, 0));
        transaction.commit().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_held_error_undoes_the_effect_and_leaves_the_record_in_doubt() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let failing =
        world.call("a").on_error(ErrorAction::Hold).run_in(&mut transaction, async |transaction| {
            add(transaction, "a").await?;
            Err::<String, _>(Fault::No)
        });
    assert!(failing.await.is_err());
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, Some(State::InDoubt)));
    Ok(())
}

#[tokio::test]
async fn a_held_error_is_kept_by_who_commits_and_rolled_back_with_a_warning_by_who_returns_it()
-> anyhow::Result<()> {
    let (world, warnings, runs) = (World::new().await?, Warnings::listen(), AtomicUsize::new(0));
    let hold = async |mut transaction: OpenTransaction<Sqlite>| {
        let call = world.call("a").on_error(ErrorAction::Hold).run_in(
            &mut transaction,
            async |transaction| {
                runs.fetch_add(1, Ordering::Relaxed);
                add(transaction, "a").await?;
                Err::<String, _>(Fault::No)
            },
        );
        call.await
    };
    let returned = in_transaction(&world.pool, &hold).await;
    assert!(matches!(returned, Err(Fault::No)), "{returned:?}");
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, None));
    assert!(warnings.mention("stored or held is rolled back"));
    let warnings = Warnings::listen();
    let kept = in_transaction(&world.pool, async |transaction| match hold(transaction).await {
        Err(Fault::No) => Ok(Err(Fault::No)),
        result => result.map(Ok),
    });
    let kept: Result<String, Fault> = kept.await?;
    assert!(matches!(kept, Err(Fault::No)), "{kept:?}");
    assert_eq!((world.entries("a").await?, world.state("a").await?), (0, Some(State::InDoubt)));
    assert!(!warnings.mention("rolled back"));
    let next = in_transaction(&world.pool, &hold).await;
    let Err(Fault::Idempotency(error)) = next else { panic!("{next:?}") };
    assert_eq!((error.kind(), runs.load(Ordering::Relaxed)), (ErrorKind::InDoubt, 2));
    Ok(())
}

#[tokio::test]
async fn a_future_that_is_dropped_in_the_body_and_committed_reads_as_in_doubt() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let (mut transaction, written) = (world.begin().await?, Notify::new());
    {
        let call = world.call("a").run_in(&mut transaction, async |transaction| {
            add(transaction, "a").await?;
            written.notify_one();
            std::future::pending::<Result<String, Fault>>().await
        });
        tokio::select! {
            result = call => panic!("the body never ends: {result:?}"),
            () = written.notified() => {}
        }
    }
    transaction.commit().await?;
    let mut transaction = world.begin().await?;
    let call =
        world.call("a").run_in(&mut transaction, async |transaction| add(transaction, "a").await);
    let Err(Fault::Idempotency(error)) = call.await else { panic!("the record says nothing") };
    assert_eq!(error.kind(), ErrorKind::InDoubt);
    transaction.commit().await?;
    assert_eq!((world.entries("a").await?, world.state("a").await?), (1, Some(State::InDoubt)));
    Ok(())
}

#[tokio::test]
async fn what_was_dropped_and_committed_is_in_doubt_under_every_policy() -> anyhow::Result<()> {
    let world = World::new().await?;
    for policy in [OnCrash::Retry, OnCrash::Resume, OnCrash::Hold] {
        let key = format!("{policy:?}");
        let mut transaction = world.begin().await?;
        let (added, is_added) = tokio::sync::oneshot::channel();
        let call =
            world.call(&key).on_crash(policy).run_in(&mut transaction, async |transaction| {
                add(transaction, &key).await?;
                let _ = added.send(());
                std::future::pending::<Result<String, Fault>>().await
            });
        tokio::select! {
            _ = call => unreachable!("the body never ends"),
            added = is_added => added?,
        }
        transaction.commit().await?;
        let mut transaction = world.begin().await?;
        let call = world.call(&key).on_crash(policy);
        let refused =
            call.run_in(&mut transaction, async |transaction| add(transaction, &key).await).await;
        let Err(Fault::Idempotency(error)) = refused else { panic!("{policy:?}: it ran again") };
        assert_eq!(error.kind(), ErrorKind::InDoubt, "{policy:?}");
        transaction.commit().await?;
        assert_eq!(world.entries(&key).await?, 1, "{policy:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_call_outside_has_left_is_in_doubt_in_a_transaction() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (started, is_started) = tokio::sync::oneshot::channel();
    let asking =
        world.call("a").on_crash_verify(async |_| Ok::<_, Fault>(Verdict::<String>::NotExecuted));
    let outside = asking.run(async || {
        let _ = started.send(());
        std::future::pending::<Result<String, Fault>>().await
    });
    tokio::select! {
        _ = outside => unreachable!("the body never ends"),
        started = is_started => started?,
    }
    // Given up in the background.
    let record = world.engine.record(OPERATION, "a");
    let is_left = async || matches!(record.inspect().await, Ok(Some(view)) if view.reason == Some(Reason::Dropped));
    eventually_async("the record to be left", is_left).await?;
    for policy in [OnCrash::Retry, OnCrash::Resume, OnCrash::Hold] {
        let mut transaction = world.begin().await?;
        let call = world.call("a").on_crash(policy);
        let refused =
            call.run_in(&mut transaction, async |transaction| add(transaction, "a").await).await;
        let Err(Fault::Idempotency(error)) = refused else {
            panic!("{policy:?}: it ran, and nobody was asked")
        };
        assert_eq!(error.kind(), ErrorKind::InDoubt, "{policy:?}");
        transaction.commit().await?;
    }
    assert_eq!(world.entries("a").await?, 0);
    Ok(())
}

/// Its fingerprint was another one, and no claim of this one has put it in doubt.
#[tokio::test]
async fn what_a_call_outside_has_left_under_a_former_fingerprint_is_in_doubt_in_a_transaction()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let (started, is_started) = tokio::sync::oneshot::channel();
    let outside = world.call("a").fingerprint(&1).on_crash(OnCrash::Retry).run(async || {
        let _ = started.send(());
        std::future::pending::<Result<String, Fault>>().await
    });
    tokio::select! {
        _ = outside => unreachable!("the body never ends"),
        started = is_started => started?,
    }
    let record = world.engine.record(OPERATION, "a");
    let is_left = async || matches!(record.inspect().await, Ok(Some(view)) if view.reason == Some(Reason::Dropped));
    eventually_async("the record to be left", is_left).await?;
    for policy in [OnCrash::Retry, OnCrash::Resume, OnCrash::Hold] {
        let mut transaction = world.begin().await?;
        let call = world.call("a").fingerprint(&2).former_fingerprint(&1).on_crash(policy);
        let refused =
            call.run_in(&mut transaction, async |transaction| add(transaction, "a").await).await;
        let Err(Fault::Idempotency(error)) = refused else { panic!("{policy:?}: it ran") };
        assert_eq!(error.kind(), ErrorKind::InDoubt, "{policy:?}: {error}");
        transaction.commit().await?;
    }
    assert_eq!(world.entries("a").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_call_without_the_transaction_inside_of_one_is_refused_and_one_with_it_is_part_of_it()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let outer = world.call("outer").run_in(&mut transaction, async |transaction| {
        assert_eq!(Context::current().attempt(), 1);
        let refused = world.call("alone").run(async || Ok::<_, Fault>(String::new())).await;
        let Err(Fault::Idempotency(error)) = refused else { panic!("it would wait for itself") };
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let again =
            world.call("outer").run_in(transaction, async |_| Ok::<_, Fault>(String::new())).await;
        let Err(Fault::Idempotency(error)) = again else { panic!("it is running") };
        assert_eq!(error.kind(), ErrorKind::Reentrant);
        world
            .call("inner")
            .run_in(transaction, async |transaction| add(transaction, "inner").await)
            .await
    });
    assert_eq!(outer.await?, "added inner");
    transaction.commit().await?;
    assert_eq!(
        (world.entries("inner").await?, world.state("inner").await?),
        (1, Some(State::Completed))
    );
    assert_eq!(world.state("outer").await?, Some(State::Completed));
    assert_eq!(world.state("alone").await?, None);
    Ok(())
}

#[tokio::test]
async fn the_future_can_be_spawned() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (call, mut transaction) = (world.call("a"), world.begin().await?);
    let task = tokio::spawn(async move {
        let result =
            call.run_in(&mut transaction, async |transaction| add(transaction, "a").await).await?;
        transaction.commit().await?;
        Ok::<_, Fault>(result)
    });
    assert_eq!(task.await??, "added a");
    assert_eq!(world.entries("a").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_makes_itself_again_can_be_spawned() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (engine, pool) = (world.engine.clone(), world.pool.clone());
    let task = tokio::spawn(async move {
        let engine = &engine;
        in_transaction(&pool, |mut transaction| async move {
            let call = engine.call(OPERATION, "a").ttl(DAY);
            call.run_in(&mut transaction, async |transaction| add(transaction, "a").await).await
        })
        .await
    });
    assert_eq!(task.await??, "added a");
    assert_eq!(world.entries("a").await?, 1);
    Ok(())
}

/// It asks which database the store is in, for all that come after it.
#[tokio::test]
async fn a_call_that_nobody_polls_any_more_lets_others_have_an_answer() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = Idempotency::new(SqliteStore::from_pool(world.pool.clone()));
    let call = || engine.call(OPERATION, "a").ttl(DAY);
    let (mut one, mut other) = (world.pool.begin().await?, world.pool.begin().await?);
    let mut unpolled =
        Box::pin(call().run_in(&mut one, async |transaction| add(transaction, "a").await));
    assert!(unpolled.as_mut().now_or_never().is_none());
    let refused = within(
        "the answer",
        call().run_in(&mut other, async |transaction| add(transaction, "a").await),
    )
    .await?;
    let Err(Fault::Idempotency(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    drop(unpolled);
    assert_eq!(
        call().run_in(&mut other, async |transaction| add(transaction, "a").await).await?,
        "added a"
    );
    other.commit().await?;
    assert_eq!(world.entries("a").await?, 1);
    Ok(())
}
