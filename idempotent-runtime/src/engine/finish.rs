//! The end of a body that returned: its result is stored, its claim is released, or its record is put
//! in doubt. A body that is dropped or panics ends in the `Drop` of its owner.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::owner::Owner;
use super::request::CheckedCall;
use super::retry::Budget;
use super::settle::{Cause, Left, Settlement, Steps, settle};
use super::unknown_outcome::{close_steps, leave, put_in_doubt};
use super::{overtaken, owed};
use crate::encoding::NotEncodable;
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, What};
use crate::outcome::{Answer, Ending};
use crate::store::{Adoption, Commit, Reason, Record, Release, State, StoreError, WriteOutcome};

/// The result that the caller gets.
pub(crate) enum CallerGets {
    /// Its own result.
    Own,
    /// The result of another owner, or an error.
    Instead(Answer),
}

impl CallerGets {
    pub(super) fn refused(error: Error) -> Self {
        Self::Instead(Answer::Refused(error))
    }

    /// Returns the record of the owner whose result it is.
    pub(super) fn winner(&self) -> Option<Arc<Record>> {
        match self {
            Self::Instead(Answer::Stored(stored)) => Some(stored.record.clone()),
            _ => None,
        }
    }
}

pub(super) async fn finish(mut owner: Box<Owner>, ending: Ending) -> CallerGets {
    // A shutdown waits for the lease, which is forgotten before the last word of some ends is
    // written. Without this, it would return in between, and the process could end.
    let _busy = owner.call.engine.keeper.busy();
    let cause = match cause_of(&ending) {
        // The shutdown has left the record to the next call, which asks at once.
        Cause::Unanswered(_) if owner.lease.is_shut_down() => Cause::Cut(Reason::ShutDown),
        cause => cause,
    };
    match cause {
        Cause::NotBegun => owner.has_run = false,
        // From here on, a shutdown puts the record in doubt too, whatever the policy.
        Cause::Held => owner.lease.hold(),
        _ => {}
    }
    // Before the first await: a lease that ends while this waits for steps had not ended when the
    // body did.
    let was_lost = owner.lease.is_lost();
    let steps = owner.what_steps_say(cause).await;
    let may_be_taken_over = owner.lease.may_be_taken_over();
    let settlement = settle(owner.progress(), cause, may_be_taken_over, steps);
    match (settlement, ending) {
        (Settlement::Commit, Ending::Answer { state, body, ttl }) => {
            store_answer(owner, state, body, ttl).await
        }
        (Settlement::Commit, Ending::Reported { state, body, ttl, .. }) => {
            store_answer(owner, state, Ok(body), ttl).await
        }
        (Settlement::AskAgain(reason), Ending::Unknown { ask_again_after, .. }) => {
            let written = owner.park(reason, ask_again_after).await;
            if let Err(error) = &written {
                tracing::warn!(operation = %owner.call.operation, key = %owner.call.key, %error, %reason,
                    "a record could not be marked as in doubt; its policy applies when the lease \
                     expires");
            }
            let mut gets = CallerGets::Own;
            // Another party has decided the call, and may have an answer for this caller too.
            if written.is_ok_and(|written| !written.is_done()) {
                let late = overtaken::without_result(&mut owner).await.caller_gets;
                if matches!(late, CallerGets::Instead(Answer::Stored(_))) {
                    gets = late;
                }
            }
            conclude_as(owner, gets, Outcome::Held)
        }
        (Settlement::Hold, _) => match owner.park(Reason::Error, Duration::ZERO).await {
            Ok(written) => conclude_unknown(owner, CallerGets::Own, was_lost, Some(written)).await,
            Err(error) => not_held(owner, &error),
        },
        (Settlement::Release, ending) => {
            let mut release = owner.own_release();
            release.keep_attempts &= !matches!(ending, Ending::Dismiss);
            let written = owner.release(release).await;
            conclude_released(owner, was_lost, written).await
        }
        (Settlement::ReleaseUnused, _) => {
            let unused = Release::unused(owner.lease.key, owner.lease.token);
            let written = owner.release(unused).await;
            conclude_released(owner, was_lost, written).await
        }
        (Settlement::Leave(reason, left), ending) => {
            let written = owner.leave(reason, left).await;
            let is_reported = matches!(ending, Ending::Reported { .. });
            conclude_left(owner, (steps, left), is_reported, was_lost, written).await
        }
        // An ending and its cause agree, so this is not reached. It would lose a result.
        (Settlement::Commit | Settlement::AskAgain(_), _) => {
            let written = owner.leave(Reason::NotStored, Left::InDoubt).await;
            conclude_unknown(owner, CallerGets::Own, was_lost, written).await
        }
    }
}

