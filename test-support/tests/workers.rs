//! Worker processes that stop at the named points.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::is_running;
use idempotency_test_support::worker::{AFTER_CLAIM, AFTER_EFFECT, POINTS, Worker, example};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};

struct Scene {
    effects: EffectLog,
    _directory: TempDir,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        Ok(Self {
            effects: EffectLog::open(directory.path().join("effects"))?,
            _directory: directory,
        })
    }

    fn worker(&self, points: &[&str]) -> anyhow::Result<Worker> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sample_worker"));
        command.arg(self.effects.path());
        Worker::spawn(command, points)
    }
}

#[tokio::test]
async fn all_points_are_reached_in_order() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut worker = scene.worker(&POINTS)?;
    let mut reached = Vec::new();
    while let Ok(point) = worker.next_point().await {
        reached.push(point);
        worker.go().await?;
    }
    // This worker renews after its effect.
    let mut expected = POINTS;
    expected.swap(4, 5);
    assert_eq!(reached, expected);
    assert_eq!(worker.lines().await?, ["started", "committed"]);
    assert!(worker.wait().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_kill_at_a_point_leaves_what_was_before_it_and_nothing_after() -> anyhow::Result<()> {
    let effect = POINTS.iter().position(|point| *point == AFTER_EFFECT).unwrap();
    for (position, point) in POINTS.iter().enumerate() {
        let scene = Scene::new()?;
        let mut worker = scene.worker(&[point])?;
        worker.wait_for_point(point).await?;
        let pid = worker.pid();
        worker.kill().await?;
        assert!(!is_running(pid)?);
        // The renewal of this worker is after its effect.
        let happened = position >= effect || *point == "during_renewal";
        assert_eq!(scene.effects.count("key")?, usize::from(happened), "{point}");
    }
    Ok(())
}

#[tokio::test]
async fn without_points_a_worker_runs_through() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut worker = scene.worker(&[])?;
    assert_eq!(worker.lines().await?, ["started", "committed"]);
    assert!(worker.next_point().await.is_err());
    assert!(worker.wait().await?.success());
    assert!(worker.kill().await.unwrap_err().to_string().contains("before it could be killed"));
    Ok(())
}

#[tokio::test]
async fn waiting_for_a_point_passes_the_others() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut worker = scene.worker(&POINTS)?;
    worker.wait_for_point(AFTER_EFFECT).await?;
    assert_eq!(scene.effects.count("key")?, 1);
    worker.go().await?;
    let error = worker.wait_for_point("no_such_point").await.unwrap_err();
    assert!(format!("{error:#}").contains("while waiting for no_such_point"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_stopped_worker_goes_on_only_when_it_is_told() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut worker = scene.worker(&[AFTER_CLAIM])?;
    worker.wait_for_point(AFTER_CLAIM).await?;
    worker.stop()?;
    worker.go().await?;
    // It cannot end however long this waits: a stop without effect fails here.
    assert!(tokio::time::timeout(Duration::from_millis(200), worker.wait()).await.is_err());
    assert_eq!(scene.effects.count("key")?, 0);
    worker.cont()?;
    assert!(worker.wait().await?.success());
    assert_eq!(scene.effects.count("key")?, 1);
    Ok(())
}

#[tokio::test]
async fn a_dropped_worker_is_killed_also_when_it_is_stopped() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    for stopped in [false, true] {
        let mut worker = scene.worker(&[AFTER_CLAIM])?;
        worker.wait_for_point(AFTER_CLAIM).await?;
        if stopped {
            worker.stop()?;
        }
        let pid = worker.pid();
        drop(worker);
        eventually("the worker to end", || !is_running(pid).unwrap()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_ends_with_the_process_that_started_it_also_when_both_cannot_act()
-> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut holder = tokio::process::Command::new(env!("CARGO_BIN_EXE_hold_worker"))
        .arg(env!("CARGO_BIN_EXE_sample_worker"))
        .arg(scene.effects.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pid = within("the worker's id", lines.next_line()).await??.unwrap().parse()?;
    assert!(is_running(pid)?);
    holder.kill().await?;
    eventually("the worker to end", || !is_running(pid).unwrap()).await
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() -> anyhow::Result<()> {
    let error = Worker::spawn(Command::new(PathBuf::from("/nowhere/worker")), &[]).unwrap_err();
    assert!(format!("{error:#}").contains("/nowhere/worker"), "{error:#}");
    assert!(example("no_such_example").unwrap_err().to_string().contains("cargo build"));
    within("nothing", async {}).await
}
