//! Two handles on the same records: each sees the writes of the other, and concurrent operations
//! have the same effect as in one order or the other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::Scene;
use super::scene::{KEY, OPERATION, answered, numbered, token};
use super::watches::is_woken;
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::{
    Abandon, Checkpoint, Claim, ClaimOutcome, Commit, CrashPolicy, Park, Reason, Record, Release,
    Remove, Renewal, Resolve, ResolveAnswer, State, Store, WriteOutcome, transition,
};
use crate::testing::{ClockJump, Subject};

const HOUR: Duration = Duration::from_secs(3_600);

fn claim(key: KeyHash, caller: u128, policy: CrashPolicy) -> Claim {
    let mut claim = Claim::new(key, token(caller), OPERATION.into());
    (claim.policy, claim.lease, claim.linger, claim.ttl) = (policy, HOUR, HOUR, HOUR);
    // Of different lengths, in no order.
    let length = usize::try_from(caller * 5 % 7).unwrap_or_default();
    claim.holder = format!("{}/{caller}", "h".repeat(length)).into();
    claim.trace = (caller != 2).then(|| format!("00-{caller}-01").into());
    claim
}

/// One request about a record. Callers 1 to 3 may own it, and only 1 writes before it knows so; 4
/// is a stranger, and 9 an operator.
#[derive(Clone, Copy, Debug)]
enum Request {
    Claim(u128),
    ClaimUnderHold(u128),
    Complete(u128),
    Release(u128),
    Abandon(u128),
    Park(u128),
    ParkOrphan,
    Checkpoint(u32),
    Renew(u128),
    Fence(u128),
    ResolveCompleted,
    ResolveNotExecuted,
    Remove,
    RemoveByForce,
}

const REQUESTS: [Request; 17] = [
    Request::Claim(1),
    Request::Claim(2),
    Request::Claim(3),
    Request::ClaimUnderHold(2),
    Request::Complete(1),
    Request::Complete(4),
    Request::Release(1),
    Request::Abandon(1),
    Request::Park(1),
    Request::ParkOrphan,
    Request::Checkpoint(1),
    Request::Renew(1),
    Request::Fence(1),
    Request::ResolveCompleted,
    Request::ResolveNotExecuted,
    Request::Remove,
    Request::RemoveByForce,
];

/// The response to a request, without the parts that depend on the moment.
#[derive(Clone, Debug, PartialEq)]
struct Answer(String);

fn answer(answer: impl fmt::Debug) -> Answer {
    Answer(format!("{answer:?}"))
}

fn of_claim(claimed: ClaimOutcome) -> Answer {
    match claimed {
        ClaimOutcome::Granted(grant) => {
            answer(("mine", grant.record.attempts, grant.taken_over, grant.record.body))
        }
        ClaimOutcome::Existing(mut record) => {
            // The owner's progress is not visible to other callers.
            if !record.state.is_answer() {
                record.body.clear();
            }
            answer(("held", Outline::of(&record)))
        }
    }
}

/// The content of a record, without the parts that depend on the moment.
#[derive(Clone, Debug, PartialEq)]
struct Outline {
    state: State,
    owner: u128,
    body: Bytes,
    attempts: u32,
    checkpoints: u32,
    reason: Option<Reason>,
    policy: CrashPolicy,
    holder: Arc<str>,
    trace: Option<Arc<str>>,
    is_given_up: bool,
}

impl Outline {
    fn of(record: &Record) -> Self {
        Self {
            state: record.state,
            owner: record.owner.bits(),
            body: record.body.clone(),
            attempts: record.attempts,
            checkpoints: record.checkpoints,
            reason: record.reason,
            policy: record.policy,
            holder: record.holder.clone(),
            trace: record.trace.clone(),
            is_given_up: record.state == State::InProgress && record.lease_until <= record.read_at,
        }
    }
}

impl Request {
    fn claim(self, key: KeyHash) -> Option<Claim> {
        match self {
            Self::Claim(caller) => Some(claim(key, caller, CrashPolicy::Resume)),
            Self::ClaimUnderHold(caller) => Some(claim(key, caller, CrashPolicy::Hold)),
            _ => None,
        }
    }

