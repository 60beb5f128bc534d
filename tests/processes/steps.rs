//! SIGKILL at each point of each step of a call that resumes: the failure table, step by step.

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use idempotency::{Error, ErrorKind, Report, with_report};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::history::Outcome;
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_COMMIT, BEFORE_COMMIT, Worker, after_checkpoint, before_checkpoint,
    during_checkpoint,
};

use crate::backend::Backend;
use crate::fulfilment::{FULFIL, Fulfilled, ONCE, STEPS, effects_of};
use crate::scene::Scene;
use crate::worker::{Work, answers, outcome};

/// What the next caller finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It goes on after the steps that are recorded, and has a result.
    Resumes,
    /// The step that runs at most once was started, and nobody knows whether it finished.
    Interrupted,
    /// The answer of the dead owner.
    Replays,
}

use Next::{Interrupted, Replays, Resumes};

/// Where the tasks of the owner stood when it was killed, and what follows.
struct Row {
    /// Reached before, and passed together.
    passed: &'static [&'static str],
    stands_at: &'static [&'static str],
    /// How often each of [`STEPS`] has had its effect in the end.
    effects: [usize; 4],
    next: Next,
}

const fn row(stands_at: &'static [&'static str], effects: [usize; 4], next: Next) -> Row {
    Row { passed: &[], stands_at, effects, next }
}

/// The checkpoints are numbered: 0 has the first step, 1 the start of the one that runs at most
/// once, 2 its result; 3 and 4 have the two steps that run at the same time, in the order in which
/// these end.
const TABLE: [Row; 24] = [
    row(&[AFTER_CLAIM], [1, 1, 1, 1], Resumes),
    row(&["before_reserve"], [1, 1, 1, 1], Resumes),
    row(&["after_reserve"], [2, 1, 1, 1], Resumes),
    row(&["before_checkpoint_0"], [2, 1, 1, 1], Resumes),
    row(&["after_checkpoint_0"], [1, 1, 1, 1], Resumes),
    row(&["before_checkpoint_1"], [1, 1, 1, 1], Resumes),
    row(&["after_checkpoint_1"], [1, 0, 0, 0], Interrupted),
    row(&["before_charge"], [1, 0, 0, 0], Interrupted),
    row(&["after_charge"], [1, 1, 0, 0], Interrupted),
    row(&["before_checkpoint_2"], [1, 1, 0, 0], Interrupted),
    row(&["after_checkpoint_2"], [1, 1, 1, 1], Resumes),
    row(&["before_pack", "before_notify"], [1, 1, 1, 1], Resumes),
    row(&["before_pack", "after_checkpoint_3"], [1, 1, 1, 1], Resumes),
    row(&["before_notify", "after_checkpoint_3"], [1, 1, 1, 1], Resumes),
    row(&["after_pack", "before_notify"], [1, 1, 2, 1], Resumes),
    row(&["after_pack", "after_notify"], [1, 1, 2, 2], Resumes),
    row(&["after_pack", "after_checkpoint_3"], [1, 1, 2, 1], Resumes),
    row(&["before_checkpoint_3", "before_notify"], [1, 1, 2, 1], Resumes),
    row(&["before_checkpoint_3", "after_notify"], [1, 1, 2, 2], Resumes),
    row(&["after_checkpoint_3", "after_notify"], [1, 1, 1, 2], Resumes),
    Row { passed: BOTH, ..row(&["before_checkpoint_4"], [1, 1, 1, 2], Resumes) },
    Row { passed: BOTH, ..row(&["after_checkpoint_4"], [1, 1, 1, 1], Resumes) },
    row(&[BEFORE_COMMIT], [1, 1, 1, 1], Resumes),
    row(&[AFTER_COMMIT], [1, 1, 1, 1], Replays),
];
/// The last of the two steps ends when the other one is recorded.
const BOTH: &[&str] = &["after_notify", "after_checkpoint_3"];
/// How many checkpoints a call writes.
const CHECKPOINTS: u32 = 5;
/// The steps that run at the same time begin with this one.
const FIRST_OF_BOTH: u32 = 3;

