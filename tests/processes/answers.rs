//! SIGKILL of operators that answer for owners that were killed before: before, while and after the
//! answer is written.

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use idempotency::ErrorKind;
use idempotency::record::{Resolution, State};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::history::Outcome;
use idempotency_test_support::worker::{
    AFTER_EFFECT, AFTER_PARK, AFTER_RESOLVE, BEFORE_EFFECT, BEFORE_PARK, BEFORE_RESOLVE,
    DURING_PARK, DURING_RESOLVE, Worker,
};

use crate::backend::Backend;
use crate::operator::{AFTER_LOOK, Answer, PAY, POLICIES, PayError, Policy, outcome};
use crate::scene::Scene;
use crate::service::{Receipt, Service};
use crate::worker::{Work, only_answer};

/// What the operator leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing: the record is as it was.
    Nothing,
    /// The record is in doubt, under every policy, and waits for another answer.
    Doubt,
    /// The answer.
    Answer,
}

/// In the order in which an operator reaches them.
const TABLE: [(&str, Left); 7] = [
    (AFTER_LOOK, Left::Nothing),
    (BEFORE_PARK, Left::Nothing),
    (DURING_PARK, Left::Doubt),
    (AFTER_PARK, Left::Doubt),
    (BEFORE_RESOLVE, Left::Doubt),
    (DURING_RESOLVE, Left::Answer),
    (AFTER_RESOLVE, Left::Answer),
];

/// An owner that dies, and that the record names. It had its effect if `point` says so.
async fn dead_owner(scene: &Scene, key: &str, policy: Policy, point: &str) -> anyhow::Result<()> {
    let _room = Scene::room().await?;
    let mut owner = scene.steady(Work::Pay { key: String::from(key), policy }, &[point]).await?;
    owner.wait_for_point(point).await?;
    let process = format!("/{}", owner.pid());
    owner.kill().await?;
    let record = scene.record_of(PAY, key).await?.context("the record of the dead owner")?;
    let holder = &record.holder;
    ensure!(holder.ends_with(&process), "it was held by {holder}, and {process} has died");
    Ok(())
}

/// An operator that dies at `point`. What it sent there has arrived.
async fn dead_operator(
    scene: &Scene,
    key: &str,
    answer: &Answer,
    point: &str,
) -> anyhow::Result<()> {
    let _room = Scene::room().await?;
    let work = Work::Answer { key: String::from(key), answer: answer.clone() };
    let mut operator = scene.steady(work, &[point]).await?;
    operator.wait_for_point(point).await?;
    let state =
        async || scene.record_of(PAY, key).await.map(|record| record.map(|record| record.state));
    match point {
        DURING_PARK => {
            let is_parked = async || state().await.is_ok_and(|state| state == Some(State::InDoubt));
            eventually_async("the doubt to arrive", is_parked).await?;
        }
        DURING_RESOLVE => {
            let is_answered =
                async || state().await.is_ok_and(|state| state != Some(State::InDoubt));
            eventually_async("the answer to arrive", is_answered).await?;
        }
        _ => {}
    }
    operator.kill().await
}

/// Where nothing is answered, another operator does so, and the callers get its answer. The dead
/// one's is gone.
async fn follow(
    scene: &Scene,
    key: &str,
    policy: Policy,
    answer: &Answer,
    row: (&str, Left),
) -> anyhow::Result<()> {
    let (point, left) = row;
    let nothing_happened = *answer == Answer::NotExecuted;
    dead_owner(scene, key, policy, if nothing_happened { BEFORE_EFFECT } else { AFTER_EFFECT })
        .await?;
    dead_operator(scene, key, answer, point).await?;

    let service = scene.here();
    let view = service.payment(key).inspect().await?;
    let standing = match left {
        Left::Answer => answer.clone(),
        Left::Nothing | Left::Doubt => {
            let view = view.context("the record of the dead owner")?;
            let state = if left == Left::Nothing && policy != Policy::Hold {
                State::InProgress
            } else {
                State::InDoubt
            };
            ensure!(view.state == state, "the record is {:?}", view.state);
            if left == Left::Doubt && policy != Policy::Verify {
                let waiting = service.pay(key, policy).await;
                let kind = waiting.as_ref().err().and_then(PayError::kind);
                ensure!(kind == Some(ErrorKind::InDoubt), "{waiting:?} while nobody has answered");
            }
            let another = if nothing_happened { Answer::NotExecuted } else { Answer::completed() };
            service.payment(key).resolve(&view, another.resolution()).await?;
            another
        }
    };
    let answered = outcome(&service.pay(key, policy).await);
    let effects = scene.effects(key)?;
    ensure!(effects.len() == 1, "{} effects", effects.len());
    let expected = standing.outcome().or(effects[0].result.clone().map(Outcome::Value));
    ensure!(Some(&answered) == expected.as_ref(), "{answered:?} instead of {expected:?}");
    ensure!(
        outcome(&service.pay(key, policy).await) == answered,
        "the next caller got something else"
    );
    Ok(())
}

pub async fn a_kill_of_an_operator_leaves_the_answer_or_none(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let answers = [Answer::completed(), Answer::Declined, Answer::NotExecuted];
    // Every answer at every point, and every policy with one of the answers.
    let held =
        answers.iter().flat_map(|answer| TABLE.iter().map(move |row| (Policy::Hold, answer, *row)));
    let others = POLICIES.iter().filter(|policy| **policy != Policy::Hold);
    let others = others.flat_map(|policy| TABLE.iter().map(|row| (*policy, &answers[0], *row)));
    let deaths = held.chain(others).map(async |(policy, answer, row)| {
        let key = uuid::Uuid::new_v4().to_string();
        let death = follow(&scene, &key, policy, answer, row).await;
        death.with_context(|| {
            format!("{answer:?} under {policy:?} by an operator that was killed at {}", row.0)
        })
    });
    try_join_all(deaths).await?;
    Ok(())
}