fn cause_of(ending: &Ending) -> Cause {
    match ending {
        Ending::Answer { state: State::Failed, .. }
        | Ending::Reported { state: State::Failed, unless_refused: true, .. } => Cause::StoredError,
        Ending::Answer { .. } | Ending::Reported { .. } => Cause::Answered,
        Ending::Release | Ending::Dismiss => Cause::Failed,
        Ending::NotBegun => Cause::NotBegun,
        Ending::Hold => Cause::Held,
        Ending::GiveUp => Cause::GivenUp,
        Ending::Unknown { reason, .. } => Cause::Unanswered(*reason),
    }
}

/// For a failure that is not the result of its call.
const CUT_SHORT: &str =
    "the body was refused a step and failed after that, so its failure is not the result";
const CONTINUE: &str =
    "retry with the same key: the next attempt continues from the recorded steps";
const LOOK: &str = "find out what it did, then answer with `record(…).resolve(…)`";

/// Ends a body whose record was left to the next call, or in doubt.
async fn conclude_left(
    owner: Box<Owner>,
    (steps, left): (Steps, Left),
    is_reported: bool,
    was_lost: bool,
    written: Option<WriteOutcome>,
) -> CallerGets {
    let refused = match steps {
        Steps::LeftOut => owner.journal.as_ref().and_then(|journal| journal.unasked()),
        Steps::CutShort if is_reported => {
            let (kind, advice) = match left {
                Left::ToTheNextCall => (ErrorKind::NotStored, CONTINUE),
                Left::InDoubt => (ErrorKind::InDoubt, LOOK),
            };
            Some(owner.call.refused(kind).with_text(CUT_SHORT, advice))
        }
        _ => None,
    };
    let own = refused.map_or(CallerGets::Own, CallerGets::refused);
    conclude_unknown(owner, own, was_lost, written).await
}

/// Stores the answer of the body.
async fn store_answer(
    mut owner: Box<Owner>,
    state: State,
    body: Result<Bytes, NotEncodable>,
    ttl: Option<Duration>,
) -> CallerGets {
    let (mut commit, marker) = owner.new_commit(state, body);
    let own = match (&marker, state) {
        (Some(_), _) => Outcome::Unkept,
        (None, State::Failed) => Outcome::Failed,
        (None, _) => Outcome::Executed,
    };
    commit.ttl = ttl.map_or(commit.ttl, |ttl| ttl.max(owner.call.least_ttl));
    let engine = owner.call.engine.clone();
    // Begun before the commit is sent: if the record is removed or corrected after that, the near
    // cache notices, and does not keep this result.
    let near_cache =
        engine.near_cache.as_ref().map(|near_cache| near_cache.begin_lookup(commit.key));
    let budget = Budget::of(engine.settings.commit_timeout);
    match owner.store(&commit, budget).await {
        Ok(written) if written.is_done() => {
            report_adoption(&owner.call, written);
            owner.release_late_claim();
            let record = Arc::new(owner.answered(&commit));
            if let Some(near_cache) = near_cache {
                near_cache.keep(&record, commit.ttl);
            }
            let gets = marker.map_or(CallerGets::Own, CallerGets::refused);
            conclude(&mut owner, gets, Some(record), own)
        }
        Ok(_) => {
            let late = overtaken::overtaken(&mut owner, &commit.body, true).await;
            let gets = late.caller_gets;
            let winner = gets.winner();
            conclude(&mut owner, gets, winner, own)
        }
        Err(error) => not_stored(owner, commit, error).await,
    }
}

/// Reports that a record had vanished, if the commit has found none.
fn report_adoption(call: &CheckedCall, written: WriteOutcome) {
    if written == WriteOutcome::Adopted {
        tracing::warn!(operation = %call.operation, key = %call.key,
            "the record had vanished and was written again: the store loses records");
        call.tell(What::Adopted);
    }
}