    fn resolve(self, key: KeyHash) -> Resolve {
        let completed = ResolveAnswer::Finished {
            state: State::Completed,
            body: Bytes::from_static(b"operator"),
            schema: 0,
            ttl: HOUR,
        };
        let is_completed = matches!(self, Self::ResolveCompleted);
        Resolve::new(
            key,
            token(1),
            token(9),
            if is_completed { completed } else { ResolveAnswer::NotExecuted },
        )
    }

    fn remove(self, key: KeyHash) -> Remove {
        Remove { force: matches!(self, Self::RemoveByForce), ..Remove::new(key, token(1)) }
    }

    fn checkpoint(key: KeyHash, sequence: u32) -> Checkpoint {
        Checkpoint::new(key, token(1), sequence, Bytes::from_static(b"second"))
    }

    fn commit(key: KeyHash, caller: u128) -> Commit {
        Commit::new(key, token(caller), Bytes::from(format!("result of {caller}")), HOUR)
    }

    /// Sends the request to the store.
    async fn send(self, store: &impl Store, key: KeyHash) -> Answer {
        if let Some(claim) = self.claim(key) {
            return of_claim(answered(|| store.claim(claim.clone())).await);
        }
        match self {
            Self::Claim(_) | Self::ClaimUnderHold(_) => unreachable!("a claim was sent"),
            Self::Complete(caller) => {
                answer(answered(|| store.complete(Self::commit(key, caller))).await)
            }
            Self::Release(caller) => {
                answer(answered(|| store.release(Release::new(key, token(caller)))).await)
            }
            Self::Abandon(caller) => answer(
                answered(|| store.abandon(Abandon::new(key, token(caller), Reason::Dropped))).await,
            ),
            Self::Park(caller) => {
                answer(answered(|| store.park(Park::own(key, token(caller), Reason::Error))).await)
            }
            Self::ParkOrphan => answer(answered(|| store.park(Park::orphan(key, token(1)))).await),
            Self::Checkpoint(sequence) => {
                answer(answered(|| store.checkpoint(Self::checkpoint(key, sequence))).await)
            }
            Self::Renew(caller) => {
                let renewal = Renewal::new(key, token(caller), HOUR);
                let mut renewed = WriteOutcome::Unanswered;
                // The other request may have locked the record.
                while renewed == WriteOutcome::Unanswered {
                    renewed = answered(|| store.renew(vec![renewal])).await[0];
                }
                answer(renewed)
            }
            Self::Fence(caller) => {
                answer(answered(|| store.fence(key, token(caller))).await.is_some())
            }
            Self::ResolveCompleted | Self::ResolveNotExecuted => {
                answer(answered(|| store.resolve(self.resolve(key))).await)
            }
            Self::Remove | Self::RemoveByForce => {
                answer(answered(|| store.remove(self.remove(key))).await)
            }
        }
    }

    /// Applies the request to `slot` as the protocol defines it, and returns the expected response.
    fn apply(self, slot: &mut Option<Record>, key: KeyHash, now: Timestamp) -> Answer {
        if let Some(claim) = self.claim(key) {
            return of_claim(transition::claim(slot, &claim, now));
        }
        match self {
            Self::Claim(_) | Self::ClaimUnderHold(_) => unreachable!("a claim was applied"),
            Self::Complete(caller) => {
                answer(transition::complete(slot, &Self::commit(key, caller), now))
            }
            Self::Release(caller) => {
                answer(transition::release(slot, &Release::new(key, token(caller)), now))
            }
            Self::Abandon(caller) => answer(transition::abandon(
                slot,
                &Abandon::new(key, token(caller), Reason::Dropped),
                now,
            )),
            Self::Park(caller) => {
                answer(transition::park(slot, &Park::own(key, token(caller), Reason::Error), now))
            }
            Self::ParkOrphan => answer(transition::park(slot, &Park::orphan(key, token(1)), now)),
            Self::Checkpoint(sequence) => {
                answer(transition::checkpoint(slot, &Self::checkpoint(key, sequence), now))
            }
            Self::Renew(caller) => {
                answer(transition::renew(slot, &Renewal::new(key, token(caller), HOUR), now))
            }
            Self::Fence(caller) => answer(transition::fence(slot, token(caller), now).is_some()),
            Self::ResolveCompleted | Self::ResolveNotExecuted => {
                answer(transition::resolve(slot, &self.resolve(key), now))
            }
            Self::Remove | Self::RemoveByForce => {
                answer(transition::remove(slot, &self.remove(key), now))
            }
        }
    }
}

