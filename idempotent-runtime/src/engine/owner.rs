//! The owner of a claim in this process, from its grant to its end. `finish`, `verify` and `window`
//! have more of its methods.
//!
//! If it is dropped before the body started, it is released. If it is dropped while an earlier
//! attempt is asked about, the question is open: the record is in doubt until it may be asked again.
//! If it is dropped afterwards, the outcome is unknown: the record goes in doubt or to the next
//! caller, by its policy, and is never deleted.

use std::sync::Arc;
use std::time::Duration;

use super::admission::Granted;
use super::claim;
use super::exit::Exit;
use super::finish::{self, CallerGets};
use super::flight::Leader;
use super::followed::Followed;
use super::lease::{Lease, Term};
use super::request::CheckedCall;
use super::retry::Budget;
use super::settle::{Cause, Left, Progress, Settlement, Steps, settle};
use super::task_state::TaskState;
use super::unknown_outcome::{leave, put_in_doubt};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, What};
use crate::outcome::{Answer, Ending, stored};
use crate::steps::Journal;
use crate::store::{Adoption, Grant, Park, Reason, Record, Release};

pub(crate) struct Owner {
    pub(super) call: Arc<CheckedCall>,
    pub(super) grant: Grant,
    pub(super) lease: Arc<Lease>,
    pub(super) adoption: Adoption,
    /// Monotonic time at which the claim was first sent, or at which the lease was last renewed when
    /// a verification let the body run.
    sent: Duration,
    /// Monotonic time at which the grant was known. It may be long before the body starts: the
    /// outside world may be asked first, or another window looked at.
    granted_at: Duration,
    /// True if an earlier try of the claim may still be on its way.
    pub(super) repeated: bool,
    /// The remaining time for waiting, of which the call has only one budget; `None` if it does not
    /// wait.
    pub(super) patience: Option<Duration>,
    leader: Option<Leader>,
    /// `None` once the end of the call has been reported, and while its caller still looks for the
    /// record that it belongs to.
    exit: Option<Exit>,
    /// Present from the start of the body.
    pub(super) journal: Option<Arc<Journal>>,
    /// True if the body started, which may leave an effect.
    pub(super) has_run: bool,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Granted,
    /// The outside world is being queried about an earlier attempt.
    Asking,
    Started,
    /// The body panicked.
    Panicked,
    /// The body or the verification ended, or the claim is not to be used; `finish` handles the rest.
    Ended,
    /// The store has the outcome, or it was sent for as long as that made sense.
    Concluded,
}

impl Owner {
    /// Takes the granted claim: lets the keeper renew its lease, and the followers of `leader` wait
    /// for it.
    pub(super) fn new(
        call: Arc<CheckedCall>,
        Granted { claim, grant, sent, repeated, _busy }: Granted,
        deadline: Option<Duration>,
        leader: Leader,
    ) -> Self {
        let engine = &call.engine;
        let granted_at = engine.clock.monotonic();
        let patience = deadline.map(|deadline| deadline.saturating_sub(granted_at));
        let owner = (grant.record.key, grant.record.owner);
        let policy = grant.record.policy;
        let settings = &engine.settings;
        // Steps are waited for and sent again, and the end is written at first and in the
        // background.
        let after_body = settings
            .commit_timeout
            .saturating_mul(3)
            .saturating_add(settings.background_commit)
            .saturating_add(call.lease);
        let term = Term { length: call.lease, max_run: settings.max_run, after_body };
        let clock = engine.clock.clone();
        let lease = Lease::new(owner, call.operation.clone(), policy, term, sent, clock);
        let lease = Arc::new(lease);
        engine.keeper.keep(&lease);
        leader.claimed(&lease);
        if engine.is_closed() {
            // Too late for the shutdown to take the claim away. Its body never begins: `start` will
            // notice, and until then no call needs the lease.
            lease.stop_renewal();
        }
        let adoption = Adoption::new(claim, &grant);
        Self {
            call,
            grant,
            lease,
            adoption,
            sent,
            granted_at,
            repeated,
            patience,
            leader: Some(leader),
            exit: None,
            journal: None,
            has_run: false,
            phase: Phase::Granted,
        }
    }

    /// Takes the exit of the call that belongs to this claim, whose end is that of the call from now
    /// on.
    pub(super) fn take_exit(&mut self, mut exit: Exit) {
        let record = &self.grant.record;
        exit.report.attempt = record.attempts;
        self.exit = Some(exit);
        self.call.tell(What::Claimed {
            attempt: record.attempts,
            fence: record.fence,
            taken_over: self.grant.taken_over,
        });
    }

    /// Returns the state of the task for the body, if it may start: the engine is not closing, and
    /// enough of the lease is left. After an error the owner is to be dropped, which releases the
    /// claim.
    pub(crate) fn start(&mut self) -> Result<TaskState, Error> {
        self.try_start().inspect_err(|error| self.report_end(Outcome::Refused(error.kind())))
    }