/// Ends a body whose error says that nothing happened. Its caller gets the error at once, unless
/// another caller has taken the call over meanwhile and provided the answer.
///
/// `was_lost`: the lease had expired before the store was first asked. It is checked again here,
/// because an outage may span its end. If it has not expired, `Lost` means that the first try was
/// applied and its answer was lost: the record's present owner came after it.
pub(super) async fn conclude_released(
    mut owner: Box<Owner>,
    was_lost: bool,
    written: Option<WriteOutcome>,
) -> CallerGets {
    let mut gets = CallerGets::Own;
    if (was_lost || owner.lease.is_lost()) && written == Some(WriteOutcome::Lost) {
        let late = overtaken::without_result(&mut owner).await.caller_gets;
        if matches!(late, CallerGets::Instead(Answer::Stored(_))) {
            gets = late;
        }
    }
    conclude_as(owner, gets, Outcome::Released)
}

/// Ends a body whose error may hide an effect, whose steps had effects, or whose outcome is not
/// known. Its caller gets `own`, which says so, as long as the record keeps the next call from
/// running all of it again as if nothing had happened.
pub(super) async fn conclude_unknown(
    mut owner: Box<Owner>,
    own: CallerGets,
    was_lost: bool,
    written: Option<WriteOutcome>,
) -> CallerGets {
    if !overtaken::is_overtaken(&owner, was_lost, written) {
        return conclude_as(owner, own, Outcome::Held);
    }
    let late = overtaken::without_result(&mut owner).await;
    let gets = if late.is_protected { own } else { late.caller_gets };
    conclude_as(owner, gets, Outcome::Held)
}

/// `own`: how the call ended if no other party decided it.
fn conclude_as(mut owner: Box<Owner>, gets: CallerGets, own: Outcome) -> CallerGets {
    let winner = gets.winner();
    conclude(&mut owner, gets, winner, own)
}

fn conclude(
    owner: &mut Owner,
    gets: CallerGets,
    record: Option<Arc<Record>>,
    own: Outcome,
) -> CallerGets {
    owner.report_end_as(&gets, own);
    owner.let_go(record);
    gets
}

impl Owner {
    /// Returns what the recorded steps say about an attempt that ended for `cause`. Waits for those
    /// that are being written, and sends them again, where that could change it or where nothing does
    /// so later.
    async fn what_steps_say(&self, cause: Cause) -> Steps {
        let Some(journal) = &self.journal else { return Steps::Silent };
        match cause {
            // First: such a body may have come to none of the steps that it would ask for.
            Cause::StoredError if journal.was_cut_short() => Steps::CutShort,
            Cause::Answered | Cause::StoredError if journal.unasked().is_some() => Steps::LeftOut,
            Cause::Failed => {
                let engine = &self.call.engine;
                let patience = engine.settings.commit_timeout;
                if self.grant.record.taken_over.is_some() {
                    // A release leaves this record to others, with what it says of its steps.
                    journal.flushed(engine, patience).await;
                } else {
                    journal.settled(engine, patience).await;
                }
                let says_more = self.grant.record.taken_over.is_some() && journal.owes();
                if says_more || journal.tells_of_effects() {
                    Steps::HadEffects
                } else {
                    Steps::Silent
                }
            }
            // It changes nothing, but a record in doubt accepts no checkpoint.
            Cause::Held => {
                self.steps_are_flushed().await;
                Steps::HadEffects
            }
            _ => Steps::Silent,
        }
    }

    /// Returns the commit, and the error for the caller if a marker is stored in place of the
    /// result.
    fn new_commit(
        &self,
        state: State,
        body: Result<Bytes, NotEncodable>,
    ) -> (Commit, Option<Error>) {
        let (call, record) = (&self.call, &self.grant.record);
        let limit = call.engine.settings.max_result_size;
        let mut commit = Commit::new(record.key, record.owner, Bytes::new(), call.ttl);
        commit.state = state;
        commit.schema = call.version;
        let marker = match body {
            Ok(body) if body.len() <= limit => {
                commit.body = body;
                None
            }
            Ok(body) => {
                commit.reason = Some(Reason::TooLarge);
                let detail = format!("it takes {} bytes and the limit is {limit}", body.len());
                Some(call.refused(ErrorKind::TooLarge).with_detail(detail))
            }
            Err(error) => {
                commit.reason = Some(Reason::NotEncodable);
                let detail = format!(
                    "{error}; the body ran and its result is lost; it will not run again for this \
                     key"
                );
                Some(call.refused(ErrorKind::Encode).with_detail(detail).with_source(error))
            }
        };
        (commit, marker)
    }

