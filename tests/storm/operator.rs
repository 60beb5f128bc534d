//! Those who look after the records: operators answer for owners that cannot, a purge removes what
//! has expired.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idempotency::record::State;
use idempotency::store::{
    AdminOutcome, CrashPolicy, Record, Resolve, ResolveAnswer, Scan, Store, Token,
};
use idempotency_test_support::history::OpenCall;
use idempotency_test_support::random::Random;

use crate::caller::result_of;
use crate::log::{Class, Key, Resolved};
use crate::scene::{Scene, answered};

const HOUR: Duration = Duration::from_secs(3_600);
const PAUSE: Duration = Duration::from_millis(20);

/// Answers for the records in doubt until the storm is over.
pub async fn resolves<S: Store>(scene: Arc<Scene<S>>, mut random: Random) -> anyhow::Result<()> {
    let mut place = None;
    while !scene.is_over() {
        let mut in_doubt = Scan::default();
        (in_doubt.state, in_doubt.after) = (Some(State::InDoubt), place.take());
        let (page, _) = answered(|| scene.store.scan(in_doubt.clone())).await?;
        place = page.next;
        for record in page.records {
            let answer =
                scene.log.of(record.key, |known| answer(known, &record, scene.next_result()));
            let Some(answer) = answer else { continue };
            let resolve =
                Resolve::new(record.key, record.owner, Token::from_bits(random.token()), answer);
            let (changed, span) = answered(|| scene.store.resolve(resolve.clone())).await?;
            if changed == AdminOutcome::Applied {
                scene.log.of(record.key, |known| {
                    known.resolved.push(Resolved { observed: record.owner, span });
                });
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// What an operator knows who has looked at the world outside. It does not guess: what may still
/// happen has no answer.
fn answer(known: &mut Key, record: &Record, number: u64) -> Option<ResolveAnswer> {
    if !known.effects.is_empty() {
        let body = Bytes::from(format!("result {number} of an operator"));
        known.results.push(body.clone());
        return Some(ResolveAnswer::Finished {
            state: State::Completed,
            body,
            schema: 0,
            ttl: HOUR,
        });
    }
    // Where there were other owners, one of them may be late.
    let is_only =
        record.attempts == 1 || (known.class == Class::Hold && record.policy == CrashPolicy::Hold);
    (is_only && known.dead.contains(&record.owner)).then_some(ResolveAnswer::NotExecuted)
}

/// Purges until the storm is over. Nothing expires, so nothing may be removed.
pub async fn purges<S: Store>(scene: Arc<Scene<S>>) -> anyhow::Result<()> {
    while !scene.is_over() {
        let (purged, _) = answered(|| scene.store.purge(100)).await?;
        anyhow::ensure!(
            purged.removed == 0,
            "a purge removed {} records that live",
            purged.removed
        );
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Reads what is there in the end.
pub async fn reads_all<S: Store>(scene: &Scene<S>) -> anyhow::Result<()> {
    let keys: Vec<_> = scene.log.all().keys().copied().collect();
    for key in keys {
        let call = OpenCall::start(scene.log.of(key, |known| known.label.clone()), "the last look");
        let (record, _) = answered(|| scene.store.read(key)).await?;
        if let Some(result) = record.as_ref().and_then(result_of) {
            scene.log.of(key, |known| known.ended(call, result));
        }
    }
    Ok(())
}
