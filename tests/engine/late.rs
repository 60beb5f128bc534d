//! Late owners that have no result: their call was decided meanwhile, and their body ends in an
//! error that may hide an effect, or beside recorded steps.

use std::future::pending;
use std::time::Duration;

use idempotency::record::{Resolution, State};
use idempotency::store::{Operation, Remove, Store as _};
use idempotency::{Context, Error, ErrorAction, ErrorKind, OnConflict, OnCrash, Verdict};

use crate::faults::{Fault, Gate};
use crate::world::{LEASE, OPERATION, World, eventually, without_renewals};

/// What a body did that then fails: nothing on the record tells of it, or a step does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Held,
    Recorded,
}

impl Effect {
    async fn happen(self, world: &World) -> Result<String, Error> {
        match self {
            Self::Held => world.effect(1),
            Self::Recorded => Context::current().step("charge", || async { world.effect(1) }).await,
        }
    }

    /// The request that leaves the record to what follows.
    fn last_word(self, policy: OnCrash) -> Operation {
        match self {
            Self::Recorded if policy != OnCrash::Hold => Operation::Abandon,
            _ => Operation::Park,
        }
    }
}

const EFFECTS: [(Effect, OnCrash); 4] = [
    (Effect::Held, OnCrash::Hold),
    (Effect::Held, OnCrash::Retry),
    (Effect::Recorded, OnCrash::Hold),
    (Effect::Recorded, OnCrash::Resume),
];

/// Where the next call runs.
const REPEATED: [(Effect, OnCrash); 3] = [
    (Effect::Held, OnCrash::Retry),
    (Effect::Held, OnCrash::Resume),
    (Effect::Recorded, OnCrash::Resume),
];

/// A call that has its effect and fails after `meanwhile`.
async fn fails(
    world: &World,
    (effect, policy): (Effect, OnCrash),
    meanwhile: impl AsyncFnOnce(),
) -> anyhow::Result<String> {
    let unstored = if effect == Effect::Held { ErrorAction::Hold } else { ErrorAction::Release };
    let call = world.call(1).on_crash(policy).on_error(unstored);
    call.run(|| async {
        effect.happen(world).await?;
        meanwhile().await;
        Err(anyhow::anyhow!("the provider did not answer"))
    })
    .await
}

/// Another call that does the same and succeeds.
async fn succeeds(world: &World, (effect, policy): (Effect, OnCrash)) -> Result<String, Error> {
    world.call(1).on_crash(policy).run(|| effect.happen(world)).await
}

/// The first effect has happened, and is on the record if it gets there at all.
async fn begun(world: &World, effect: Effect) {
    eventually("the effect", async || {
        let record = world.record(1).await;
        let recorded = record.is_some_and(|record| record.checkpoints == 1);
        world.ledger.count() == 1 && (effect == Effect::Held || recorded)
    })
    .await;
}

/// The lease of a caller that cannot renew it is over.
fn stands_still(world: &World) {
    world.clock.advance(LEASE + Duration::from_millis(1));
}

fn is_cut_off(world: &World, requests: &[Operation], is_cut_off: bool) {
    for &request in requests {
        world.store.always(request, is_cut_off.then_some(Fault::LostRequest));
    }
}

#[track_caller]
fn is_own(error: &anyhow::Error) {
    assert_eq!(error.to_string(), "the provider did not answer");
}

/// Nobody has a result, and who makes the call again runs the body once more.
#[track_caller]
fn is_not_to_be_repeated(error: &anyhow::Error, case: (Effect, OnCrash)) {
    let Some(ours) = Error::find(error.as_ref()) else { panic!("{case:?}: {error}") };
    assert_eq!(ours.kind(), ErrorKind::Superseded, "{case:?}");
    assert!(!ours.is_retryable(), "{case:?}: {ours}");
    assert!(ours.to_string().contains("find out what it did"), "{case:?}: {ours}");
}

#[tokio::test]
async fn an_owner_that_fails_is_not_told_to_repeat_what_an_operator_believed_not_to_have_happened()
{
    for case in EFFECTS {
        let (world, gate) = (World::new(), Gate::new());
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let owner = fails(&world, case, || gate.wait());
        let operator = async {
            begun(&world, case.0).await;
            stands_still(&world);
            let record = world.engine.record(OPERATION, 1);
            let view = record.inspect().await.unwrap().unwrap();
            let answered = record.resolve(&view, Resolution::not_executed()).await;
            match case.0 {
                Effect::Held => answered.unwrap(),
                // The record says otherwise, and who does not believe it has to remove it.
                Effect::Recorded => {
                    assert_eq!(answered.unwrap_err().kind(), ErrorKind::Config, "{case:?}");
                    record.forget().await.unwrap();
                }
            }
            gate.open();
        };
        let (owner, ()) = tokio::join!(owner, operator);
        is_not_to_be_repeated(&owner.unwrap_err(), case);
        assert_eq!(world.engine.duplicates(), 1, "{case:?}");
        assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2", "{case:?}: nothing holds it");
    }
}

