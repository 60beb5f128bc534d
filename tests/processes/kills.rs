//! SIGKILL at each point of a call, under each policy: the failure table, cell by cell.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::{ErrorKind, OnCrash, with_report};
use idempotency_test_support::deadline::within;
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_COMMIT, AFTER_EFFECT, AFTER_SEND, BEFORE_COMMIT, BEFORE_EFFECT, BEFORE_SEND,
    DURING_RENEWAL, POINTS,
};

use crate::backend::Backend;
use crate::scene::Scene;
use crate::service::Planned;
use crate::worker::Work;

/// What the next caller finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// No trace of the dead owner: its own claim is the first.
    Owns,
    /// The lease is over, and the body runs again.
    RunsAgain,
    /// The lease is over, and nobody runs the body any more.
    InDoubt,
    /// The answer of the dead owner.
    Replays,
}

/// Where the owner died, and under each policy what the next caller finds and how many effects
/// there are in the end.
struct Row {
    point: &'static str,
    hold: (Next, usize),
    retry: (Next, usize),
}

const NOTHING_SENT: Row = Row { point: BEFORE_SEND, hold: (Next::Owns, 1), retry: (Next::Owns, 1) };
const CLAIMED: Row =
    Row { point: AFTER_CLAIM, hold: (Next::InDoubt, 0), retry: (Next::RunsAgain, 1) };
/// `after_send` is not here: the kill races with the network, and it is one of the first two rows
/// that holds.
const TABLE: [Row; 7] = [
    NOTHING_SENT,
    CLAIMED,
    Row { point: BEFORE_EFFECT, hold: (Next::InDoubt, 0), retry: (Next::RunsAgain, 1) },
    Row { point: DURING_RENEWAL, hold: (Next::InDoubt, 1), retry: (Next::RunsAgain, 2) },
    Row { point: AFTER_EFFECT, hold: (Next::InDoubt, 1), retry: (Next::RunsAgain, 2) },
    Row { point: BEFORE_COMMIT, hold: (Next::InDoubt, 1), retry: (Next::RunsAgain, 2) },
    Row { point: AFTER_COMMIT, hold: (Next::Replays, 1), retry: (Next::Replays, 1) },
];

impl Row {
    fn of(point: &str, claimed: bool) -> &'static Self {
        match TABLE.iter().find(|row| row.point == point) {
            Some(row) => row,
            None if claimed => &CLAIMED,
            None => &NOTHING_SENT,
        }
    }

    fn cell(&self, on_crash: OnCrash) -> (Next, usize) {
        if on_crash == OnCrash::Retry { self.retry } else { self.hold }
    }
}

/// A claim on its way arrives, or it does not: the first are killed at once, the others a little
/// later each.
const LATER: Duration = Duration::from_millis(3);
const STEPS: u32 = 15;

/// Kills one owner at `point` and compares what follows with the table. Tells whether its claim had
/// reached the server.
async fn kill_one(
    scene: &Scene,
    point: &str,
    on_crash: OnCrash,
    number: u32,
) -> anyhow::Result<bool> {
    let key = &*format!("{point}-{number}");
    let (retries, endless, calls) =
        (on_crash == OnCrash::Retry, point == DURING_RENEWAL, vec![Planned::now(key)]);
    let points = if endless { &[AFTER_EFFECT, point][..] } else { &[point] };
    let room = Scene::room().await?;
    let mut worker = scene.steady(Work::Charge { retries, endless, calls }, points).await?;
    if endless {
        // On a busy machine the first renewal can come before the effect.
        worker.wait_for_point(AFTER_EFFECT).await?;
        worker.go().await?;
    }
    worker.wait_for_point(point).await?;
    if point == AFTER_SEND {
        tokio::time::sleep(LATER * (number % STEPS)).await;
    }
    worker.kill().await?;
    drop(room);

    let before = scene.effects(key)?.len();
    let planned = Planned::now(key);
    let call = async || {
        let (result, report) = with_report(scene.here().charge(&planned, on_crash, false)).await;
        (result, report.expect("the call reports"))
    };
    let (result, report) = within("the key to be free", call()).await?;
    let found = match &result {
        Err(error) if error.kind() == ErrorKind::InDoubt => Next::InDoubt,
        Err(error) => anyhow::bail!("an error that is in no cell: {error}"),
        Ok(_) if report.replayed => Next::Replays,
        Ok(_) if report.attempt == 1 => Next::Owns,
        Ok(_) => Next::RunsAgain,
    };
    // A claim on its way may arrive when its sender is dead already: only the answer tells whether
    // it did.
    let claimed = found != Next::Owns;
    let (next, expected_effects) = Row::of(point, claimed).cell(on_crash);
    ensure!(found == next, "the next caller found {found:?}, not {next:?}");
    let effects = scene.effects(key)?;
    ensure!(effects.len() == expected_effects, "{} effects, not {expected_effects}", effects.len());
    let own = usize::from(matches!(next, Next::Owns | Next::RunsAgain));
    ensure!(effects.len() == before + own, "the dead owner had {before} effects");

    // Whatever it was, it is settled: a third caller gets the same at once.
    let (third, report) = call().await;
    match (&result, &third) {
        (Ok(receipt), Ok(again)) => {
            ensure!(receipt == again && report.replayed, "{again:?} after {receipt:?}");
            let last = effects.last().and_then(|effect| effect.result.clone());
            ensure!(last == Some(receipt.bytes()), "{receipt:?} is not the last effect");
        }
        (Err(_), Err(error)) => ensure!(error.kind() == ErrorKind::InDoubt, "{error}"),
        _ => anyhow::bail!("{third:?} after {result:?}"),
    }
    ensure!(scene.effects(key)?.len() == expected_effects, "the third caller had an effect");
    Ok(claimed)
}

/// At least 15, a thousand in the long version.
fn kills() -> u32 {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { 1_000 } else { 15 }
}

async fn kill_at_each_point(backend: Backend, on_crash: OnCrash) -> anyhow::Result<()> {
    let scene = Arc::new(Scene::new(backend).await?);
    let mut deaths = tokio::task::JoinSet::new();
    for point in POINTS {
        for number in 0..kills() {
            let scene = scene.clone();
            deaths.spawn(async move {
                let death = kill_one(&scene, point, on_crash, number).await;
                let claimed = death.with_context(|| {
                    format!("killed at {point} under {on_crash:?}, number {number}")
                })?;
                anyhow::Ok((point, claimed))
            });
        }
    }
    let mut claims = 0;
    while let Some(death) = deaths.join_next().await {
        let (point, claimed) = death??;
        claims += usize::from(point == AFTER_SEND && claimed);
    }
    ensure!(claims > 0, "no claim that was sent has arrived");
    Ok(())
}

pub async fn under_hold_a_kill_leaves_what_the_table_says(backend: Backend) -> anyhow::Result<()> {
    kill_at_each_point(backend, OnCrash::Hold).await
}

pub async fn under_retry_a_kill_leaves_what_the_table_says(backend: Backend) -> anyhow::Result<()> {
    kill_at_each_point(backend, OnCrash::Retry).await
}