    fn try_start(&mut self) -> Result<TaskState, Error> {
        let (engine, task_state) = (&self.call.engine, TaskState::current());
        // Checked again now that the claim is held. A shutdown closes the engine and then lists the
        // held claims. If this claim is among them, the shutdown either takes its lease before
        // `begin` below, or treats the body as begun. If not, the engine was closed before this
        // claim was held, which is seen here.
        if task_state.is_shut_out(engine) {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        if self.lease.is_lost() || !engine.may_start(self.sent, self.call.lease) {
            let detail = "most of the lease had elapsed before the body could start";
            return Err(self.call.refused(ErrorKind::StoreUnavailable).with_detail(detail));
        }
        let (operation, limit) = (&self.call.operation, engine.settings.max_result_size);
        let journal =
            Arc::new(Journal::of(operation, &self.grant.record, self.lease.clone(), limit)?);
        if !self.lease.begin() {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        self.journal = Some(journal.clone());
        self.lease.set_journal(&journal);
        self.phase = Phase::Started;
        self.has_run = true;
        Ok(task_state.of_body(self.context(Some(journal))))
    }

    /// Returns the state of the task and the context for asking about an earlier attempt, if that is
    /// still possible.
    pub(super) fn begin_question(&mut self) -> Result<(TaskState, Context), Error> {
        self.try_begin_question()
            .inspect_err(|error| self.report_end(Outcome::Refused(error.kind())))
    }

    fn try_begin_question(&mut self) -> Result<(TaskState, Context), Error> {
        let (engine, task_state) = (&self.call.engine, TaskState::current());
        if task_state.is_shut_out(engine) {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        if self.lease.is_lost() {
            let detail = "the lease expired before the outside world could be asked";
            return Err(self.call.refused(ErrorKind::StoreUnavailable).with_detail(detail));
        }
        if !self.lease.begin() {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        self.phase = Phase::Asking;
        let context = self.context(None);
        Ok((task_state.of_body(context.clone()), context))
    }

    fn context(&self, journal: Option<Arc<Journal>>) -> Context {
        let Self { call, grant, granted_at, lease, .. } = self;
        Context::new(&call.engine, &call.operation, grant, *granted_at, lease.clone(), journal)
    }

    /// Records that no earlier attempt had an effect: the body may start, under what is left of the
    /// lease now.
    pub(super) fn note_not_executed(&mut self) {
        self.phase = Phase::Granted;
        self.sent = self.lease.term_began();
    }

    /// Releases the claim before anything was done under it. Continues in the background if it is
    /// dropped.
    pub(super) async fn give_back(mut self: Box<Self>) {
        let engine = self.call.engine.clone();
        // A shutdown waits for the lease, which is no longer renewed: a renewal that meets the
        // release would look like a lost lease.
        let _busy = engine.keeper.busy();
        engine.keeper.forget(&self.lease);
        claim::release_granted(&engine, &self.adoption.claim, self.repeated).await;
        self.lease.end_body();
        self.let_go(None);
    }

    /// Like [`give_back`](Self::give_back), without waiting for it: nothing follows for which the
    /// claim would be in the way.
    pub(super) fn give_back_later(self: Box<Self>) {
        let keeper = self.call.engine.keeper.clone();
        keeper.finish_left_behind(self.give_back());
    }

    /// Stores the result, releases the claim or marks the record in doubt, depending on the body's
    /// end. Continues in the background if it is dropped.
    pub(crate) fn finish(mut self: Box<Self>, ending: Ending) -> Followed<CallerGets> {
        self.phase = Phase::Ended;
        self.end_body();
        if self.has_run && !matches!(ending, Ending::NotBegun) {
            // Its wait for its turn is over, if it was still in one, and the journal is closed, so that
            // none begins: a shutdown must not release the claim while the end of the body is on
            // its way to the store.
            self.lease.begin();
        }
        let keeper = self.call.engine.keeper.clone();
        Followed::new(&keeper, finish::finish(self, ending))
    }

    /// From here on no step begins, in any task. Steps that are already running are handled by the
    /// code that decides about the claim.
    fn end_body(&self) {
        self.lease.end_body();
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// Reports the end of the call. `gets`: what its caller gets. `own`: how it ended if no other
    /// party decided it.
    pub(super) fn report_end_as(&mut self, gets: &CallerGets, own: Outcome) {
        let outcome = match gets {
            CallerGets::Instead(Answer::Stored(stored)) => {
                if let Some(exit) = &mut self.exit {
                    exit.report.replayed = true;
                    exit.report.attempt = stored.record.attempts;
                }
                Outcome::Superseded
            }
            CallerGets::Instead(Answer::Refused(error))
                if error.kind() == ErrorKind::Superseded =>
            {
                Outcome::Superseded
            }
            CallerGets::Own | CallerGets::Instead(Answer::Refused(_)) => own,
        };
        self.report_end(outcome);
    }

    /// Reports the end of the call, once.
    fn report_end(&mut self, outcome: Outcome) {
        if let Some(exit) = self.exit.take() {
            exit.end(outcome);
        }
    }

    /// Records that the caller waits for another one.
    pub(super) fn note_waiting(&mut self) {
        if let Some(exit) = &mut self.exit {
            exit.report.waited = true;
        }
    }

    /// Marks that the body will not finish.
    pub(super) fn note_panic(&mut self) {
        self.phase = Phase::Panicked;
    }

    /// Ends the renewals, and passes the record to the followers if it is their answer too.
    pub(super) fn let_go(&mut self, record: Option<Arc<Record>>) {
        self.phase = Phase::Concluded;
        self.call.engine.keeper.forget(&self.lease);
        if let Some(leader) = self.leader.take()
            && let Some(record) = record
        {
            leader.answer(stored(record, self.call.version));
        }
        // What the body has left behind in other tasks learns of it.
        self.lease.give_up();
    }

    /// How far the attempt came. Once `finish` has begun this is `Begun`, also for a verification.
    pub(super) fn progress(&self) -> Progress {
        match self.phase {
            Phase::Granted => Progress::Granted,
            // A shutdown has left the record to the next call, which asks at once.
            Phase::Asking if self.lease.is_shut_down() => Progress::Begun,
            Phase::Asking => Progress::Asking,
            Phase::Started | Phase::Panicked | Phase::Ended | Phase::Concluded => Progress::Begun,
        }
    }

    pub(super) fn parking(&self, reason: Reason, ask_again_after: Duration) -> Park {
        let mut park = Park::own(self.grant.record.key, self.grant.record.owner, reason);
        park.ask_again_after = ask_again_after;
        park
    }

    fn reason(&self) -> Reason {
        match self.phase {
            // The shutdown has written this reason to the record.
            _ if self.lease.is_shut_down() => Reason::ShutDown,
            Phase::Panicked => Reason::Panicked,
            Phase::Ended => Reason::NotStored,
            _ if self.lease.is_lost() => Reason::LeaseLost,
            _ => Reason::Dropped,
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.phase == Phase::Concluded {
            return;
        }
        self.end_body();
        if self.phase == Phase::Started && self.lease.is_unused() {
            // The body never had its turn, and no task that it has left behind will.
            self.phase = Phase::Granted;
        }
        let engine = self.call.engine.clone();
        let (lease, budget) = (self.lease.clone(), self.call.lease);
        let kept = Kept(engine.clone(), lease.clone());
        self.report_end(if self.phase == Phase::Panicked {
            Outcome::Panicked
        } else {
            Outcome::Dropped
        });
        // The leader is dropped only after the store has answered, and the followers wait until
        // then. Otherwise the next of them could query the store first, and find a claim that is
        // still held.
        let leader = self.leader.take();
        let (reason, keeper) = (self.reason(), engine.keeper.clone());
        let may_be_taken_over = lease.may_be_taken_over();
        match settle(self.progress(), Cause::Cut(reason), may_be_taken_over, Steps::Silent) {
            Settlement::AskAgain(reason) => {
                let park = self.parking(reason, self.rest());
                keeper.finish_left_behind(async move {
                    drop(kept);
                    if let Err(error) =
                        put_in_doubt(&engine, &lease, Budget::of(budget), park).await
                    {
                        tracing::warn!(key = %park.key, %error,
                            "a question without an answer could not be recorded; the next caller \
                             asks when the lease has expired");
                    }
                    drop(leader);
                    // As in `let_go`.
                    lease.give_up();
                });
            }
            Settlement::ReleaseUnused => {
                let (release, repeated) = (Release::unused(lease.key, lease.token), self.repeated);
                keeper.finish_left_behind(async move {
                    drop(kept);
                    claim::release_unused(&engine, release, budget, repeated).await;
                    drop(leader);
                    lease.give_up();
                });
            }
            settlement => {
                let (reason, left) = match settlement {
                    Settlement::Leave(reason, left) => (reason, left),
                    // Not reached: an attempt that is cut off has no other settlement.
                    _ => (reason, Left::InDoubt),
                };
                tracing::warn!(operation = %self.call.operation, key = %self.call.key, %reason, "the outcome of a body is unknown");
                let journal = self.journal.take();
                let waits = journal.as_ref().is_some_and(|journal| !journal.is_settled());
                let rest = async move {
                    if let Some(journal) = journal {
                        journal.flushed(&engine, engine.settings.commit_timeout).await;
                    }
                    // Dropped before the lease is given up: otherwise a renewal could bring it
                    // back.
                    drop(kept);
                    // Without a place nothing is written, and the lease expires.
                    if let Some(_place) = engine.bounds.ends.place() {
                        leave(&engine, &lease, (reason, left), budget).await;
                    }
                    drop(leader);
                    // As in `let_go`.
                    lease.give_up();
                };
                if waits {
                    keeper.spawn(rest);
                } else {
                    keeper.finish_left_behind(rest);
                }
            }
        }
    }
}

/// A lease that is renewed until this is dropped. The work after a dropped call carries it, so it
/// is dropped on every exit path. A lease that is renewed longer than that would keep the key from
/// all callers for as long as a body may run.
struct Kept(Arc<super::Inner>, Arc<Lease>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.keeper.forget(&self.1);
    }
}
