//! Origins: a record says in which namespace its call was made, which process holds it, and in
//! which trace. People rely on these texts when that process has died.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use super::scene::{KEY, OPERATION, key, token};
use crate::store::{
    Abandon, AdminOutcome, Checkpoint, Claim, CrashPolicy, Park, Reason, Record, Release, Remove,
    Resolve, ResolveAnswer, Scan, State, Store as _, WriteOutcome,
};
use crate::testing::Subject;

const DAY: Duration = Duration::from_secs(86_400);
/// The size of the longest namespace, holder and trace context.
const WIDTH: usize = 64;

/// What a record says about its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    namespace: Arc<str>,
    holder: Arc<str>,
    trace: Option<Arc<str>>,
}

impl Origin {
    fn new(namespace: &str, holder: &str, trace: Option<&str>) -> Self {
        Self { namespace: namespace.into(), holder: holder.into(), trace: trace.map(Arc::from) }
    }

    fn of(record: &Record) -> Self {
        let Record { namespace, holder, trace, .. } = record;
        Self { namespace: namespace.clone(), holder: holder.clone(), trace: trace.clone() }
    }
}

/// Returns a claim of this origin that does not expire while a case runs.
fn claim<S: Subject>(
    scene: &Scene<S>,
    caller: u128,
    policy: CrashPolicy,
    origin: &Origin,
) -> Claim {
    Claim {
        lease: DAY,
        linger: DAY,
        namespace: origin.namespace.clone(),
        holder: origin.holder.clone(),
        trace: origin.trace.clone(),
        ..scene.claim_under(caller, policy)
    }
}

/// Asserts that the record is of this origin, in whichever way it is read. `stranger` is a caller
/// whose claim is refused.
async fn is_of<S: Subject>(scene: &Scene<S>, origin: &Origin, stranger: u128, rule: &str) {
    let other = Origin::new("other", "other/9", Some("00-other-01"));
    let held = scene.held(&claim(scene, stranger, CrashPolicy::Hold, &other), rule).await;
    assert_eq!(Origin::of(&held), *origin, "{rule} (a claim that is held)");
    assert_eq!(Origin::of(&scene.record().await), *origin, "{rule} (a read)");
    let watch = scene.watch().await;
    assert_eq!(watch.record.as_ref().map(Origin::of), Some(origin.clone()), "{rule} (a watch)");
    let listed = scene.list(Scan { limit: 100, ..Scan::default() }, rule).await;
    let listed = listed.iter().find(|record| record.key == KEY);
    assert_eq!(listed.map(Origin::of), Some(origin.clone()), "{rule} (a list)");
}

/// A namespace, a holder and a trace context of every width are kept byte for byte, beside those of
/// other records.
pub async fn a_claim_is_kept_with_its_origin<S: Subject>(scene: Scene<S>) {
    let rule = "namespace, holder and trace context of up to 64 bytes are kept as they are";
    scene.is_timeless();
    let [ones, twos] = [("n", 1), ("ö", 2)].map(|(letter, size)| letter.repeat(WIDTH / size));
    let chairs = "🪑".repeat(WIDTH / 4);
    let mut last = ones.clone();
    last.replace_range(WIDTH - 1.., "m");
    let origins = [
        Origin::new("", "", None),
        Origin::new("shop", "shop-6c9f/1234", None),
        Origin::new(
            "default",
            "pod-7",
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ),
        Origin::new("a", "", Some("b")),
        Origin::new(&ones, &ones, Some(&ones)),
        Origin::new(&last, &last, Some(&last)),
        Origin::new(&ones, &twos, Some(&chairs)),
        Origin::new("x", " it's \\ \"one\" $1 ?2 ", Some("%_{}")),
    ];
    for (number, origin) in (1..).zip(&origins) {
        let claim = claim(&scene, 1, CrashPolicy::Hold, origin);
        let grant = scene.mine(&Claim { key: key(number), ..claim }, rule).await;
        assert_eq!(Origin::of(&grant.record), *origin, "{rule} (a claim that is granted)");
    }
    for (number, origin) in (1..).zip(&origins) {
        let record = scene.read_key(key(number)).await.expect(rule);
        assert_eq!(Origin::of(&record), *origin, "{rule}, beside those of other records");
    }
    for origin in &origins {
        scene.mine(&claim(&scene, 1, CrashPolicy::Hold, origin), rule).await;
        let again = scene.mine(&claim(&scene, 1, CrashPolicy::Hold, &origins[1]), rule).await;
        assert_eq!(Origin::of(&again.record), *origin, "T4: a repeated claim changes nothing");
        is_of(&scene, origin, 2, rule).await;
        assert_eq!(scene.renew(1, DAY * 2).await, WriteOutcome::Applied, "{rule}");
        assert_eq!(
            scene.park(Park::own(KEY, token(1), Reason::Error)).await,
            WriteOutcome::Applied
        );
        is_of(&scene, origin, 2, rule).await;
        assert_eq!(scene.remove(Remove::new(KEY, token(1))).await, AdminOutcome::Applied, "{rule}");
    }
}

