//! Widths: nothing that the engine passes to a store is truncated, rounded or wrapped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use super::scene::{KEY, OPERATION, fingerprint, token};
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::{
    AdminOutcome, Checkpoint, Claim, ClaimOutcome, Commit, CrashPolicy, Park, Reason, Record,
    Remove, Resolve, ResolveAnswer, State, Store as _, StoreClock, Token, WriteOutcome,
};
use crate::testing::Subject;

const DAY: Duration = Duration::from_secs(86_400);
const OWNER: u128 = 0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978;

/// Returns copies of `value`, each with another one of its bytes changed.
fn neighbours(value: u128) -> impl Iterator<Item = u128> {
    (0..16).map(move |byte| value ^ (1 << (8 * byte)))
}

/// Returns a claim that does not expire while a case runs.
fn long<S: Subject>(scene: &Scene<S>, caller: u128) -> Claim {
    let mut claim = scene.claim_under(caller, CrashPolicy::Retry);
    (claim.lease, claim.linger) = (DAY, DAY);
    claim
}

/// A token is compared in all its 128 bits.
pub async fn an_owner_is_known_by_its_whole_token<S: Subject>(scene: Scene<S>) {
    let rule = "who has another token, in any of its bytes, is another owner";
    scene.is_timeless();
    scene.mine(&long(&scene, OWNER), rule).await;
    for neighbour in neighbours(OWNER) {
        let held = scene.held(&long(&scene, neighbour), rule).await;
        assert_eq!(held.owner, token(OWNER), "{rule}");
        scene.refuses_owner(neighbour, WriteOutcome::Lost, rule).await;
        let remove = Remove { force: true, ..Remove::new(KEY, token(neighbour)) };
        assert_eq!(scene.remove(remove).await, AdminOutcome::Conflict, "{rule}");
    }
    scene.mine(&long(&scene, OWNER), "T2: a repeated claim of the owner is granted").await;
    assert_eq!(
        scene.park(Park::own(KEY, token(OWNER), Reason::Error)).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    for neighbour in neighbours(OWNER) {
        let resolve = Resolve::new(KEY, token(neighbour), token(9), ResolveAnswer::NotExecuted);
        assert_eq!(scene.resolve(resolve).await, AdminOutcome::Conflict, "{rule}");
    }
    assert_eq!(
        scene.complete(scene.commit_by(OWNER, "own")).await,
        WriteOutcome::Applied,
        "{rule}"
    );
    assert_eq!(scene.record().await.owner, token(OWNER), "{rule}");
}

/// A fingerprint is compared in its version and all its bits.
pub async fn a_request_is_known_by_its_whole_fingerprint<S: Subject>(scene: Scene<S>) {
    let rule =
        "a claim with another fingerprint, in its version or any of its bytes, takes nothing over";
    scene.is_timeless();
    let bits = OWNER.rotate_left(5);
    let first = Claim { fingerprint: Some(fingerprint(1, bits)), ..long(&scene, 1) };
    scene.mine(&first, rule).await;
    assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Applied, "{rule}");
    let others = neighbours(bits)
        .map(|bits| fingerprint(1, bits))
        .chain([fingerprint(2, bits), fingerprint(255, bits)]);
    for other in others {
        let claim = Claim { fingerprint: Some(other), ..long(&scene, 2) };
        let held = scene.held(&claim, rule).await;
        assert_eq!(
            (held.owner, held.fingerprint),
            (token(1), first.fingerprint),
            "{rule} ({other:?})"
        );
    }
    scene
        .mine(
            &Claim { fingerprint: first.fingerprint, ..long(&scene, 2) },
            "T5: the same request takes over",
        )
        .await;
}

/// A key is compared in all its 256 bits.
pub async fn a_record_is_known_by_its_whole_key<S: Subject>(scene: Scene<S>) {
    let rule = "a key with another byte, anywhere, is another record";
    scene.is_timeless();
    let keys = (0..32).map(|at| {
        let mut bytes = *KEY.as_bytes();
        bytes[at] ^= 0x20;
        KeyHash::from_bytes(bytes)
    });
    let keys: Vec<_> = keys.chain([KEY]).collect();
    for (number, key) in (1..).zip(&keys) {
        scene.mine(&Claim { key: *key, ..long(&scene, number) }, rule).await;
    }
    for (number, key) in (1..).zip(&keys) {
        assert_eq!(
            scene.read_key(*key).await.map(|record| record.owner),
            Some(token(number)),
            "{rule}"
        );
    }
    let listed = scene.list(crate::store::Scan { limit: 100, ..Default::default() }, rule).await;
    let mut expected = keys;
    expected.sort_unstable();
    assert_eq!(listed.iter().map(|record| record.key).collect::<Vec<_>>(), expected, "{rule}");
}