/// Its lease runs, and no renewal has told it.
#[tokio::test]
async fn an_owner_that_fails_is_told_that_its_record_was_taken_away() {
    for case in EFFECTS {
        let (world, gate) = (World::new(), Gate::new());
        let owner = fails(&world, case, || gate.wait());
        let remover = async {
            begun(&world, case.0).await;
            is_removed(&world).await;
            gate.open();
        };
        let (owner, ()) = tokio::join!(owner, remover);
        is_not_to_be_repeated(&owner.unwrap_err(), case);
        assert_eq!(world.engine.duplicates(), 1, "{case:?}");
    }
}

#[tokio::test]
async fn an_owner_that_fails_after_another_one_took_over_and_failed_is_not_told_to_repeat() {
    for case in REPEATED {
        let (here, gate) = (World::new(), Gate::new());
        let there = here.other_process();
        here.store.always(Operation::Renew, Some(Fault::LostRequest));
        let owner = fails(&here, case, || gate.wait());
        let other = async {
            begun(&here, case.0).await;
            stands_still(&here);
            // What it did itself is nothing, and what the first one did is as unknown as it was.
            let call = there.call(1).on_crash(case.1).on_error(ErrorAction::Release);
            call.run(|| async { Err::<String, _>(anyhow::anyhow!("busy")) }).await.unwrap_err();
            gate.open();
        };
        let (owner, ()) = tokio::join!(owner, other);
        is_not_to_be_repeated(&owner.unwrap_err(), case);
        assert_eq!(here.engine.duplicates(), 1, "{case:?}");
    }
}

/// A call that is made then waits for the other one, and repeats nothing.
#[tokio::test]
async fn an_owner_that_fails_while_another_one_is_at_work_says_so_itself() {
    for case in REPEATED {
        let (here, gate, finish) = (World::new(), Gate::new(), Gate::new());
        let there = here.other_process();
        here.store.always(Operation::Renew, Some(Fault::LostRequest));
        let owner = async {
            let result = fails(&here, case, || gate.wait()).await;
            finish.open();
            result
        };
        let other = async {
            begun(&here, case.0).await;
            stands_still(&here);
            let call = there.call(1).on_crash(case.1).run(|| async {
                let result = case.0.happen(&there).await;
                gate.open();
                finish.wait().await;
                result
            });
            call.await
        };
        let (owner, other) = tokio::join!(owner, other);
        is_own(&owner.unwrap_err());
        assert_eq!(here.engine.duplicates(), 1, "{case:?}");
        assert_eq!(succeeds(&here, case).await.unwrap(), other.unwrap(), "{case:?}");
    }
}

/// It is cut off shortly before its lease is over, and reaches the store again when another one has
/// answered.
#[tokio::test]
async fn an_owner_that_fails_in_an_outage_across_the_end_of_its_lease_returns_the_answer() {
    for case in REPEATED {
        let here = World::new();
        let there = here.other_process();
        here.store.always(Operation::Renew, Some(Fault::LostRequest));
        let last_word = case.0.last_word(case.1);
        let owner = fails(&here, case, async || {
            here.clock.advance(LEASE.saturating_sub(Duration::from_secs(1)));
            here.store.always(last_word, Some(Fault::LostRequest));
        });
        let other = async {
            eventually("the first try", async || here.store.requests(last_word) > 0).await;
            here.clock.advance(Duration::from_secs(2));
            succeeds(&there, case).await.unwrap();
            here.store.always(last_word, None);
            without_renewals(&here, pending::<()>()).await;
        };
        let owner = tokio::select! {
            owner = owner => owner,
            () = other => unreachable!("time passes for ever"),
        };
        let winner = succeeds(&there, case).await.unwrap();
        assert_eq!(owner.unwrap(), winner, "{case:?}");
        assert_eq!(here.engine.duplicates(), 1, "{case:?}");
        assert_eq!(here.ledger.count(), if case.0 == Effect::Held { 2 } else { 1 }, "{case:?}");
    }
}

