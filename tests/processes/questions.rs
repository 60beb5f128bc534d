//! SIGKILL of those who ask the outside world about somebody that was killed before: the failure
//! table of `on_crash = verify`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use idempotency::record::State;
use idempotency::store::Reason;
use idempotency::{Error, ErrorKind, Report, with_report};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::history::Outcome;
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_COMMIT, AFTER_EFFECT, AFTER_PARK, BEFORE_COMMIT, BEFORE_EFFECT, BEFORE_PARK,
    DURING_PARK,
};

use crate::backend::Backend;
use crate::provider::{AFTER_QUESTION, BEFORE_QUESTION, DELAY, DURING_QUESTION, SETTLE};
use crate::scene::Scene;
use crate::service::Receipt;
use crate::worker::{Work, only_answer, outcome};

/// What the next caller finds when the one that asked is dead, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It asks, when the lease is over.
    Asks,
    /// It asks, when the rest of a question without an answer is over.
    Rests,
    /// The answer of the dead.
    Replays,
}

use Next::{Asks, Replays, Rests};

/// Where the owner and who asked were killed, and what follows. There is one effect in the end,
/// always.
struct Row {
    /// Before the effect of the body, or after it.
    owner: &'static str,
    /// Whether the one that asks gets an answer. The next one does.
    provider_knows: bool,
    /// `None`: nobody asked before the next caller.
    asker: Option<&'static str>,
    next: Next,
    /// How often the provider was asked in the end.
    questions: usize,
}

const fn row(
    owner: &'static str,
    asker: Option<&'static str>,
    next: Next,
    questions: usize,
) -> Row {
    Row { owner, provider_knows: true, asker, next, questions }
}

const fn unknown(owner: &'static str, asker: &'static str, next: Next) -> Row {
    Row { owner, provider_knows: false, asker: Some(asker), next, questions: 2 }
}

const TABLE: [Row; 24] = [
    // The provider says: it happened.
    row(AFTER_EFFECT, None, Asks, 1),
    row(BEFORE_COMMIT, None, Asks, 1),
    row(AFTER_EFFECT, Some(AFTER_CLAIM), Asks, 1),
    row(AFTER_EFFECT, Some(BEFORE_QUESTION), Asks, 1),
    row(AFTER_EFFECT, Some(DURING_QUESTION), Asks, 2),
    row(AFTER_EFFECT, Some(AFTER_QUESTION), Asks, 2),
    row(AFTER_EFFECT, Some(BEFORE_COMMIT), Asks, 2),
    row(AFTER_EFFECT, Some(AFTER_COMMIT), Replays, 1),
    // It says: it did not happen. The body of the one that asked runs.
    row(AFTER_CLAIM, None, Asks, 1),
    row(BEFORE_EFFECT, None, Asks, 1),
    row(BEFORE_EFFECT, Some(AFTER_CLAIM), Asks, 1),
    row(BEFORE_EFFECT, Some(BEFORE_QUESTION), Asks, 1),
    row(BEFORE_EFFECT, Some(DURING_QUESTION), Asks, 2),
    row(BEFORE_EFFECT, Some(AFTER_QUESTION), Asks, 2),
    row(BEFORE_EFFECT, Some(BEFORE_EFFECT), Asks, 2),
    row(BEFORE_EFFECT, Some(AFTER_EFFECT), Asks, 2),
    row(BEFORE_EFFECT, Some(BEFORE_COMMIT), Asks, 2),
    row(BEFORE_EFFECT, Some(AFTER_COMMIT), Replays, 1),
    // It does not know. In doubt, and asked again.
    unknown(AFTER_EFFECT, DURING_QUESTION, Asks),
    unknown(AFTER_EFFECT, BEFORE_PARK, Asks),
    unknown(AFTER_EFFECT, DURING_PARK, Rests),
    unknown(AFTER_EFFECT, AFTER_PARK, Rests),
    unknown(BEFORE_EFFECT, BEFORE_PARK, Asks),
    unknown(BEFORE_EFFECT, AFTER_PARK, Rests),
];

/// What is lost where times are rounded.
const ROUNDING: Duration = Duration::from_millis(5);

/// The questions after the first `before` are asked when the lease is over that ends then, or
/// later.
struct Bound {
    before: usize,
    lease_until: Duration,
}

/// By the clock of this machine, which the questions have too, and by how much of the lease the
/// store says is left.
async fn bound(scene: &Scene, key: &str) -> anyhow::Result<Option<Bound>> {
    let before = scene.questions(key)?.len();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let record = scene.record_of(SETTLE, key).await?.context("the record of the dead")?;
    let lease_until = now + record.lease_until.saturating_duration_since(record.read_at);
    Ok((record.state == State::InProgress).then_some(Bound { before, lease_until }))
}

/// Kills a worker at `point`. Gives when its lease ends.
async fn kill(
    scene: &Scene,
    key: &str,
    provider_knows: bool,
    point: &str,
) -> anyhow::Result<Option<Bound>> {
    let _room = Scene::room().await?;
    let work = Work::Settle { key: String::from(key), provider_knows };
    let mut worker = scene.steady(work, &[point]).await?;
    worker.wait_for_point(point).await?;
    if point == DURING_PARK {
        is_parked(scene, key).await?;
    }
    worker.kill().await.with_context(|| format!("to be killed at {point}"))?;
    bound(scene, key).await
}

