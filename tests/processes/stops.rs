//! SIGSTOP beyond the lease: the owner lives, and comes back when it is believed dead.

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use idempotency::record::State;
use idempotency::{ErrorKind, OnCrash, with_report};
use idempotency_test_support::history::{Call, Outcome};
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_COMMIT, BEFORE_EFFECT, Worker};

use crate::backend::Backend;
use crate::fulfilment::{FULFIL, STEPS, effects_of};
use crate::operator::{self, Answer, PAY, Policy};
use crate::provider::SETTLE;
use crate::scene::Scene;
use crate::service::{CHARGE, Planned};
use crate::worker::{DUPLICATE, Work, answers, only_answer, outcome};

/// In the body, and with the commit all but sent.
const POINTS: [&str; 2] = [AFTER_EFFECT, BEFORE_COMMIT];

fn charge(key: &str, retries: bool) -> Work {
    Work::Charge { retries, endless: false, calls: vec![Planned::now(key)] }
}

/// Starts an owner and stops it at `point`.
async fn stopped(scene: &Scene, work: Work, point: &str) -> anyhow::Result<Worker> {
    let _room = Scene::room().await?;
    let mut owner = scene.steady(work, &[point]).await?;
    owner.wait_for_point(point).await?;
    owner.stop()?;
    Ok(owner)
}

/// Lets it go on. Gives what its caller got, and whether it reported a duplicate.
async fn go_on(mut owner: Worker) -> anyhow::Result<(Call, bool)> {
    owner.go().await?;
    ended(owner).await
}

/// Like [`go_on`], where it stopped before a checkpoint, which it sends once more before it gives up.
async fn go_past(mut owner: Worker) -> anyhow::Result<(Call, bool)> {
    owner.go_past().await?;
    ended(owner).await
}

async fn ended(mut owner: Worker) -> anyhow::Result<(Call, bool)> {
    owner.cont()?;
    let lines = owner.lines().await?;
    let answer = answers(&lines)?.pop().with_context(|| format!("no answer: {lines:?}"))?;
    Ok((answer, lines.iter().any(|line| line == DUPLICATE)))
}

pub async fn under_retry_the_commit_of_an_owner_that_was_taken_over_is_refused(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let late = POINTS.map(async |point| {
        let (owner, planned) =
            (stopped(&scene, charge(point, true), point).await?, Planned::now(point));
        let call = async || with_report(scene.here().charge(&planned, OnCrash::Retry, false)).await;
        let (winner, report) = call().await;
        let (winner, report) = (winner?, report.context("the call reports")?);
        ensure!(!report.replayed && report.attempt >= 2, "{point}: the call was not taken over");
        let before = content(&scene, CHARGE, point).await?;
        ensure!(before.is_some(), "{point}: the result is not stored");

        let (late, duplicate) = go_on(owner).await?;
        ensure!(
            late.outcome == Outcome::Value(winner.bytes()),
            "{point}: the late owner gives another result"
        );
        ensure!(duplicate, "{point}: the second effect is not reported");
        ensure!(content(&scene, CHARGE, point).await? == before, "{point}: the late owner wrote");
        ensure!(call().await.0? == winner, "{point}: the result has changed");
        let effects = scene.effects(point)?.len();
        ensure!(
            effects == 2,
            "{point}: {effects} effects, and that of a stopped body cannot be taken back"
        );
        Ok(())
    });
    try_join_all(late).await?;
    Ok(())
}