/// The same of an error that says that nothing happened: its caller gets the answer of the owner
/// that took the call over during the outage.
#[tokio::test]
async fn an_owner_whose_release_is_cut_off_across_the_end_of_its_lease_returns_the_answer() {
    let case = (Effect::Held, OnCrash::Retry);
    let here = World::new();
    let there = here.other_process();
    is_cut_off(&here, &[Operation::Renew, Operation::Release], true);
    let owner = here.call(1).on_crash(OnCrash::Retry).run(|| async {
        here.effect(1)?;
        here.clock.advance(LEASE.saturating_sub(Duration::from_secs(1)));
        Err::<String, _>(anyhow::anyhow!("declined"))
    });
    let other = async {
        eventually("the first try", async || here.store.requests(Operation::Release) > 0).await;
        here.clock.advance(Duration::from_secs(2));
        succeeds(&there, case).await.unwrap();
        is_cut_off(&here, &[Operation::Release], false);
        without_renewals(&here, pending::<()>()).await;
    };
    let owner = tokio::select! {
        owner = owner => owner,
        () = other => unreachable!("time passes for ever"),
    };
    assert_eq!(owner.unwrap(), succeeds(&there, case).await.unwrap());
    assert_eq!((here.engine.duplicates(), here.ledger.count()), (1, 2));
}

/// The first try of the last word is applied, and its answer is lost: the owner of the record comes
/// after it. A renewal in between meets that owner.
#[tokio::test]
async fn an_owner_that_another_one_followed_after_its_last_word_is_no_duplicate() {
    for (on_error, last_word) in
        [(ErrorAction::Release, Operation::Release), (ErrorAction::Hold, Operation::Park)]
    {
        let here = World::new();
        let there = here.other_process();
        let asks = |world: &World| {
            let question = async |_| anyhow::Ok(Verdict::NotExecuted);
            world.call(1).settle(Duration::ZERO).on_crash_verify(question)
        };
        here.store.next(last_word, Fault::LostAnswer);
        let owner = asks(&here).on_error(on_error).run(|| async {
            here.effect(1)?;
            is_cut_off(&here, &[last_word], true);
            Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
        });
        let other = async {
            eventually("the first try", async || here.store.requests(last_word) > 0).await;
            asks(&there).run(|| async { anyhow::Ok(there.effect(1)?) }).await.unwrap();
            here.clock.advance(LEASE / 2);
            eventually("a renewal", async || here.store.requests(Operation::Renew) > 0).await;
            is_cut_off(&here, &[last_word], false);
            without_renewals(&here, pending::<()>()).await;
        };
        let owner = tokio::select! {
            owner = owner => owner,
            () = other => unreachable!("time passes for ever"),
        };
        is_own(&owner.unwrap_err());
        assert_eq!((here.engine.duplicates(), here.ledger.count()), (0, 2), "{on_error:?}");
    }
}