/// T5, T5b: holder and trace context are those of the new owner, whatever their lengths and that of
/// the checkpoint. Namespace and operation belong to the key.
pub async fn a_takeover_replaces_holder_and_trace<S: Subject>(scene: Scene<S>) {
    let rule =
        "T5: a takeover writes its holder and trace context, and leaves namespace and operation";
    scene.is_timeless();
    let (long, longer) = ("h".repeat(WIDTH / 2), "ö".repeat(WIDTH / 2));
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let owners = [
        Origin::new("shop", "shop-6c9f/1", Some("00-first-01")),
        Origin::new("shop", "a/1", None),
        Origin::new("shop", &longer, Some(traceparent)),
        Origin::new("shop", "", None),
        Origin::new("shop", &long, Some("00-trace-01")),
        Origin::new("shop", "a/1", Some(traceparent)),
        Origin::new("shop", "b/2", Some(traceparent)),
    ];
    for size in [0, 10, 9_000, 1 << 20] {
        let body = Bytes::from(vec![b'c'; size]);
        let rule = format!("{rule} (a checkpoint of {size} bytes)");
        scene.mine(&claim(&scene, 1, CrashPolicy::Verify, &owners[0]), &rule).await;
        if size > 0 {
            let checkpoint = Checkpoint::new(KEY, token(1), 0, body.clone());
            let written = scene.store().checkpoint(checkpoint).await.ok();
            assert_eq!(written, Some(WriteOutcome::Applied), "{rule}");
        }
        for ((last, caller), owner) in (1..).zip(2..).zip(&owners[1..]) {
            // Every other one takes over from a doubt.
            if caller % 2 == 0 {
                let abandon = Abandon::new(KEY, token(last), Reason::Dropped);
                assert_eq!(scene.store().abandon(abandon).await.ok(), Some(WriteOutcome::Applied));
            } else {
                let park = Park::own(KEY, token(last), Reason::Error);
                assert_eq!(scene.park(park).await, WriteOutcome::Applied, "{rule}");
            }
            let taker = Claim {
                namespace: "another".into(),
                operation: "another.operation".into(),
                ..claim(&scene, caller, CrashPolicy::Verify, owner)
            };
            let grant = scene.mine(&taker, &rule).await;
            assert!(grant.taken_over.is_some(), "{rule}");
            assert_eq!(Origin::of(&grant.record), *owner, "{rule} (a claim that is granted)");
            assert!(grant.record.body == body, "{rule}: the checkpoint is kept");
            is_of(&scene, owner, 99, &rule).await;
            let record = scene.record().await;
            assert_eq!(&*record.operation, OPERATION, "{rule}");
            assert!(record.body == body, "{rule}: the checkpoint is kept");
        }
        // What comes after the texts of several owners is written as before.
        let (last, owner) = (u128::try_from(owners.len()).expect(&rule), &owners[owners.len() - 1]);
        let larger = Bytes::from(vec![b'd'; 20_000]);
        let sequence = u32::from(size > 0);
        let checkpoint = Checkpoint::new(KEY, token(last), sequence, larger.clone());
        let written = scene.store().checkpoint(checkpoint).await.ok();
        assert_eq!(written, Some(WriteOutcome::Applied), "{rule}");
        is_of(&scene, owner, 99, &rule).await;
        assert!(scene.record().await.body == larger, "{rule}");
        assert_eq!(
            scene.complete(scene.commit_by(last, "done")).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        is_of(&scene, owner, 99, &rule).await;
        assert_eq!(&scene.record().await.body[..], b"done", "{rule}");
        assert_eq!(
            scene.remove(Remove::new(KEY, token(last))).await,
            AdminOutcome::Applied,
            "{rule}"
        );
    }
}

/// A result keeps the process that produced it, and whatever else happens to a record leaves the
/// last owner's.
pub async fn a_record_keeps_the_origin_of_its_last_owner<S: Subject>(scene: Scene<S>) {
    let rule = "a result, an operator's answer, a released record and a tombstone keep the holder of the last owner";
    scene.is_timeless();
    let first = Origin::new("shop", "shop-6c9f/1", Some("00-first-01"));
    let second = Origin::new("shop", "shop-77d2/20", Some("00-second-01"));
    let taken_over = async || {
        scene.mine(&claim(&scene, 1, CrashPolicy::Retry, &first), rule).await;
        assert_eq!(scene.abandon(1, Reason::Dropped).await, WriteOutcome::Applied, "{rule}");
        scene.mine(&claim(&scene, 2, CrashPolicy::Retry, &second), rule).await;
    };
    taken_over().await;
    scene.refuses_owner(1, WriteOutcome::Lost, rule).await;
    is_of(&scene, &second, 3, rule).await;
    assert_eq!(scene.complete(scene.commit_by(2, "result")).await, WriteOutcome::Applied, "{rule}");
    is_of(&scene, &second, 3, "a result keeps the process that produced it").await;
    let remove = Remove { tombstone: DAY, ..Remove::new(KEY, token(2)) };
    assert_eq!(scene.remove(remove).await, AdminOutcome::Applied, "{rule}");
    assert_eq!(scene.record().await.state, State::Tombstone, "{rule}");
    is_of(&scene, &second, 3, rule).await;
    assert_eq!(scene.remove(Remove::new(KEY, token(2))).await, AdminOutcome::Applied, "{rule}");

    taken_over().await;
    assert_eq!(scene.park(Park::own(KEY, token(2), Reason::Error)).await, WriteOutcome::Applied);
    let answer = ResolveAnswer::Finished {
        state: State::Completed,
        body: Bytes::from_static(b"answer"),
        schema: 1,
        ttl: DAY,
    };
    let resolve = Resolve::new(KEY, token(2), token(9), answer);
    assert_eq!(scene.resolve(resolve).await, AdminOutcome::Applied, "{rule}");
    is_of(&scene, &second, 3, rule).await;
    assert_eq!(scene.remove(Remove::new(KEY, token(9))).await, AdminOutcome::Applied, "{rule}");

    scene.mine(&claim(&scene, 1, CrashPolicy::Retry, &first), rule).await;
    let release = Release { keep_attempts: true, ..Release::new(KEY, token(1)) };
    assert_eq!(scene.release(release).await, WriteOutcome::Applied, "{rule}");
    assert_eq!(Origin::of(&scene.record().await), first, "{rule}");
    let grant = scene.mine(&claim(&scene, 2, CrashPolicy::Retry, &second), rule).await;
    assert_eq!(
        Origin::of(&grant.record),
        second,
        "T1: a claim of a released record writes its own"
    );
    is_of(&scene, &second, 3, rule).await;
}