pub async fn under_hold_an_owner_that_was_in_doubt_settles_its_own_record(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let late = POINTS.map(async |point| {
        let (owner, planned) =
            (stopped(&scene, charge(point, false), point).await?, Planned::now(point));
        let call = async || with_report(scene.here().charge(&planned, OnCrash::Hold, false)).await;
        let (refused, _) = call().await;
        ensure!(
            refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::InDoubt),
            "{point}: {refused:?}"
        );
        let state = scene.record_of(CHARGE, point).await?.map(|record| record.state);
        ensure!(state == Some(State::InDoubt), "{point}: {state:?}");

        let (late, duplicate) = go_on(owner).await?;
        ensure!(!duplicate, "{point}: its effect is the only one");
        let (replayed, report) = call().await;
        ensure!(report.is_some_and(|report| report.replayed), "{point}: it ran again");
        ensure!(
            late.outcome == Outcome::Value(replayed?.bytes()),
            "{point}: another result than the late owner's"
        );
        ensure!(scene.effects(point)?.len() == 1, "{point}: a second effect");
        Ok(())
    });
    try_join_all(late).await?;
    Ok(())
}

/// Owner, fence and body of the record: what a late owner must leave as it is.
async fn content(
    scene: &Scene,
    operation: &str,
    key: &str,
) -> anyhow::Result<Option<(State, u64, Vec<u8>)>> {
    let record = scene.record_of(operation, key).await?;
    Ok(record.map(|record| (record.state, record.fence, record.body.to_vec())))
}

pub async fn a_late_owner_neither_overwrites_an_operators_answer_nor_returns_another(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let answers = [Answer::completed(), Answer::Declined, Answer::NotExecuted];
    let late = POINTS.iter().flat_map(|point| answers.iter().map(move |answer| (*point, answer)));
    // That nothing happened removes the record, and a commit that is on its way brings it back: see
    // below.
    let late = late.filter(|late| *late != (BEFORE_COMMIT, &Answer::NotExecuted));
    let late = late.map(async |(point, answer)| {
        let key = format!("{point} {answer:?}");
        let owner =
            stopped(&scene, Work::Pay { key: key.clone(), policy: Policy::Hold }, point).await?;
        let work = Work::Answer { key: key.clone(), answer: answer.clone() };
        let resolved = only_answer(&mut scene.steady(work, &[]).await?).await?;
        ensure!(resolved == Outcome::Value(b"null".to_vec()), "{key}: {resolved:?}");

        let before = content(&scene, PAY, &key).await?;
        let (late, duplicate) = go_on(owner).await?;
        let superseded = Outcome::Error(String::from("Superseded"));
        ensure!(
            late.outcome == answer.outcome().unwrap_or(superseded),
            "{key}: {:?}",
            late.outcome
        );
        ensure!(duplicate, "{key}: its result is not the one that counts, and nobody was told");
        ensure!(content(&scene, PAY, &key).await? == before, "{key}: the late owner wrote");
        let next = operator::outcome(&scene.here().pay(&key, Policy::Hold).await);
        let effects = scene.effects(&key)?;
        if let Some(answer) = answer.outcome() {
            ensure!(
                next == answer && effects.len() == 1,
                "{key}: {next:?} with {} effects",
                effects.len()
            );
        } else {
            // The operator was wrong, and nobody can take the first effect back.
            ensure!(effects.len() == 2, "{key}: {} effects", effects.len());
            ensure!(
                effects[1].result.clone().map(Outcome::Value) == Some(next),
                "{key}: the second is the result"
            );
        }
        Ok(())
    });
    try_join_all(late).await?;
    Ok(())
}

/// The owner has decided, in its lease, to write its record anew if that is gone. Whatever the
/// store makes of it, there is one result.
pub async fn a_commit_on_its_way_when_an_operator_says_that_nothing_happened_is_the_result_or_is_lost(
    backend: Backend,
) -> anyhow::Result<()> {
    const KEY: &str = "order";
    let scene = Scene::new(backend).await?;
    let owner =
        stopped(&scene, Work::Pay { key: String::from(KEY), policy: Policy::Hold }, BEFORE_COMMIT)
            .await?;
    let service = scene.here();
    service.answer(KEY, &Answer::NotExecuted).await??;
    let (late, _) = go_on(owner).await?;
    let next = operator::outcome(&service.pay(KEY, Policy::Hold).await);
    let effects = scene.effects(KEY)?;
    if late.outcome == Outcome::Error(String::from("Superseded")) {
        assert_eq!((effects.len(), effects[1].result.clone().map(Outcome::Value)), (2, Some(next)));
    } else {
        assert_eq!((effects.len(), late.outcome), (1, next));
    }
    Ok(())
}