#[tokio::test]
async fn a_held_error_that_another_one_was_faster_than_is_a_duplicate_also_after_a_long_outage() {
    let case = (Effect::Held, OnCrash::Retry);
    let here = World::new();
    let there = here.other_process();
    is_cut_off(&here, &[Operation::Renew, Operation::Park], true);
    let owner = fails(&here, case, async || {});
    is_own(&without_renewals(&here, owner).await.unwrap_err());
    assert_eq!(here.engine.duplicates(), 0, "nobody knows yet");
    here.clock.advance(LEASE);
    assert_eq!(succeeds(&there, case).await.unwrap(), "receipt 1.2");
    is_cut_off(&here, &[Operation::Park], false);
    let reported = eventually("the report", async || here.engine.duplicates() == 1);
    without_renewals(&here, reported).await;
    assert_eq!(succeeds(&here, case).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_result_that_is_never_stored_is_a_duplicate_where_another_one_was_faster() {
    let case = (Effect::Held, OnCrash::Retry);
    let here = World::with(|builder| builder.background_commit(LEASE * 2));
    let there = here.other_process();
    is_cut_off(&here, &[Operation::Renew, Operation::Complete], true);
    let owner = without_renewals(&here, succeeds(&here, case)).await;
    assert_eq!(owner.unwrap_err().kind(), ErrorKind::NotStored);
    here.clock.advance(LEASE);
    assert_eq!(succeeds(&there, case).await.unwrap(), "receipt 1.2");
    let reported = eventually("the report", async || here.engine.duplicates() == 1);
    without_renewals(&here, reported).await;
    assert_eq!(here.store.requests(Operation::Abandon), 1);
}

#[tokio::test]
async fn an_owner_that_a_shutdown_gave_up_and_that_fails_returns_the_answer_of_the_next_process() {
    for case in REPEATED {
        let (here, gate) = (World::new(), Gate::new());
        let there = here.other_process();
        let owner = fails(&here, case, || gate.wait());
        let next = async {
            begun(&here, case.0).await;
            assert_eq!(here.engine.shutdown(Duration::ZERO).await.abandoned, 1);
            let result = succeeds(&there, case).await.unwrap();
            gate.open();
            result
        };
        let (owner, next) = tokio::join!(owner, next);
        assert_eq!(owner.unwrap(), next, "{case:?}");
        assert_eq!(here.engine.duplicates(), 1, "{case:?}");
    }
}

/// Its own end is `Decode`, which the others do not get.
#[tokio::test]
async fn an_owner_that_leaves_a_recorded_step_out_returns_the_answer_that_was_given_meanwhile() {
    for policy in [OnCrash::Resume, OnCrash::Retry] {
        let (world, gate) = (World::new(), Gate::new());
        let case = (Effect::Recorded, policy);
        is_own(&fails(&world, case, async || {}).await.unwrap_err());
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let owner = world.call(1).on_crash(policy).run(|| async {
            gate.wait().await;
            Ok::<_, Error>("without the step".to_owned())
        });
        let operator = async {
            world.record_is(1, |record| record.is_some_and(|record| record.attempts == 2)).await;
            stands_still(&world);
            let record = world.engine.record(OPERATION, 1);
            let view = record.inspect().await.unwrap().unwrap();
            record.resolve(&view, Resolution::completed("operator")).await.unwrap();
            gate.open();
        };
        let (owner, ()) = tokio::join!(owner, operator);
        assert_eq!(owner.unwrap(), "operator", "{policy:?}");
        assert_eq!(world.engine.duplicates(), 1, "{policy:?}");
        assert_eq!(world.record(1).await.unwrap().state, State::Completed, "{policy:?}");
    }
}

/// Another caller has only observed that its lease had expired. Nobody took anything over.
#[tokio::test]
async fn an_owner_whose_record_an_observer_put_in_doubt_is_no_duplicate() {
    let case = (Effect::Recorded, OnCrash::Resume);
    let (here, gate) = (World::new(), Gate::new());
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let owner = fails(&here, case, || gate.wait());
    let observer = async {
        begun(&here, case.0).await;
        stands_still(&here);
        let observed = there.call(1).on_crash(OnCrash::Hold).run(|| async { there.effect(1) });
        assert_eq!(observed.await.unwrap_err().kind(), ErrorKind::InDoubt);
        gate.open();
    };
    let (owner, ()) = tokio::join!(owner, observer);
    is_own(&owner.unwrap_err());
    assert_eq!(here.engine.duplicates(), 0);
    assert_eq!(here.record(1).await.unwrap().state, State::InDoubt);
}

/// The next call runs nothing before it knows, as after a doubt.
#[tokio::test]
async fn an_owner_that_fails_says_so_itself_where_the_next_call_verifies_first() {
    let (here, gate) = (World::new(), Gate::new());
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let verified = async |_: Context| Ok::<_, anyhow::Error>(Verdict::<String>::NotExecuted);
    let asks = |world: &World| world.call(1).settle(Duration::ZERO).on_crash_verify(verified);
    let owner = asks(&here).on_error(ErrorAction::Hold).run(|| async {
        here.effect(1)?;
        gate.wait().await;
        Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
    });
    let other = async {
        begun(&here, Effect::Held).await;
        stands_still(&here);
        let call = asks(&there).on_error(ErrorAction::Release);
        call.run(|| async { Err::<String, _>(anyhow::anyhow!("busy")) }).await.unwrap_err();
        gate.open();
    };
    let (owner, ()) = tokio::join!(owner, other);
    is_own(&owner.unwrap_err());
}

/// How the other owner has come by the call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Claimed {
    /// It took the call over, and the record keeps that.
    TakenOver,
    /// Its claim was a first one: the record had been removed.
    First,
}

const CLAIMED: [(Claimed, OnCrash); 5] = [
    (Claimed::TakenOver, OnCrash::Retry),
    (Claimed::TakenOver, OnCrash::Resume),
    (Claimed::First, OnCrash::Hold),
    (Claimed::First, OnCrash::Retry),
    (Claimed::First, OnCrash::Resume),
];

/// How the owner ends that was too late.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Result,
    HeldError,
}