/// Waits until the question without an answer is on the record.
async fn is_parked(scene: &Scene, key: &str) -> anyhow::Result<()> {
    let is_parked = async || {
        let record = scene.record_of(SETTLE, key).await.ok().flatten();
        record.is_some_and(|record| {
            (record.state, record.reason) == (State::InDoubt, Some(Reason::Unverified))
        })
    };
    eventually_async("the record to be in doubt", is_parked).await
}

/// Makes the call from the test process, where the provider knows.
async fn ask(scene: &Scene, key: &str) -> anyhow::Result<(Result<Receipt, Error>, Report)> {
    let service = scene.here();
    let (result, report) = with_report(service.settle(key, true)).await;
    Ok((result, report.context("the call reports")?))
}

/// Calls until the rest of a question without an answer is over: whoever calls before gets
/// `InDoubt` and asks nothing.
async fn ask_after_the_rest(scene: &Scene, key: &str) -> anyhow::Result<(Receipt, Report)> {
    let asked = scene.questions(key)?.len();
    let mut refused = 0;
    let calls = async {
        loop {
            match ask(scene, key).await? {
                (Err(error), _) if error.kind() == ErrorKind::InDoubt => {
                    ensure!(error.retry_after().is_some(), "it is not said when it is asked again");
                    ensure!(
                        scene.questions(key)?.len() == asked,
                        "it was asked again before its rest was over"
                    );
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                (result, report) => return anyhow::Ok((result?, report)),
            }
        }
    };
    let answered = within("the end of the rest", calls).await??;
    ensure!(refused > 0, "it was asked again at once");
    Ok(answered)
}

async fn follow(scene: &Scene, key: &str, row: &Row) -> anyhow::Result<Receipt> {
    let mut bounds = vec![kill(scene, key, true, row.owner).await?];
    if let Some(point) = row.asker {
        bounds.push(kill(scene, key, row.provider_knows, point).await?);
    }
    let (receipt, report) = match row.next {
        Rests => ask_after_the_rest(scene, key).await?,
        Asks | Replays => {
            let (result, report) = ask(scene, key).await?;
            (result?, report)
        }
    };
    ensure!(report.replayed == (row.next == Replays), "{report:?}");
    let effects = scene.effects(key)?;
    ensure!(effects.len() == 1, "{} effects", effects.len());
    ensure!(effects[0].result == Some(receipt.bytes()), "{receipt:?} is of no effect");
    let questions = scene.questions(key)?;
    ensure!(questions.len() == row.questions, "{} questions", questions.len());
    for bound in bounds.into_iter().flatten() {
        for question in &questions[bound.before..] {
            let asked = Duration::from_micros(question.at);
            let earliest = bound.lease_until + DELAY;
            ensure!(
                asked + ROUNDING >= earliest,
                "asked {:?} too early",
                earliest.saturating_sub(asked)
            );
        }
    }
    Ok(receipt)
}

pub async fn under_verify_a_kill_of_owner_and_asker_leaves_one_effect(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let deaths = TABLE.iter().map(async |row| {
        let key = uuid::Uuid::new_v4().to_string();
        let death = follow(&scene, &key, row).await;
        let receipt = death.with_context(|| {
            let provider = if row.provider_knows { "knows" } else { "does not know" };
            format!(
                "owner killed at {}, asker at {:?}, and the provider {provider}",
                row.owner, row.asker
            )
        })?;
        anyhow::Ok((key, receipt))
    });
    let found = try_join_all(deaths).await?;

    // For another process it is settled: the same answer, no further question and no further
    // effect.
    for (key, receipt) in found.iter().step_by(6) {
        let work = Work::Settle { key: key.clone(), provider_knows: true };
        let replayed = only_answer(&mut scene.steady(work, &[]).await?).await?;
        assert_eq!(replayed, Outcome::Value(receipt.bytes()));
    }
    let questions: usize = TABLE.iter().map(|row| row.questions).sum();
    assert_eq!(
        (scene.all_effects()?.len(), scene.all_questions()?.len()),
        (TABLE.len(), questions)
    );
    Ok(())
}

pub async fn under_verify_nobody_asks_while_the_owner_lives(
    backend: Backend,
) -> anyhow::Result<()> {
    const KEY: &str = "order";
    let scene = Scene::new(backend).await?;
    let work = Work::Settle { key: String::from(KEY), provider_knows: true };
    let mut owner = scene.living(work, &[AFTER_EFFECT]).await?;
    owner.wait_for_point(AFTER_EFFECT).await?;
    let record = async || scene.record_of(SETTLE, KEY).await.ok().flatten();
    let first = record().await.context("the owner has a lease")?.lease_until;

    let meanwhile = async {
        let is_over = async || record().await.is_some_and(|record| record.read_at > first);
        eventually_async("the lease with which it began to end", is_over).await?;
        ensure!(scene.all_questions()?.is_empty(), "somebody asked about an owner that lives");
        owner.go().await?;
        only_answer(&mut owner).await
    };
    let (waiting, answer) = tokio::join!(ask(&scene, KEY), meanwhile);
    let (result, report) = waiting?;
    assert_eq!((outcome(&result), report.replayed), (answer?, true));
    assert_eq!((scene.effects(KEY)?.len(), scene.all_questions()?.len()), (1, 0));
    Ok(())
}