pub async fn a_late_owner_gets_the_result_of_the_call_that_ran_after_an_operators_answer(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let late = POINTS.iter().map(async |point| {
        let owner =
            stopped(&scene, Work::Pay { key: String::from(*point), policy: Policy::Hold }, point)
                .await?;
        let service = scene.here();
        service.answer(point, &Answer::NotExecuted).await??;
        let next = operator::outcome(&service.pay(point, Policy::Hold).await);
        let before = content(&scene, PAY, point).await?;
        let (late, duplicate) = go_on(owner).await?;
        ensure!(
            (&late.outcome, duplicate) == (&next, true),
            "{point}: {:?} and not {next:?}",
            late.outcome
        );
        ensure!(content(&scene, PAY, point).await? == before, "{point}: the late owner wrote");
        Ok(())
    });
    try_join_all(late).await?;
    Ok(())
}

/// Where the owner was before its effect, "it did not happen" was true only until it went on: the
/// provider has to recognise the key.
pub async fn under_verify_a_late_owner_gets_the_result_of_who_asked(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let late = [(BEFORE_EFFECT, 2), (AFTER_EFFECT, 1), (BEFORE_COMMIT, 1)].map(
        async |(point, expected)| {
            let owner = stopped(
                &scene,
                Work::Settle { key: String::from(point), provider_knows: true },
                point,
            )
            .await?;
            let winner = scene.here().settle(point, true).await?;
            let before = content(&scene, SETTLE, point).await?;
            let (late, duplicate) = go_on(owner).await?;
            ensure!(
                (late.outcome, duplicate) == (Outcome::Value(winner.bytes()), true),
                "{point}: another result"
            );
            ensure!(
                content(&scene, SETTLE, point).await? == before,
                "{point}: the late owner wrote"
            );
            let (effects, questions) = (scene.effects(point)?.len(), scene.questions(point)?.len());
            ensure!(
                (effects, questions) == (expected, 1),
                "{point}: {effects} effects, {questions} questions"
            );
            Ok(())
        },
    );
    try_join_all(late).await?;
    Ok(())
}

pub async fn under_resume_a_late_owner_runs_no_further_step(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    // In the body of a step, with its checkpoint all but sent, and between two steps.
    let late = [
        ("after_reserve", [2, 1, 1, 1]),
        ("before_checkpoint_0", [2, 1, 1, 1]),
        ("after_checkpoint_0", [1; 4]),
    ];
    let late = late.map(async |(point, expected)| {
        let owner = stopped(&scene, Work::Fulfil(vec![String::from(point)]), point).await?;
        let service = scene.here();
        let winner = outcome(&service.fulfil(point).await);
        ensure!(matches!(winner, Outcome::Value(_)), "{point}: {winner:?}");
        let before = content(&scene, FULFIL, point).await?;
        let is_checkpoint = point == "before_checkpoint_0";
        let (late, _) = if is_checkpoint { go_past(owner).await? } else { go_on(owner).await? };
        ensure!(late.outcome == winner, "{point}: {:?}", late.outcome);
        ensure!(content(&scene, FULFIL, point).await? == before, "{point}: the late owner wrote");
        ensure!(outcome(&service.fulfil(point).await) == winner, "{point}: the result has changed");
        for (step, expected) in STEPS.iter().zip(expected) {
            let effects = scene.effects(&effects_of(point, step))?.len();
            ensure!(effects == expected, "{point}: {step} had {effects} effects, not {expected}");
        }
        Ok(())
    });
    try_join_all(late).await?;
    Ok(())
}