    /// Returns the record as it is stored now, for the followers of this call.
    fn answered(&self, commit: &Commit) -> Record {
        let mut record = self.grant.record.clone();
        record.state = commit.state;
        record.body = commit.body.clone();
        record.schema = commit.schema;
        record.reason = commit.reason;
        record
    }

    /// Stores the result, and writes a record again that has vanished.
    ///
    /// Only a commit that has found none is sent with the permission to do that. One that has it
    /// may still be on its way when another try of it was applied, and when an operator has removed
    /// the record since: it would bring the result back.
    async fn store(&self, commit: &Commit, budget: Budget) -> Result<WriteOutcome, StoreError> {
        let engine = &self.call.engine;
        let written = engine.store.complete(budget, || commit.clone()).await?;
        if written == WriteOutcome::Gone && !self.lease.is_lost() {
            engine.store.complete(budget, || self.adopting(commit)).await
        } else {
            Ok(written)
        }
    }

    /// Returns the commit with the permission to write the record again, as far as there is one now.
    fn adopting(&self, commit: &Commit) -> Commit {
        let mut commit = commit.clone();
        commit.adopt = (!self.lease.is_lost()).then(|| self.adoption_for(commit.ttl));
        commit
    }

    /// A try of the claim that has not arrived yet would find no record when that of the call has
    /// expired, or was removed, and would own one for a body that has ended.
    fn release_late_claim(&self) {
        if self.repeated {
            let record = &self.grant.record;
            owed::repeat(&self.call.engine, Release::unused(record.key, record.owner));
        }
    }

    /// Returns the permission to write a vanished record again, and the time at which it ends. Once
    /// the lease may have expired, the next record in that place may be another owner's. And a
    /// delayed duplicate of this commit may arrive `ttl` after it, when its result has expired and
    /// must not be written again.
    fn adoption_for(&self, ttl: Duration) -> Arc<Adoption> {
        let mut adoption = self.adoption.clone();
        // On the store's clock, which showed this time or a later one when the answer to the claim
        // arrived.
        adoption.ends = self.grant.record.read_at + self.lease.valid_for().min(ttl);
        Arc::new(adoption)
    }

    /// Waits for steps that are still being written. A step that was dropped may be on its way to
    /// the record, which accepts it only while this owner holds the record.
    async fn steps_are_flushed(&self) {
        if let Some(journal) = &self.journal {
            journal.flushed(&self.call.engine, self.call.engine.settings.commit_timeout).await;
        }
    }

    /// Leaves the record with its steps to the next caller, or in doubt.
    async fn leave(&self, reason: Reason, left: Left) -> Option<WriteOutcome> {
        self.steps_are_flushed().await;
        let engine = &self.call.engine;
        // Forgotten first: otherwise a renewal could bring back the lease that is being given up.
        engine.keeper.forget(&self.lease);
        leave(engine, &self.lease, (reason, left), engine.settings.commit_timeout).await
    }

    async fn park(
        &self,
        reason: Reason,
        ask_again_after: Duration,
    ) -> Result<WriteOutcome, StoreError> {
        let engine = &self.call.engine;
        let parking = self.parking(reason, ask_again_after);
        let budget = Budget::of(engine.settings.commit_timeout);
        put_in_doubt(engine, &self.lease, budget, parking).await
    }

    fn own_release(&self) -> Release {
        let mut release = Release::new(self.grant.record.key, self.grant.record.owner);
        release.keep_attempts = self.call.count_attempts;
        release
    }

    /// Returns `None` if the store has not answered.
    async fn release(&self, release: Release) -> Option<WriteOutcome> {
        let engine = &self.call.engine;
        match engine.store.release(Budget::of(engine.settings.commit_timeout), release).await {
            // First this release, which may count the attempt, then one for a late duplicate of the
            // claim, which is not a further attempt.
            Err(error) => {
                owed::add(engine, release, self.repeated, &error);
                None
            }
            Ok(written) => {
                if self.repeated {
                    owed::repeat(engine, release);
                }
                Some(written)
            }
        }
    }
}

