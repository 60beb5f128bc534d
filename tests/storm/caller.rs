//! A caller: claims a key, waits for others, and runs the body when the claim is its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{Claim, ClaimOutcome, CrashPolicy, Record, Store, Token};
use idempotency_test_support::history::{OpenCall, Outcome};
use idempotency_test_support::random::Random;

use crate::log::{Class, Grant, Span};
use crate::owner::Owner;
use crate::scene::{Scene, answered};

const HOUR: Duration = Duration::from_secs(3_600);
/// How long a caller waits for others.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a caller relies on a watch alone.
const FALLBACK: Duration = Duration::from_millis(200);

/// One call after the other until the storm is over.
pub async fn calls<S: Store>(
    scene: Arc<Scene<S>>,
    number: usize,
    mut random: Random,
) -> anyhow::Result<()> {
    while !scene.is_over() {
        let key = scene.next_key(&mut random);
        let call = OpenCall::start(
            scene.log.of(key, |known| known.label.clone()),
            format!("caller {number}"),
        );
        let outcome = if random.chance(10) {
            looks(&scene, key).await?
        } else {
            calls_once(&scene, key, &mut random).await?
        };
        if let Some(outcome) = outcome {
            scene.log.of(key, |known| known.ended(call, outcome));
        }
    }
    Ok(())
}

/// Only reads.
async fn looks<S: Store>(scene: &Scene<S>, key: KeyHash) -> anyhow::Result<Option<Outcome>> {
    let (record, _) = answered(|| scene.store.read(key)).await?;
    Ok(Some(
        record.as_ref().and_then(result_of).unwrap_or_else(|| Outcome::Error("nothing".into())),
    ))
}

/// The result on a record, if there is one.
pub fn result_of(record: &Record) -> Option<Outcome> {
    match record.state {
        State::Completed => Some(Outcome::Value(record.body.to_vec())),
        State::Failed => Some(Outcome::StoredError(record.body.to_vec())),
        _ => None,
    }
}

/// What the caller gets; `None` if it dies before that.
async fn calls_once<S: Store>(
    scene: &Scene<S>,
    key: KeyHash,
    random: &mut Random,
) -> anyhow::Result<Option<Outcome>> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let claim = claim(scene, key, random);
        let (claimed, span) = send(scene, &claim, random.chance(15)).await?;
        let record = match claimed {
            ClaimOutcome::Granted(grant) => {
                let grant_of =
                    Grant { token: claim.token, span, taken_over: grant.taken_over.is_some() };
                return Owner::new(scene, claim, &grant, grant_of).works(random).await;
            }
            ClaimOutcome::Existing(record) => record,
            other => anyhow::bail!("an unknown answer: {other:?}"),
        };
        if let Some(result) = result_of(&record) {
            return Ok(Some(result));
        }
        if record.state == State::InDoubt && random.chance(50) {
            return Ok(Some(Outcome::Error("InDoubt".into())));
        }
        waits(scene, key).await?;
    }
    Ok(Some(Outcome::Error("InProgress".into())))
}

fn claim<S>(scene: &Scene<S>, key: KeyHash, random: &mut Random) -> Claim {
    let mut claim = Claim::new(key, Token::from_bits(random.token()), "storm".into());
    claim.policy = match scene.log.of(key, |known| known.class) {
        Class::Hold => CrashPolicy::Hold,
        Class::Mixed if random.chance(30) => CrashPolicy::Hold,
        Class::Retry | Class::Mixed => CrashPolicy::Retry,
    };
    claim.lease = scene.lease;
    claim.linger = HOUR;
    // So short that a purge comes by while the record lives.
    claim.ttl = scene.lease;
    claim
}

/// Sends a claim, or the same one twice at once. One that is not answered is sent again with its
/// token.
async fn send<S: Store>(
    scene: &Scene<S>,
    claim: &Claim,
    twice: bool,
) -> anyhow::Result<(ClaimOutcome, Span)> {
    let once = || answered(|| scene.store.claim(claim.clone()));
    if !twice {
        return once().await;
    }
    let (first, second) = tokio::join!(once(), once());
    let ((first, mut span), (second, other)) = (first?, second?);
    // Both are of one token: owning it once is owning it.
    span.answered = span.answered.max(other.answered);
    span.first_sent = span.first_sent.min(other.first_sent);
    Ok((if matches!(first, ClaimOutcome::Granted(_)) { first } else { second }, span))
}

/// Until the record changes, or for a while.
async fn waits<S: Store>(scene: &Scene<S>, key: KeyHash) -> anyhow::Result<()> {
    let (watch, _) = answered(|| scene.store.watch(key)).await?;
    let lease_left = watch.record.as_ref().map_or(Duration::ZERO, |record| {
        record.lease_until.saturating_duration_since(record.read_at)
    });
    if watch
        .record
        .as_ref()
        .is_some_and(|record| matches!(record.state, State::InProgress | State::InDoubt))
    {
        let limit = if lease_left.is_zero() { FALLBACK } else { lease_left.min(FALLBACK) };
        // At the end of the lease nothing changes, so there is nothing to wake the caller.
        let _ = tokio::time::timeout(limit, watch).await;
    }
    Ok(())
}