/// What a late owner returns while another one is at work, and how often the body has run in the
/// end if the other one says that it has done nothing, and the call is made again.
async fn beside_another(end: End, claimed: Claimed, policy: OnCrash) -> (anyhow::Error, usize) {
    let (here, gate, finish) = (World::new(), Gate::new(), Gate::new());
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let owner = async {
        let call = here.call(1).on_crash(policy).on_conflict(OnConflict::Reject);
        let call = call.on_error(ErrorAction::Hold).run(|| async {
            let receipt = here.effect(1)?;
            gate.wait().await;
            match end {
                End::Result => Ok(receipt),
                End::HeldError => Err(anyhow::anyhow!("the provider did not answer")),
            }
        });
        let result = call.await;
        finish.open();
        result
    };
    let other = async {
        begun(&here, Effect::Held).await;
        stands_still(&here);
        if claimed == Claimed::First {
            is_removed(&here).await;
        }
        let call = there.call(1).on_crash(policy).on_error(ErrorAction::Release).run(|| async {
            gate.open();
            finish.wait().await;
            Err::<String, _>(anyhow::anyhow!("busy"))
        });
        call.await.unwrap_err();
    };
    let (owner, ()) = tokio::join!(owner, other);
    assert_eq!(here.engine.duplicates(), 1, "{end:?} {claimed:?} {policy:?}");
    let again = there.call(1).on_crash(policy).run(|| async { there.effect(1) }).await;
    assert!(again.is_ok(), "{end:?} {claimed:?} {policy:?}: {again:?}");
    (owner.unwrap_err(), here.ledger.count())
}

async fn is_removed(world: &World) {
    let record = world.record(1).await.unwrap();
    let mut remove = Remove::new(record.key, record.owner);
    remove.force = true;
    world.memory.remove(remove).await.unwrap();
}

/// A retry waits for the other one. If that one says that it has done nothing, the record still
/// knows of the owner here only where it was taken over, and its policy decides. Otherwise the
/// retry runs as the first call would, under every policy.
#[tokio::test]
async fn an_owner_is_told_to_repeat_beside_another_one_only_where_the_record_knows_of_both() {
    for (claimed, policy) in CLAIMED {
        let (error, effects) = beside_another(End::Result, claimed, policy).await;
        let case = (Effect::Held, policy);
        assert_eq!(effects, 2, "{claimed:?} {policy:?}");
        match claimed {
            Claimed::First => is_not_to_be_repeated(&error, case),
            Claimed::TakenOver => {
                let Some(ours) = Error::find(error.as_ref()) else { panic!("{case:?}: {error}") };
                assert_eq!((ours.kind(), ours.is_retryable()), (ErrorKind::Superseded, true));
            }
        }
    }
}

#[tokio::test]
async fn an_owner_that_fails_says_so_itself_beside_another_one_only_where_the_record_knows_of_both()
{
    for (claimed, policy) in CLAIMED {
        let (error, _) = beside_another(End::HeldError, claimed, policy).await;
        match claimed {
            Claimed::First => is_not_to_be_repeated(&error, (Effect::Held, policy)),
            Claimed::TakenOver => is_own(&error),
        }
    }
}

/// Nobody runs the call, and nobody will before the doubt is settled.
#[tokio::test]
async fn an_owner_whose_successor_does_not_know_is_not_told_to_repeat() {
    for end in [End::Result, End::HeldError] {
        for (claimed, policy) in CLAIMED {
            let (here, gate) = (World::new(), Gate::new());
            let there = here.other_process();
            here.store.always(Operation::Renew, Some(Fault::LostRequest));
            let owner = here.call(1).on_crash(policy).on_error(ErrorAction::Hold).run(|| async {
                let receipt = here.effect(1)?;
                gate.wait().await;
                match end {
                    End::Result => Ok(receipt),
                    End::HeldError => Err(anyhow::anyhow!("the provider did not answer")),
                }
            });
            let other = async {
                begun(&here, Effect::Held).await;
                stands_still(&here);
                if claimed == Claimed::First {
                    is_removed(&here).await;
                }
                let call = there.call(1).on_crash(policy).on_error(ErrorAction::Hold);
                call.run(|| async { Err::<String, _>(anyhow::anyhow!("timeout")) })
                    .await
                    .unwrap_err();
                gate.open();
            };
            let (owner, ()) = tokio::join!(owner, other);
            let error = owner.unwrap_err();
            match end {
                End::Result => {
                    is_not_to_be_repeated(&error, (Effect::Held, policy));
                    let text = error.to_string();
                    assert!(text.contains("outcome unknown") && !text.contains("retry"), "{text}");
                }
                End::HeldError => is_own(&error),
            }
            let again = there.call(1).on_crash(policy).run(|| async { there.effect(1) }).await;
            assert_eq!(again.unwrap_err().kind(), ErrorKind::InDoubt, "{claimed:?} {policy:?}");
            assert_eq!((here.ledger.count(), here.engine.duplicates()), (1, 1));
        }
    }
}