/// Returns the expected responses and the remaining record if `first` comes first.
fn in_order(
    before: Option<&Record>,
    key: KeyHash,
    (first, second): (Request, Request),
    now: Timestamp,
) -> (Answer, Answer, Option<Outline>) {
    let mut slot = before.cloned();
    let first = first.apply(&mut slot, key, now);
    let second = second.apply(&mut slot, key, now);
    (first, second, slot.as_ref().map(Outline::of))
}

/// Runs each pair of requests concurrently, on a record of its own.
///
/// The store must serialize the two: responses and record must be those of one of the two orders.
async fn meet<S: Subject>(
    scene: &Scene<S>,
    state: &str,
    prepare: impl AsyncFn(&S::Store, KeyHash),
) {
    scene.is_timeless();
    let (one, other) = (scene.store(), &scene.second().await);
    let mut number = 0;
    for (at, first) in REQUESTS.iter().enumerate() {
        for second in &REQUESTS[at..] {
            // Each pair runs in both orders of sending: with a single one a store may be right by
            // chance.
            for round in 0..2 {
                number += 1;
                let key = numbered(number);
                prepare(one, key).await;
                let before = answered(|| one.read(key)).await;
                let (ours, theirs) = if round == 0 {
                    tokio::join!(first.send(one, key), second.send(other, key))
                } else {
                    let (theirs, ours) =
                        tokio::join!(second.send(one, key), first.send(other, key));
                    (ours, theirs)
                };
                let after = answered(|| other.read(key)).await;
                let now = after
                    .as_ref()
                    .or(before.as_ref())
                    .map_or(Timestamp::default(), |record| record.read_at);
                let found = (ours, theirs, after.as_ref().map(Outline::of));
                let in_one_order = in_order(before.as_ref(), key, (*first, *second), now);
                let (theirs, ours, left) = in_order(before.as_ref(), key, (*second, *first), now);
                let in_the_other = (ours, theirs, left);
                assert!(
                    found == in_one_order || found == in_the_other,
                    "two requests through two handles are as one after the other: {first:?} and {second:?} on {state}\n\
                     found:         {found:?}\nin this order: {in_one_order:?}\nin the other:  {in_the_other:?}"
                );
            }
        }
    }
}

async fn run(store: &impl Store, key: KeyHash) {
    let claimed = answered(|| store.claim(claim(key, 1, CrashPolicy::Resume))).await;
    assert!(matches!(claimed, ClaimOutcome::Granted(_)), "T1: a claim of no record is granted");
    let checkpoint = Checkpoint::new(key, token(1), 0, Bytes::from_static(b"first"));
    assert_eq!(
        answered(|| store.checkpoint(checkpoint.clone())).await,
        WriteOutcome::Applied,
        "T15"
    );
}

/// Two requests about no record.
pub async fn requests_that_meet_where_no_record_is_have_an_order<S: Subject>(scene: Scene<S>) {
    meet(&scene, "no record", async |_, _| {}).await;
}

/// Two requests about a record whose owner is running.
pub async fn requests_that_meet_on_a_running_record_have_an_order<S: Subject>(scene: Scene<S>) {
    meet(&scene, "a running record", async |store, key| run(store, key).await).await;
}

/// Two requests about a record that its owner has abandoned.
pub async fn requests_that_meet_on_an_abandoned_record_have_an_order<S: Subject>(scene: Scene<S>) {
    let prepare = async |store: &S::Store, key| {
        run(store, key).await;
        let abandon = Abandon::new(key, token(1), Reason::Dropped);
        assert_eq!(answered(|| store.abandon(abandon)).await, WriteOutcome::Applied, "T11");
    };
    meet(&scene, "an abandoned record", prepare).await;
}

/// Two requests about a record in doubt.
pub async fn requests_that_meet_on_a_doubt_have_an_order<S: Subject>(scene: Scene<S>) {
    let prepare = async |store: &S::Store, key| {
        run(store, key).await;
        let park = Park::own(key, token(1), Reason::Error);
        assert_eq!(answered(|| store.park(park)).await, WriteOutcome::Applied, "T6b");
    };
    meet(&scene, "a record in doubt", prepare).await;
}