/// Several times, because the two that run at the same time can come in each order.
const TIMES: u32 = 2;

/// Starts an owner and waits until its tasks stand at `stands_at`.
async fn owner(
    scene: &Scene,
    order: &str,
    passed: &[&str],
    stands_at: &[&str],
) -> anyhow::Result<Worker> {
    let work = Work::Fulfil(vec![String::from(order)]);
    let mut worker = scene.steady(work, &[passed, stands_at].concat()).await?;
    wait_for_all(&mut worker, passed).await?;
    for point in passed {
        worker.go_from(point).await?;
    }
    wait_for_all(&mut worker, stands_at).await?;
    Ok(worker)
}

async fn wait_for_all(worker: &mut Worker, points: &[&str]) -> anyhow::Result<()> {
    for _ in points {
        let point =
            worker.next_point().await.with_context(|| format!("while waiting for {points:?}"))?;
        ensure!(points.contains(&point.as_str()), "it got to {point} before {points:?}");
    }
    Ok(())
}

/// Makes the call from the test process. It does not lose its lease on a busy machine.
async fn resume(scene: &Scene, order: &str) -> anyhow::Result<(Result<Fulfilled, Error>, Report)> {
    let service = scene.here();
    let (result, report) = with_report(service.fulfil(order)).await;
    Ok((result, report.context("the call reports")?))
}

/// How often each step had its effect so far, and what the last one of each was.
fn effects(scene: &Scene, order: &str) -> anyhow::Result<([usize; 4], [Option<String>; 4])> {
    let mut counts = [0; 4];
    let mut last = [const { None }; 4];
    for (at, step) in STEPS.iter().enumerate() {
        let effects = scene.effects(&effects_of(order, step))?;
        counts[at] = effects.len();
        last[at] = effects
            .last()
            .and_then(|effect| effect.result.clone())
            .map(String::from_utf8)
            .transpose()?;
    }
    Ok((counts, last))
}

/// Makes the next call after the owner has died, and compares it with what `rows` allow. Gives what
/// the call got, and which of the rows it was.
async fn next<'r>(
    scene: &Scene,
    order: &str,
    rows: &[&'r Row],
) -> anyhow::Result<(Outcome, &'r Row)> {
    let (result, report) = resume(scene, order).await?;
    let found = match &result {
        Err(error) if error.kind() == ErrorKind::StepInterrupted && error.step() == Some(ONCE) => {
            Interrupted
        }
        Err(error) => anyhow::bail!("an error that is in no row: {error}"),
        Ok(_) if report.replayed => Replays,
        Ok(_) => Resumes,
    };
    let (counts, last) = effects(scene, order)?;
    let row = rows.iter().find(|row| (row.effects, row.next) == (counts, found));
    let row =
        row.with_context(|| format!("the next caller {found:?}, and the effects are {counts:?}"))?;
    ensure!(found == Replays || report.attempt >= 2, "it was attempt {}", report.attempt);
    if let Ok(fulfilled) = &result {
        // What ran again was recorded again: the result has no effect that was not the last of its
        // step.
        ensure!(
            fulfilled.clone().map(Some) == last,
            "{fulfilled:?} are not the last effects, {last:?}"
        );
    }
    Ok((outcome(&result), row))
}

/// A third process gets the same for each order, and nothing runs any more.
async fn settled(scene: &Scene, found: Vec<(String, Outcome)>) -> anyhow::Result<()> {
    let before = scene.all_effects()?.len();
    let orders: Vec<_> = found.iter().map(|(order, _)| order.clone()).collect();
    let mut third = scene.steady(Work::Fulfil(orders), &[]).await?;
    let mut answers: Vec<_> = answers(&third.lines().await?)?
        .into_iter()
        .map(|answer| (answer.key, answer.outcome))
        .collect();
    let mut found = found;
    answers.sort();
    found.sort();
    assert_eq!(answers, found);
    assert_eq!(scene.all_effects()?.len(), before, "the third process had an effect");
    Ok(())
}

