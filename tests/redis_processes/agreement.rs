//! Three processes that race for the same keys.

use std::collections::BTreeMap;
use std::time::Duration;

use idempotency::{ErrorKind, OnCrash};
use idempotency_test_support::deadline::within;
use idempotency_test_support::worker::Worker;

use crate::history::{History, effects};
use crate::scene::Scene;
use crate::worker::{Answer, Orders, Planned, START, answers, kind, spawn};

const PROCESSES: usize = 3;
/// Long enough that a busy machine loses no lease: nothing crashes here.
const LEASE: Duration = Duration::from_secs(15);

/// Starts a process for each list of calls, lets all go at once, and gives what their callers got.
async fn race(scene: &Scene, lists: Vec<Vec<Planned>>) -> anyhow::Result<Vec<Answer>> {
    let mut workers = Vec::new();
    for calls in lists {
        let orders = Orders { lease: LEASE, ..scene.orders(OnCrash::Hold, calls) };
        workers.push(spawn(&orders, &[START])?);
    }
    for worker in &mut workers {
        worker.wait_for_point(START).await?;
    }
    for worker in &mut workers {
        worker.go().await?;
    }
    let mut all = Vec::new();
    for worker in &mut workers {
        all.extend(answers(&lines(worker).await?)?);
    }
    Ok(all)
}

async fn lines(worker: &mut Worker) -> anyhow::Result<Vec<String>> {
    let lines = worker.lines().await?;
    let status = within("the worker to end", worker.wait()).await??;
    anyhow::ensure!(status.success(), "{status}: {lines:?}");
    Ok(lines)
}

#[tokio::test]
async fn callers_of_three_processes_have_one_effect_and_one_answer() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let call = Planned { body: Duration::from_millis(20), ..Planned::now("one") };
    let answers = race(&scene, vec![vec![call; 64]; PROCESSES]).await?;
    assert_eq!(answers.len(), 64 * PROCESSES);
    assert_eq!(scene.effects.count("one")?, 1);
    let effects = effects(&scene.effects.lines()?);
    for answer in &answers {
        assert_eq!(answer.result.as_ref(), Ok(&effects["one"][0]));
    }
    Ok(())
}

#[tokio::test]
async fn two_thousand_keys_have_one_effect_each() -> anyhow::Result<()> {
    const KEYS: u64 = 2_000;
    const CALLERS: u64 = 8;
    let scene = Scene::new().await?;
    let mut random = Random(0x5EED);
    let mut calls: Vec<_> = (0..KEYS * CALLERS)
        .map(|call| Planned {
            key: format!("key-{}", call / CALLERS),
            // One caller of every tenth key asks for something else.
            payload: u32::from(call % (CALLERS * 10) == 3),
            delay: Duration::from_micros(random.below(20_000)),
            body: Duration::from_micros(random.below(3_000)),
        })
        .collect();
    // Callers of one key meet, those of others come between them.
    let mut places: Vec<_> = calls.drain(..).zip(0..).map(|(call, at)| (at + random.below(256), call)).collect();
    places.sort_by_key(|(place, _)| *place);
    let mut lists = vec![Vec::new(); PROCESSES];
    for (at, (_, call)) in places.into_iter().enumerate() {
        lists[at % PROCESSES].push(call);
    }

    let answers = race(&scene, lists).await?;
    let mut effects = effects(&scene.effects.lines()?);
    assert_eq!(effects.len() as u64, KEYS);
    assert!(effects.values().all(|of_a_key| of_a_key.len() == 1), "an effect happened twice");
    let mut by_key = BTreeMap::<_, Vec<_>>::new();
    for answer in &answers {
        by_key.entry(&answer.key).or_default().push(answer);
    }
    let mut refused = 0;
    for (key, answers) in by_key {
        assert_eq!(answers.len() as u64, CALLERS, "{key}");
        refused += answers.iter().filter(|answer| answer.result == Err(kind(ErrorKind::Mismatch))).count();
        let unexpected = |answer: &&&Answer| answer.result.as_ref().is_err_and(|e| *e != kind(ErrorKind::Mismatch));
        assert_eq!(answers.iter().find(unexpected), None, "nothing failed");
        let effects = effects.remove(key).unwrap_or_default();
        let history = History { answers, effects, record: scene.record(key).await? };
        assert_eq!(history.violations(), [""; 0], "{key}");
    }
    assert!(refused as u64 >= KEYS / 10, "{refused} calls with other content were refused");
    Ok(())
}

/// The same delays in each run: `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }
}
