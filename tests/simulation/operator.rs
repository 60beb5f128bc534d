//! An operator, who looks at records in doubt and answers for owners that cannot. It knows the
//! world outside, and tells the truth or nothing.

use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::record::{Resolution, State};
use idempotency_test_support::random::Random;

use crate::log::Entry;
use crate::plan::{Class, Key, index, millis_below};
use crate::process::Process;

const ROUND: Duration = Duration::from_secs(5);

/// Looks after the records until the storm is over.
pub async fn looks_after(desk: Process, mut random: Random) {
    let world = desk.world.clone();
    while !world.is_calm() {
        tokio::time::sleep(millis_below(&mut random, ROUND)).await;
        let key = world.plan.keys[index(&mut random, world.plan.keys.len())].clone();
        world.names_windows();
        let Ok(hash) = desk.record(&key).hash() else { continue };
        let (label, record) = (world.server.name(hash), desk.engine.record_by_hash(hash));
        let Ok(Some(view)) = record.inspect().await else { continue };
        let (forgets, hesitates) = (random.chance(8), millis_below(&mut random, ROUND / 5));
        let did = if view.state == State::InDoubt {
            let Some(resolution) = truth(&desk, &key, hash) else { continue };
            let what = format!("{resolution:?}");
            tokio::time::sleep(hesitates).await;
            format!(
                "{what} {:?}",
                record.resolve(&view, resolution).await.map_err(|error| error.kind())
            )
        } else if forgets {
            format!("forget {:?}", record.forget().await.map_err(|error| error.kind()))
        } else {
            continue;
        };
        world.log.write(Entry::Operator { at: world.now(), key: label, did });
    }
}

/// What can be said about the call for certain.
fn truth(desk: &Process, key: &Key, hash: KeyHash) -> Option<Resolution> {
    let world = &desk.world;
    let label = world.server.name(hash);
    let effects = world.outside.effects(&label, world.server.retention(hash));
    if key.class.has_steps() && !effects.is_empty() {
        let of = |step| {
            effects.iter().find(|effect| effect.step == step).map(|effect| effect.value.clone())
        };
        return Some(Resolution::completed(format!("{}+{}", of("reserve")?, of("charge")?)));
    }
    if let Some(effect) = effects.first() {
        return Some(Resolution::completed(effect.value.clone()));
    }
    // A request to the provider may be on its way.
    let is_over = key.class != Class::VerifyByKey && !world.outside.is_at_work(&label, None);
    is_over.then_some(Resolution::not_executed())
}