/// Returns the error to the caller while the background keeps trying to hold the record. Its effect
/// may have happened, and under a policy that runs the body again, the next call would repeat it
/// when the lease expires.
fn not_held(mut owner: Box<Owner>, error: &StoreError) -> CallerGets {
    let engine = owner.call.engine.clone();
    owner.report_end_as(&CallerGets::Own, Outcome::Held);
    let keeper = engine.keeper.clone();
    let Some(place) = engine.bounds.ends.place() else {
        tracing::error!(operation = %owner.call.operation, key = %owner.call.key, %error,
            "a record in doubt could not be held; its policy applies when the lease expires");
        owner.let_go(None);
        return CallerGets::Own;
    };
    tracing::error!(operation = %owner.call.operation, key = %owner.call.key, %error,
        "a record in doubt could not be held; this continues in the background");
    keeper.spawn(async move {
        let _place = place;
        let park = owner.parking(Reason::Error, Duration::ZERO);
        let budget = Budget::until_done(engine.settings.background_commit);
        match put_in_doubt(&engine, &owner.lease, budget, park).await {
            // The caller has its answer. The duplicate is still to be counted and reported.
            Ok(written) if overtaken::is_overtaken(&owner, false, Some(written)) => {
                overtaken::without_result(&mut owner).await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(key = %park.key, %error,
                    "a record in doubt was never held; its policy applies when the lease expires");
            }
        }
        owner.let_go(None);
    });
    CallerGets::Own
}

/// Returns the error to the caller and continues to store in the background. If that fails too, the
/// record is given up and left to its policy.
async fn not_stored(mut owner: Box<Owner>, commit: Commit, error: StoreError) -> CallerGets {
    let call = owner.call.clone();
    let engine = call.engine.clone();
    let place = engine.bounds.ends.place();
    let then = if place.is_some() {
        "storing continues in the background"
    } else {
        "the record is left as after a crash"
    };
    tracing::error!(operation = %call.operation, key = %call.key, %error, "a result could not be stored; {then}");
    let refused =
        call.refused(ErrorKind::NotStored).with_store(engine.store.name()).with_source(error);
    let gets = CallerGets::refused(refused);
    let keeper = engine.keeper.clone();
    let lease = owner.lease.clone();
    owner.report_end_as(&gets, Outcome::NotStored);
    let Some(place) = place else {
        call.tell(What::NeverStored);
        close_steps(&engine, &lease, call.lease).await;
        owner.let_go(None);
        return gets;
    };
    let answered = engine.clock.monotonic();
    keeper.spawn(async move {
        let _place = place;
        let budget = Budget::until_done(engine.settings.background_commit);
        match owner.store(&commit, budget).await {
            Ok(written) if written.is_done() => {
                report_adoption(&call, written);
                owner.release_late_claim();
                tracing::info!(key = %lease.key, "a result was stored in the background");
                let after = engine.clock.monotonic().saturating_sub(answered);
                call.tell(What::StoredLate { after });
            }
            Ok(_) => {
                call.tell(What::NeverStored);
                overtaken::overtaken(&mut owner, &commit.body, true).await;
            }
            Err(error) => {
                tracing::error!(key = %lease.key, %error, "a result was never stored: the record is left as after a crash");
                call.tell(What::NeverStored);
                let budget = owner.call.lease;
                close_steps(&engine, &lease, budget).await;
                engine.keeper.forget(&lease);
                let cause = Cause::Cut(Reason::NotStored);
                let may_be_taken_over = lease.may_be_taken_over();
                let settlement =
                    settle(owner.progress(), cause, may_be_taken_over, Steps::Silent);
                let written = match settlement {
                    Settlement::Leave(reason, left) => {
                        leave(&engine, &lease, (reason, left), budget).await
                    }
                    // Not reached: a body that ended and was cut off is always left.
                    _ => None,
                };
                if overtaken::is_overtaken(&owner, false, written) {
                    overtaken::overtaken(&mut owner, &commit.body, true).await;
                }
            }
        }
        owner.let_go(None);
    });
    gets
}