/// Asserts that a duration is about as long as requested.
#[track_caller]
fn lasts(found: Duration, wanted: Duration, rule: &str) {
    let minute = Duration::from_secs(600);
    assert!(
        found + minute > wanted && found < wanted + minute,
        "{rule}: {found:?} instead of {wanted:?}"
    );
}

fn kept(record: &Record) -> Duration {
    record.expires.saturating_duration_since(record.read_at)
}

/// Leases of a month and results of more than a year are what users request.
pub async fn days_and_years_are_kept_as_they_are<S: Subject>(scene: Scene<S>) {
    let rule =
        "a lease, a linger, a ttl and a tombstone of 30 or 400 days are that long on the record";
    scene.is_timeless();
    for days in [20, 30, 49, 50, 60, 100, 400, 1_000] {
        let time = DAY * days;
        let mut claim = scene.claim_by(1);
        (claim.lease, claim.linger, claim.after_expiry, claim.ttl) = (time, time, time, time);
        scene.mine(&claim, rule).await;
        let record = scene.record().await;
        lasts(record.lease_until.saturating_duration_since(record.read_at), time, rule);
        lasts(kept(&record), time * 2, rule);
        lasts(record.linger, time, rule);
        lasts(record.after_expiry, time, rule);
        assert_eq!(scene.renew(1, time * 2).await, WriteOutcome::Applied, "{rule}");
        let record = scene.record().await;
        lasts(record.lease_until.saturating_duration_since(record.read_at), time * 2, rule);
        lasts(kept(&record), time * 3, rule);
        let commit = Commit::new(KEY, token(1), Bytes::from_static(b"kept"), time);
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
        lasts(kept(&scene.record().await), time, rule);
        let remove = Remove { tombstone: time, ..Remove::new(KEY, token(1)) };
        assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
        let record = scene.record().await;
        assert_eq!(record.state, State::Tombstone, "{rule}");
        lasts(kept(&record), time, rule);
        assert_eq!(scene.remove(Remove::new(KEY, token(1))).await, AdminOutcome::Applied, "{rule}");

        scene.mine(&claim, rule).await;
        let park = Park { ask_again_after: time, ..Park::own(KEY, token(1), Reason::Error) };
        assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
        let record = scene.record().await;
        lasts(record.lease_until.saturating_duration_since(record.read_at), time, rule);
        let answer = ResolveAnswer::Finished {
            state: State::Failed,
            body: Bytes::from_static(b"answer"),
            schema: 1,
            ttl: time,
        };
        assert_eq!(
            scene.resolve(Resolve::new(KEY, token(1), token(9), answer)).await,
            AdminOutcome::Applied,
            "{rule}"
        );
        lasts(kept(&scene.record().await), time, rule);
        assert_eq!(scene.remove(Remove::new(KEY, token(9))).await, AdminOutcome::Applied, "{rule}");
    }
}

/// Asserts that a time that was set to `wanted` between `begun` and the time of `record` ends at
/// `end`: exactly where the suite moves the store's clock, and not earlier elsewhere.
#[track_caller]
fn ends<S: Subject>(
    scene: &Scene<S>,
    (end, wanted): (Timestamp, Duration),
    begun: Timestamp,
    record: &Record,
    rule: &str,
) {
    let is_exact = scene.store().capabilities().clock == StoreClock::Injected;
    // A server may report the time that is left, and the time of its answer, each on its own.
    let rounding = if is_exact { Duration::ZERO } else { Duration::from_millis(250) };
    let least = begun + wanted;
    assert!(end + rounding >= least, "{rule}: {wanted:?} end at {end:?}, before {least:?}");
    let most = record.read_at + wanted;
    assert!(!is_exact || end <= most, "{rule}: {wanted:?} end at {end:?}, after {most:?}");
}