pub async fn a_kill_at_each_point_of_each_step_leaves_what_the_table_says(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let all = TABLE.iter().flat_map(|row| (0..TIMES).map(move |time| (row, time)));
    let deaths = all.map(async |(row, time)| {
        let order = format!("{}-{time}", row.stands_at.join("+"));
        let death = async {
            let room = Scene::room().await?;
            owner(&scene, &order, row.passed, row.stands_at).await?.kill().await?;
            drop(room);
            next(&scene, &order, &[row]).await
        };
        let (outcome, _) = death.await.with_context(|| format!("killed at {:?}", row.stands_at))?;
        anyhow::Ok((order, outcome))
    });
    settled(&scene, try_join_all(deaths).await?).await
}

/// The row of a call that was killed at this point alone, or first.
fn row_at(point: &str) -> anyhow::Result<&'static Row> {
    TABLE
        .iter()
        .rev()
        .find(|row| row.stands_at[0] == point)
        .with_context(|| format!("no row for {point}"))
}

/// The request was sent, and its answer was not read: the checkpoint is there or it is not, and
/// nothing between.
pub async fn a_kill_while_a_checkpoint_is_on_its_way_leaves_the_step_done_or_not(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let all =
        (0..CHECKPOINTS).flat_map(|number| [(number, true), (number, false), (number, false)]);
    let deaths = all.map(async |(number, is_applied)| {
        let (lost, applied) =
            (row_at(&before_checkpoint(number))?, row_at(&after_checkpoint(number))?);
        let order = uuid::Uuid::new_v4().to_string();
        let during = during_checkpoint(number);
        let mut stands_at = vec![&*during];
        if number == FIRST_OF_BOTH {
            stands_at.push("after_notify");
        }
        let death = async {
            let room = Scene::room().await?;
            let owner = owner(&scene, &order, applied.passed, &stands_at).await?;
            if is_applied {
                let has_arrived = async || {
                    let record = scene.record_of(FULFIL, &order).await;
                    record.is_ok_and(|record| {
                        record.is_some_and(|record| record.checkpoints > number)
                    })
                };
                eventually_async("the checkpoint to arrive", has_arrived).await?;
            }
            owner.kill().await?;
            drop(room);
            // Without its arrival being seen, a request races with the kill.
            let rows: &[_] = if is_applied { &[applied] } else { &[applied, lost] };
            next(&scene, &order, rows).await
        };
        let (outcome, _) = death
            .await
            .with_context(|| format!("killed at {during}, known to be applied: {is_applied}"))?;
        anyhow::Ok((order, outcome))
    });
    settled(&scene, try_join_all(deaths).await?).await
}

/// One owner after another dies, each a little later than the one before.
pub async fn a_call_that_dies_again_and_again_gets_on_each_time(
    backend: Backend,
) -> anyhow::Result<()> {
    const ORDER: &str = "order";
    let scene = Scene::new(backend).await?;
    for points in [
        &["after_reserve"][..],
        &["before_checkpoint_1"],
        &["after_checkpoint_2"],
        &["after_pack", "after_checkpoint_3"],
        &[BEFORE_COMMIT],
    ] {
        let _room = Scene::room().await?;
        let owner = owner(&scene, ORDER, &[], points)
            .await
            .with_context(|| format!("to be killed at {points:?}"))?;
        owner.kill().await?;
    }
    let (result, report) = resume(&scene, ORDER).await?;
    let (counts, last) = effects(&scene, ORDER)?;
    assert_eq!((result?.map(Some), counts), (last, [2, 1, 2, 1]));
    // A claim that came too late for its body was given back, and was an attempt.
    assert!(report.attempt >= 6, "it was attempt {}", report.attempt);
    let (_, report) = resume(&scene, ORDER).await?;
    assert!(report.replayed);
    Ok(())
}