/// Two requests about a result.
pub async fn requests_that_meet_on_a_result_have_an_order<S: Subject>(scene: Scene<S>) {
    let prepare = async |store: &S::Store, key| {
        run(store, key).await;
        assert_eq!(
            answered(|| store.complete(Request::commit(key, 1))).await,
            WriteOutcome::Applied,
            "T8"
        );
    };
    meet(&scene, "a result", prepare).await;
}

/// Two requests about a released record that keeps its attempts.
pub async fn requests_that_meet_on_a_released_record_have_an_order<S: Subject>(scene: Scene<S>) {
    let prepare = async |store: &S::Store, key| {
        run(store, key).await;
        let release = Release { keep_attempts: true, ..Release::new(key, token(1)) };
        assert_eq!(answered(|| store.release(release)).await, WriteOutcome::Applied, "T10");
    };
    meet(&scene, "a released record", prepare).await;
}

/// Returns pseudo-random numbers that are the same in every run (xorshift).
fn next(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap_or_default() % below
}

/// Arbitrary requests, one after the other, through any handle.
pub async fn a_walk_of_any_requests_follows_the_protocol<S: Subject>(scene: Scene<S>) {
    scene.is_timeless();
    let (one, other) = (scene.store(), &scene.second().await);
    for walk in 1..=40 {
        let (key, mut random, mut steps) =
            (numbered(walk), u64::from(walk) * 0x9e37_79b9, Vec::new());
        for step in 0..30 {
            let request = REQUESTS[next(&mut random, REQUESTS.len())];
            let request = if let Request::Checkpoint(_) = request {
                Request::Checkpoint(step % 3)
            } else {
                request
            };
            let mut expected = answered(|| one.read(key)).await;
            let now = expected.as_ref().map_or(Timestamp::default(), |record| record.read_at);
            let found = if next(&mut random, 2) == 0 {
                request.send(one, key).await
            } else {
                request.send(other, key).await
            };
            let answer = request.apply(&mut expected, key, now);
            steps.push(request);
            let left = answered(|| other.read(key)).await.as_ref().map(Outline::of);
            let expected = (answer, expected.as_ref().map(Outline::of));
            assert_eq!(
                (found, left),
                expected,
                "a request is answered as the protocol says, after {steps:?}"
            );
        }
    }
}