/// Times are kept in milliseconds. One that is rounded down ends early: another caller takes over
/// under a live owner, or a retry runs again.
pub async fn parts_of_a_second_are_kept<S: Subject>(scene: Scene<S>) {
    let rule = "a lease, a linger, a ttl, a tombstone and a rest are kept to the millisecond, and \
        never end early";
    scene.is_timeless();
    let [lease, linger, after_expiry, renewed, ttl, tombstone, rest, answered] =
        [61_987, 122_983, 183_979, 244_991, 305_977, 366_971, 427_967, 488_953]
            .map(Duration::from_millis);
    let claim = Claim { lease, linger, after_expiry, ttl, ..scene.claim_by(1) };
    let begun = scene.mine(&claim, rule).await.record.created;
    let record = scene.record().await;
    ends(&scene, (record.lease_until, lease), begun, &record, rule);
    ends(&scene, (record.expires, lease + linger), begun, &record, rule);
    assert_eq!((record.linger, record.after_expiry), (linger, after_expiry), "{rule}");

    let begun = record.read_at;
    assert_eq!(scene.renew(1, renewed).await, WriteOutcome::Applied, "{rule}");
    let record = scene.record().await;
    ends(&scene, (record.lease_until, renewed), begun, &record, rule);
    ends(&scene, (record.expires, renewed + linger), begun, &record, rule);

    let begun = record.read_at;
    let commit = Commit { ttl, ..scene.commit_by(1, "kept") };
    assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
    let record = scene.record().await;
    ends(&scene, (record.expires, ttl), begun, &record, rule);

    let begun = record.read_at;
    let remove = Remove { tombstone, ..Remove::new(KEY, token(1)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    let record = scene.record().await;
    ends(&scene, (record.expires, tombstone), begun, &record, rule);
    assert_eq!(scene.remove(Remove::new(KEY, token(1))).await, AdminOutcome::Applied, "{rule}");

    let begun = scene.mine(&claim, rule).await.record.created;
    let park = Park { ask_again_after: rest, ..Park::own(KEY, token(1), Reason::Error) };
    assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
    let record = scene.record().await;
    ends(&scene, (record.lease_until, rest), begun, &record, rule);

    let begun = record.read_at;
    let answer = ResolveAnswer::Finished {
        state: State::Completed,
        body: Bytes::from_static(b"answer"),
        schema: 1,
        ttl: answered,
    };
    let resolve = Resolve::new(KEY, token(1), token(9), answer);
    assert_eq!(scene.resolve(resolve).await, AdminOutcome::Applied, "{rule}");
    let record = scene.record().await;
    ends(&scene, (record.expires, answered), begun, &record, rule);
}

/// Numbers and names of the largest size.
pub async fn numbers_and_names_are_kept_as_they_are<S: Subject>(scene: Scene<S>) {
    let rule =
        "schema versions, attempts, checkpoints, names and trace contexts are kept as they are";
    scene.is_timeless();
    let names =
        [OPERATION.into(), "x".repeat(200), "оплата.списать/чек 🧾 'quoted' \\ \"too\"".to_owned()];
    for name in names {
        let trace: Arc<str> = format!("00-{}-01", "ab".repeat(29)).into();
        let claim = Claim {
            operation: name.as_str().into(),
            trace: Some(Arc::clone(&trace)),
            schema: u32::MAX,
            ..long(&scene, 1)
        };
        scene.mine(&claim, rule).await;
        let commit = Commit { schema: u32::MAX - 1, ..scene.commit_by(1, "body") };
        assert_eq!(scene.complete(commit).await, WriteOutcome::Applied, "{rule}");
        let record = scene.record().await;
        assert_eq!((&*record.operation, record.trace.as_ref()), (&*name, Some(&trace)), "{rule}");
        assert_eq!(record.schema, u32::MAX - 1, "{rule}");
        assert_eq!(scene.remove(Remove::new(KEY, token(1))).await, AdminOutcome::Applied, "{rule}");
    }
    scene.mine(&long(&scene, 1), rule).await;
    for caller in 2..=300_u32 {
        assert_eq!(
            scene.abandon(u128::from(caller) - 1, Reason::Dropped).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        let grant = scene.mine(&long(&scene, caller.into()), rule).await;
        assert_eq!(grant.record.attempts, caller, "{rule}");
    }
    for sequence in 0..300 {
        let checkpoint = Checkpoint::new(KEY, token(300), sequence, Bytes::from_static(b"step"));
        assert_eq!(
            scene.store().checkpoint(checkpoint).await.ok(),
            Some(WriteOutcome::Applied),
            "{rule} ({sequence})"
        );
    }
    let record = scene.record().await;
    assert_eq!((record.checkpoints, record.attempts), (300, 300), "{rule}");
}

/// Tokens at the ends of their range are valid.
pub async fn tokens_and_fingerprints_of_zeros_and_ones_are_as_good_as_others<S: Subject>(
    scene: Scene<S>,
) {
    let rule = "a token or a fingerprint of nothing but zeros or ones is one like any other";
    scene.is_timeless();
    for bits in [0, 1, u128::MAX, 1 << 127, u128::from(u64::MAX), 1 << 64] {
        let claim = Claim { fingerprint: Some(fingerprint(0, bits)), ..long(&scene, bits) };
        scene.mine(&claim, rule).await;
        let stranger = Claim { token: Token::from_bits(bits ^ 1), ..claim.clone() };
        assert!(matches!(scene.claim(&stranger).await, ClaimOutcome::Existing(_)), "{rule}");
        assert_eq!(
            scene.complete(scene.commit_by(bits, "own")).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        let record = scene.record().await;
        assert_eq!((record.owner, record.fingerprint), (claim.token, claim.fingerprint), "{rule}");
        assert_eq!(
            scene.remove(Remove::new(KEY, claim.token)).await,
            AdminOutcome::Applied,
            "{rule}"
        );
    }
}
