//! What a call has to say about a record with another fingerprint, one of another version, or none.

use idempotency::key::Fingerprint;
use idempotency::record::State;
use idempotency::store::{
    Claim, ClaimOutcome, Commit, Operation, Park, Reason, Store as _, Token, WriteOutcome,
};
use idempotency::{Call, Error, ErrorKind, OnConflict, OnCrash, Verdict, with_report};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

/// The calls of this operation in three releases: with nothing to compare, with the amount, with
/// the currency too.
fn releases() -> [fn(Call) -> Call; 3] {
    [|call| call, |call| call.fingerprint(&100), |call| call.fingerprint(&(100, "EUR"))]
}

async fn run(world: &World, key: u64, call: Call) -> Result<String, Error> {
    call.run(|| async { world.effect(key) }).await
}

/// With and without results that the process remembers.
fn worlds() -> Vec<World> {
    vec![
        World::new(),
        #[cfg(feature = "near-cache")]
        World::with(|builder| builder.near_cache(1_000_000)),
    ]
}

/// What another process has left: the claim of an owner that is gone.
async fn orphan(world: &World, key: u64, fingerprint: Option<Fingerprint>, policy: OnCrash) {
    let hash = world.engine.record(OPERATION, key).hash().unwrap();
    let mut claim = Claim::new(hash, Token::from_bits(u128::from(key)), OPERATION.into());
    claim.fingerprint = fingerprint;
    claim.policy = match policy {
        OnCrash::Retry => idempotency::store::CrashPolicy::Retry,
        _ => idempotency::store::CrashPolicy::Verify,
    };
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
}

#[tokio::test]
async fn a_call_with_a_fingerprint_and_one_without_are_two_requests() {
    for world in worlds() {
        let mut key = 0;
        for (first, made) in releases().into_iter().enumerate() {
            for (second, retried) in releases().into_iter().enumerate() {
                key += 1;
                let before = world.ledger.count();
                let receipt = run(&world, key, made(world.call(key))).await.unwrap();
                let again = run(&world, key, retried(world.call(key))).await;
                if first == second {
                    assert_eq!(again.unwrap(), receipt);
                } else {
                    assert_eq!(again.unwrap_err().kind(), ErrorKind::Mismatch, "{first} {second}");
                }
                assert_eq!(world.ledger.count(), before + 1);
            }
        }
    }
}