/// A read while an owner writes returns the record before the write, or the complete one after it.
pub async fn a_reader_sees_no_half_of_a_write<S: Subject>(scene: Scene<S>) {
    let rule = "a record that is read while it is written is the one before or the one after, with its own body";
    scene.is_timeless();
    let second = scene.second().await;
    let (half, result) = (Bytes::from(vec![b'c'; 100_000]), Bytes::from(vec![b'r'; 200_000]));
    for number in 0..20 {
        let key = numbered(number);
        answered(|| scene.store().claim(claim(key, 1, CrashPolicy::Resume))).await;
        let is_over = AtomicBool::new(false);
        let writing = async {
            let checkpoint = Checkpoint::new(key, token(1), 0, half.clone());
            assert_eq!(
                answered(|| scene.store().checkpoint(checkpoint.clone())).await,
                WriteOutcome::Applied,
                "{rule}"
            );
            let commit = Commit {
                schema: 5,
                body: result.clone(),
                ..Commit::new(key, token(1), Bytes::new(), HOUR)
            };
            assert_eq!(
                answered(|| scene.store().complete(commit.clone())).await,
                WriteOutcome::Applied,
                "{rule}"
            );
            is_over.store(true, Ordering::SeqCst);
        };
        let reading = async {
            // A store whose steps are always the same is read between each two of them in turn.
            for _ in 0..number {
                tokio::task::yield_now().await;
            }
            let mut furthest = 0;
            while !is_over.load(Ordering::SeqCst) {
                let record = answered(|| second.read(key)).await.expect(rule);
                let seen = match (record.state, record.checkpoints, record.schema) {
                    (State::InProgress, 0, 0) if record.body.is_empty() => 1,
                    (State::InProgress, 1, 0) if record.body == half => 2,
                    (State::Completed, _, 5) if record.body == result => 3,
                    found => panic!("{rule}: {found:?} with a body of {} bytes", record.body.len()),
                };
                assert!(seen >= furthest, "{rule}: and never an earlier one again");
                furthest = seen;
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(writing, reading);
    }
}

/// No handle answers from a stale cache.
pub async fn what_one_handle_wrote_the_other_sees<S: Subject>(scene: Scene<S>) {
    let rule = "what is answered through one handle is seen through every other from then on";
    scene.is_timeless();
    let (one, other) = (scene.store(), &scene.second().await);
    for number in 0..10 {
        let key = numbered(number);
        let see = async |what: &str, state: Option<State>| {
            for store in [one, other] {
                let seen = answered(|| store.read(key)).await.map(|record| record.state);
                assert_eq!(seen, state, "{rule}: {what}");
            }
        };
        see("nothing", None).await;
        answered(|| one.claim(claim(key, 1, CrashPolicy::Resume))).await;
        see("a claim", Some(State::InProgress)).await;
        assert_eq!(
            answered(|| other.park(Park::own(key, token(1), Reason::Error))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        see("a parked record", Some(State::InDoubt)).await;
        assert_eq!(
            answered(|| one.complete(Request::commit(key, 1))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        see("a result", Some(State::Completed)).await;
        let held = answered(|| other.claim(claim(key, 2, CrashPolicy::Resume))).await;
        assert!(
            matches!(held, ClaimOutcome::Existing(record) if record.state == State::Completed),
            "{rule}"
        );
        answered(|| other.remove(Remove::new(key, token(1)))).await;
        see("a removal", None).await;
        let granted = answered(|| one.claim(claim(key, 3, CrashPolicy::Resume))).await;
        assert!(matches!(granted, ClaimOutcome::Granted(_)), "{rule}");
        answered(|| other.release(Release::new(key, token(3)))).await;
        see("a release", None).await;
    }
}

/// A resource that checks fences is used by owners in all processes.
pub async fn fences_grow_over_handles<S: Subject>(scene: Scene<S>) {
    let rule = "the fence of a claim is larger than that of every earlier claim of the key, through any handle";
    scene.is_timeless();
    let handles = [scene.second().await, scene.second().await, scene.second().await];
    let mut last = None;
    for caller in 1..=30_u128 {
        let store = &handles[usize::try_from(caller).unwrap_or_default() % handles.len()];
        let another = &handles[usize::try_from(caller / 2).unwrap_or_default() % handles.len()];
        let granted = answered(|| store.claim(claim(KEY, caller, CrashPolicy::Resume))).await;
        assert!(matches!(granted, ClaimOutcome::Granted(_)), "{rule}");
        let fence = answered(|| another.fence(KEY, token(caller))).await;
        assert!(fence.is_some() && fence > last, "{rule}: {fence:?} after {last:?}");
        assert_eq!(
            answered(|| store.fence(KEY, token(caller))).await,
            fence,
            "{rule}: one figure for a claim"
        );
        last = fence;
        match caller % 3 {
            0 => drop(
                answered(|| another.abandon(Abandon::new(KEY, token(caller), Reason::Dropped)))
                    .await,
            ),
            1 => {
                answered(|| store.complete(Request::commit(KEY, caller))).await;
                answered(|| another.remove(Remove::new(KEY, token(caller)))).await;
            }
            _ => {
                answered(|| another.release(Release::new(KEY, token(caller)))).await;
                answered(|| store.remove(Remove::new(KEY, token(caller)))).await;
            }
        }
        // An injected clock does not move in between, and when it is set back, fences must not
        // follow.
        if caller == 15 {
            scene.jump(ClockJump::Back(HOUR));
        }
    }
}

/// The waiting caller is in another process than the owner.
pub async fn a_watch_is_woken_by_another_handle<S: Subject>(scene: Scene<S>) {
    let rule = "a watch is woken by what happens through another handle";
    let second = scene.second().await;
    for number in 0..3 {
        let key = numbered(number);
        answered(|| scene.store().claim(claim(key, 1, CrashPolicy::Resume))).await;
        let watch = answered(|| second.watch(key)).await;
        assert_eq!(
            watch.record.as_ref().map(|record| record.state),
            Some(State::InProgress),
            "{rule}"
        );
        assert_eq!(
            answered(|| scene.store().complete(Request::commit(key, 1))).await,
            WriteOutcome::Applied,
            "{rule}"
        );
        // A store without notifications polls, on its own clock.
        let passing = async {
            loop {
                scene.pass(1).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            woken = is_woken(watch) => assert!(woken, "{rule}"),
            () = passing => {}
        }
    }
}
