//! Three processes that race for the same keys.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use idempotency::record::State;
use idempotency_test_support::deadline::within;
use idempotency_test_support::history::{Call, Event, Outcome, Policy, Stored, check};
use idempotency_test_support::worker::Worker;

use crate::backend::Backend;
use crate::scene::Scene;
use crate::service::{Planned, Receipt};
use crate::worker::{START, Work, answers};

const PROCESSES: usize = 3;
/// Long enough that a busy machine loses no lease: nothing crashes here.
const LEASE: Duration = Duration::from_secs(60);

/// Starts a process for each list of calls, lets all go at once, and gives what their callers got.
async fn race(scene: &Scene, lists: Vec<Vec<Planned>>) -> anyhow::Result<Vec<Call>> {
    let mut workers = Vec::new();
    for calls in lists {
        workers.push(scene.worker(
            LEASE,
            Work::Charge { retries: false, endless: false, calls },
            &[START],
        )?);
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

pub async fn callers_of_three_processes_have_one_effect_and_one_answer(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    let call = Planned { body: Duration::from_millis(20), ..Planned::now("one") };
    let answers = race(&scene, vec![vec![call; 64]; PROCESSES]).await?;
    assert_eq!(answers.len(), 64 * PROCESSES);
    let effects = scene.effects("one")?;
    assert_eq!(effects.len(), 1);
    let result = effects[0].result.clone().map(Outcome::Value);
    for answer in answers {
        assert_eq!(Some(answer.outcome), result);
    }
    Ok(())
}

pub async fn two_thousand_keys_have_one_effect_each(backend: Backend) -> anyhow::Result<()> {
    const KEYS: u64 = 2_000;
    const CALLERS: u64 = 8;
    let scene = Scene::new(backend).await?;
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
    let mut places: Vec<_> =
        calls.drain(..).zip(0..).map(|(call, at)| (at + random.below(256), call)).collect();
    places.sort_by_key(|(place, _)| *place);
    let mut lists = vec![Vec::new(); PROCESSES];
    for (at, (_, call)) in places.into_iter().enumerate() {
        lists[at % PROCESSES].push(call);
    }

    let answers = race(&scene, lists).await?;
    let effects = scene.all_effects()?;
    let keys: BTreeSet<_> = effects.iter().map(|effect| effect.key.clone()).collect();
    assert_eq!((keys.len() as u64, effects.len() as u64), (KEYS, KEYS), "every key has one effect");
    assert_eq!(answers.len() as u64, KEYS * CALLERS);
    let failed = answers
        .iter()
        .find(|answer| matches!(answer.outcome, Outcome::StoredError(_) | Outcome::Error(_)));
    assert_eq!(failed, None);
    let refused = answers.iter().filter(|answer| answer.outcome == Outcome::Mismatch).count();
    assert!(refused as u64 >= KEYS / 10, "{refused} calls with other content were refused");

    let mut events: Vec<_> =
        answers.into_iter().map(Event::from).chain(effects.into_iter().map(Event::from)).collect();
    for key in keys {
        events.push(stored(&scene, key).await?.into());
    }
    Ok(check(&events, Policy::Hold)?)
}

/// What the store keeps for `key`.
async fn stored(scene: &Scene, key: String) -> anyhow::Result<Stored> {
    let record = scene.record(&key).await?.with_context(|| format!("no record of {key}"))?;
    let result = match record.state {
        State::Completed => {
            Some(Outcome::Value(serde_json::from_slice::<Receipt>(&record.body)?.bytes()))
        }
        _ => None,
    };
    Ok(Stored { key, retention: 0, attempts: record.attempts, result })
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