#[tokio::test]
async fn fingerprints_of_two_versions_are_two_requests() {
    let world = World::new();
    let own = Fingerprint::of(&100).unwrap();
    let of_others = [Fingerprint { version: 2, ..own }, Fingerprint { version: 0, bits: 0 }];
    for (key, other) in (1..).zip(of_others) {
        orphan(&world, key, Some(other), OnCrash::Retry).await;
        let hash = world.engine.record(OPERATION, key).hash().unwrap();
        let running = world
            .call(key)
            .fingerprint(&100)
            .on_conflict(OnConflict::Reject)
            .on_crash(OnCrash::Retry);
        assert_eq!(run(&world, key, running).await.unwrap_err().kind(), ErrorKind::Mismatch);
        world.clock.advance(LEASE * 2);
        let takeover = world.call(key).fingerprint(&100).on_crash(OnCrash::Retry);
        assert_eq!(run(&world, key, takeover).await.unwrap_err().kind(), ErrorKind::Mismatch);
        let commit =
            Commit::new(hash, Token::from_bits(u128::from(key)), "\"another\"".into(), DAY);
        assert_eq!(world.memory.complete(commit).await.unwrap(), WriteOutcome::Applied);
        assert_eq!(
            run(&world, key, world.call(key).fingerprint(&100)).await.unwrap_err().kind(),
            ErrorKind::Mismatch
        );
    }
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn callers_at_once_share_nothing_where_only_one_has_a_fingerprint() {
    let world = World::new();
    let mut leader = Box::pin(world.call(1).run(std::future::pending::<Result<String, Error>>));
    eventually("the leader to own", async || {
        assert!(poll_once(&mut leader).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    let other = run(&world, 1, world.call(1).fingerprint(&100)).await;
    assert_eq!((other.unwrap_err().kind(), world.ledger.count()), (ErrorKind::Mismatch, 0));
}

#[tokio::test]
async fn a_record_of_an_earlier_release_is_replayed_to_who_names_its_fingerprint() {
    let world = World::new();
    for (key, made) in (1..).zip([|call: Call| call, |call: Call| call.fingerprint(&100)]) {
        let receipt = run(&world, key, made(world.call(key))).await.unwrap();
        let retry = || world.call(key).fingerprint(&(100, "EUR"));
        let with_history = || retry().former_fingerprint(&100).formerly_without_fingerprint();
        assert_eq!(run(&world, key, retry()).await.unwrap_err().kind(), ErrorKind::Mismatch);
        assert_eq!(run(&world, key, with_history()).await.unwrap(), receipt);
    }
    // Another request has another former fingerprint too.
    let other = world.call(2).fingerprint(&(101, "EUR")).former_fingerprint(&101);
    assert_eq!(run(&world, 2, other).await.unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn a_call_of_an_earlier_release_is_taken_over_by_who_names_its_fingerprint() {
    let world = World::new();
    for (key, former) in [(1, None), (2, Some(Fingerprint::of(&100).unwrap()))] {
        orphan(&world, key, former, OnCrash::Retry).await;
        let retry = || world.call(key).fingerprint(&(100, "EUR")).on_crash(OnCrash::Retry);
        let with_history = || retry().former_fingerprint(&100).formerly_without_fingerprint();
        let at_once = with_history().on_conflict(OnConflict::Reject);
        assert_eq!(run(&world, key, at_once).await.unwrap_err().kind(), ErrorKind::InProgress);
        world.clock.advance(LEASE * 2);
        assert_eq!(run(&world, key, retry()).await.unwrap_err().kind(), ErrorKind::Mismatch);
        let (result, report) = with_report(run(&world, key, with_history())).await;
        let receipt = result.unwrap();
        assert_eq!(
            (report.unwrap().attempt, world.ledger.count()),
            (2, usize::try_from(key).unwrap())
        );
        // Its fingerprint stays, and whoever knows it gets the result.
        assert_eq!(world.record(key).await.unwrap().fingerprint, former);
        assert_eq!(run(&world, key, with_history()).await.unwrap(), receipt);
    }
}

#[tokio::test]
async fn a_call_of_an_earlier_release_is_asked_about_by_who_names_its_fingerprint() {
    let world = World::new();
    let former = Fingerprint::of(&100).unwrap();
    orphan(&world, 1, Some(former), OnCrash::Hold).await;
    let hash = world.engine.record(OPERATION, 1).hash().unwrap();
    let park = Park::own(hash, Token::from_bits(1), Reason::Error);
    assert_eq!(world.memory.park(park).await.unwrap(), WriteOutcome::Applied);
    let ask = |call: Call| {
        let question = async |_| Ok::<_, Error>(Verdict::Completed("from outside".to_owned()));
        let call = call.settle(std::time::Duration::ZERO).on_crash_verify(question);
        call.run(|| async { world.effect(1) })
    };
    let retry = || world.call(1).fingerprint(&(100, "EUR"));
    assert_eq!(ask(retry()).await.unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(ask(retry().former_fingerprint(&100)).await.unwrap(), "from outside");
    assert_eq!((world.record(1).await.unwrap().state, world.ledger.count()), (State::Completed, 0));
}

#[tokio::test]
async fn a_waiter_of_a_later_release_takes_over_when_the_lease_of_an_earlier_one_is_over() {
    let world = World::new();
    orphan(&world, 1, Some(Fingerprint::of(&100).unwrap()), OnCrash::Retry).await;
    let call =
        world.call(1).fingerprint(&(100, "EUR")).former_fingerprint(&100).on_crash(OnCrash::Retry);
    world.while_time_passes(run(&world, 1, call)).await.unwrap();
    assert_eq!((world.record(1).await.unwrap().attempts, world.ledger.count()), (2, 1));
}

#[tokio::test]
async fn an_owner_that_was_overtaken_by_an_earlier_release_returns_its_result() {
    let world = World::new();
    let call = world.call(1).fingerprint(&(100, "EUR")).former_fingerprint(&100);
    let result = call.run(|| async {
        let record = world.record(1).await.unwrap();
        world
            .memory
            .release(idempotency::store::Release::new(record.key, record.owner))
            .await
            .unwrap();
        orphan(&world, 1, Some(Fingerprint::of(&100).unwrap()), OnCrash::Retry).await;
        let commit = Commit::new(record.key, Token::from_bits(1), "\"the winner's\"".into(), DAY);
        world.memory.complete(commit).await.unwrap();
        world.effect(1)
    });
    assert_eq!(result.await.unwrap(), "the winner's");
}

#[tokio::test]
async fn a_former_fingerprint_that_cannot_be_computed_is_refused() {
    let world = World::new();
    for call in [
        world.call(1).former_fingerprint(&f64::NAN).fingerprint(&1),
        world.call(1).fingerprint(&1).former_fingerprint(&f64::NAN).former_fingerprint(&1),
    ] {
        assert_eq!(run(&world, 1, call).await.unwrap_err().kind(), ErrorKind::Encode);
    }
    assert_eq!(world.ledger.count(), 0);
}

/// Whoever repeats its claim for a record that an earlier release left behind does not make such a
/// record.
#[tokio::test]
async fn a_call_that_finds_its_former_record_gone_makes_one_of_its_own() {
    let world = World::new();
    for (key, former) in [(1, None), (2, Some(Fingerprint::of(&100).unwrap()))] {
        orphan(&world, key, former, OnCrash::Retry).await;
        world.clock.advance(LEASE * 2);
        let made = |currency| {
            let call = world.call(key).fingerprint(&(100, currency)).on_crash(OnCrash::Retry);
            call.former_fingerprint(&100).formerly_without_fingerprint()
        };
        let gate = Gate::new();
        world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
        let mut first = Box::pin(run(&world, key, made("EUR")));
        let claims = world.store.requests(Operation::Claim);
        eventually("the record to be found", async || {
            assert!(poll_once(&mut first).is_pending());
            world.store.requests(Operation::Claim) > claims
        })
        .await;
        world.engine.record(OPERATION, key).forget().await.unwrap();
        gate.open();
        let receipt = first.await.unwrap();
        assert_eq!(
            world.record(key).await.unwrap().fingerprint,
            Fingerprint::of(&(100, "EUR")).ok()
        );
        assert_eq!(
            run(&world, key, made("USD")).await.unwrap_err().kind(),
            ErrorKind::Mismatch,
            "another request"
        );
        assert_eq!(run(&world, key, made("EUR")).await.unwrap(), receipt);
    }
}

#[tokio::test]
async fn a_store_that_takes_no_release_of_a_claim_for_a_former_record_keeps_no_caller_for_its_lease()
 {
    const LONG: std::time::Duration = std::time::Duration::from_secs(3600);
    let (world, gate) = (World::new(), Gate::new());
    orphan(&world, 1, Fingerprint::of(&1).ok(), OnCrash::Retry).await;
    world.clock.advance(LEASE * 2);
    let call = world.call(1).fingerprint(&2).former_fingerprint(&1).on_crash(OnCrash::Retry);
    let call = call.lease(LONG).on_conflict(OnConflict::Reject);
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(run(&world, 1, call));
    eventually("the claim with the own fingerprint", async || {
        assert!(poll_once(&mut call).is_pending());
        world.store.requests(Operation::Claim) == 1
    })
    .await;
    world.engine.record(OPERATION, 1).forget().await.unwrap();
    world.store.always(
        Operation::Release,
        Some(Fault::Refused(idempotency::store::StoreErrorKind::Unavailable)),
    );
    let start = world.clock_now();
    gate.open();
    assert_eq!(world.while_time_passes(call).await.unwrap_err().kind(), ErrorKind::InProgress);
    let took = world.clock_now().saturating_sub(start);
    assert!(took < LEASE, "about one claim_timeout, not {took:?}");
    assert_eq!(world.ledger.count(), 0);
}