/// The request is on its way when its sender dies: the answer is there or it is not, and another
/// one is refused or not.
pub async fn a_kill_while_an_answer_is_on_its_way_leaves_one_answer(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let deaths = (0..6).map(async |number| {
        let key = format!("order-{number}");
        dead_owner(&scene, &key, Policy::Hold, AFTER_EFFECT).await?;
        let service = scene.here();
        let view = service.look(&key).await?;
        let (first, second) = (Answer::completed(), Answer::completed());
        {
            let _room = Scene::room().await?;
            let work = Work::Answer { key: key.clone(), answer: first.clone() };
            let mut operator = scene.steady(work, &[DURING_RESOLVE]).await?;
            operator.wait_for_point(DURING_RESOLVE).await?;
            operator.kill().await?;
        }
        let stands = match service.payment(&key).resolve(&view, second.resolution()).await {
            Ok(()) => second,
            Err(error) if error.kind() == ErrorKind::Superseded => first,
            Err(error) => return Err(error.into()),
        };
        for _ in 0..2 {
            let answered = outcome(&service.pay(&key, Policy::Hold).await);
            ensure!(
                Some(&answered) == stands.outcome().as_ref(),
                "{answered:?}, and {stands:?} was answered"
            );
        }
        ensure!(scene.effects(&key)?.len() == 1, "the body ran again");
        Ok(())
    });
    try_join_all(deaths).await?;
    Ok(())
}

/// The record as it was seen is not there any more: answered by another operator, or run again by
/// the next caller.
pub async fn an_answer_that_is_based_on_an_old_look_is_refused(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let service = scene.here();
    let refused = async |key: &str, operator: &mut Worker| {
        operator.go().await?;
        let answered = only_answer(operator).await?;
        ensure!(answered == Outcome::Error(String::from("Superseded")), "{key}: {answered:?}");
        Ok(())
    };
    let late = async |key: &str| {
        dead_owner(&scene, key, Policy::Hold, AFTER_EFFECT).await?;
        let work = Work::Answer { key: String::from(key), answer: Answer::completed() };
        let mut operator = scene.steady(work, &[AFTER_LOOK]).await?;
        operator.wait_for_point(AFTER_LOOK).await?;
        anyhow::Ok(operator)
    };

    let answered = async {
        let mut operator = late("answered").await?;
        let view = service.look("answered").await?;
        let other = Answer::completed();
        service.payment("answered").resolve(&view, other.resolution()).await?;
        refused("answered", &mut operator).await?;
        assert_eq!(Some(outcome(&service.pay("answered", Policy::Hold).await)), other.outcome());
        anyhow::Ok(())
    };
    let run_again = async {
        let mut operator = late("run again").await?;
        let view = service.look("run again").await?;
        service.payment("run again").resolve(&view, Resolution::not_executed()).await?;
        // The owner after that is killed too: in doubt as before, and it is another doubt.
        dead_owner(&scene, "run again", Policy::Hold, AFTER_EFFECT).await?;
        let doubt = service.look("run again").await?;
        refused("run again", &mut operator).await?;
        let other = Answer::completed();
        service.payment("run again").resolve(&doubt, other.resolution()).await?;
        assert_eq!(Some(outcome(&service.pay("run again", Policy::Hold).await)), other.outcome());
        anyhow::Ok(())
    };
    let taken_over = async {
        dead_owner(&scene, "taken over", Policy::Retry, AFTER_EFFECT).await?;
        let view = service.look("taken over").await?;
        let result = paid(service, "taken over", Policy::Retry).await?;
        let answer =
            service.payment("taken over").resolve(&view, Answer::completed().resolution()).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Superseded);
        assert_eq!(paid(service, "taken over", Policy::Retry).await?, result);
        anyhow::Ok(())
    };
    tokio::try_join!(answered, run_again, taken_over)?;
    Ok(())
}

async fn paid(service: &Service, key: &str, policy: Policy) -> anyhow::Result<Receipt> {
    Ok(service.pay(key, policy).await?)
}

/// A living owner cannot be answered for, under any policy.
pub async fn an_owner_that_lives_is_not_answered_for(backend: Backend) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let service = scene.here();
    let owners = POLICIES.iter().map(async |policy| {
        let key = format!("{policy:?}");
        let _room = Scene::room().await?;
        let mut owner =
            scene.living(Work::Pay { key: key.clone(), policy: *policy }, &[AFTER_EFFECT]).await?;
        owner.wait_for_point(AFTER_EFFECT).await?;
        let view =
            service.payment(&key).inspect().await?.context("the record of a living owner")?;
        ensure!((view.state, view.reason) == (State::InProgress, None), "{view:?}");
        let answer = service.payment(&key).resolve(&view, Answer::completed().resolution()).await;
        ensure!(
            answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::InProgress),
            "{answer:?}"
        );
        owner.go().await?;
        let own = only_answer(&mut owner).await?;
        ensure!(own == outcome(&service.pay(&key, *policy).await), "{own:?} is not the result");
        Ok(())
    });
    try_join_all(owners).await?;
    Ok(())
}
