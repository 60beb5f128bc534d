//! A claim that this process holds, from its grant to its end.
//!
//! Dropped before the body started, it is given back. Dropped afterwards, the outcome is unknown:
//! the record goes in doubt or to the next caller, by its policy, and is never deleted.

use std::sync::Arc;
use std::time::Duration;

use super::admission::Granted;
use super::finish::{self, Verdict};
use super::flight::Leader;
use super::followed::Followed;
use super::lease::Lease;
use super::report::{Observer, Report};
use super::request::Checked;
use super::scope::Scope;
use super::{claim, retry};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::outcome::{Answer, Ending, stored};
use crate::steps::Journal;
use crate::store::{Abandon, Adoption, Grant, Park, Reason, Record, Release, StoreError, Written};

pub(crate) struct Running {
    pub(super) call: Arc<Checked>,
    pub(super) grant: Grant,
    pub(super) lease: Arc<Lease>,
    pub(super) adoption: Adoption,
    /// Monotonic time at which the claim was sent first.
    sent: Duration,
    /// An earlier try of the claim may still be on its way.
    pub(super) repeated: bool,
    /// What is left of the time for others, which the call has only once; `None` if it waits for
    /// nobody.
    pub(super) patience: Option<Duration>,
    leader: Option<Leader>,
    observer: Option<Observer>,
    pub(super) report: Report,
    /// From the start of the body.
    pub(super) journal: Option<Arc<Journal>>,
    /// Whether the body started, which may leave an effect.
    pub(super) has_run: bool,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Granted,
    /// The outside world is asked about an earlier attempt.
    Asking,
    Started,
    /// The body panicked.
    Panicked,
    /// The body ended; what follows is in the hands of `finish`.
    Ended,
    /// The store knows, or was told for as long as it makes sense.
    Concluded,
}

impl Running {
    pub(super) fn new(
        call: Arc<Checked>,
        Granted { claim, grant, sent, repeated, _busy }: Granted,
        deadline: Option<Duration>,
        leader: Leader,
        observer: Option<Observer>,
        mut report: Report,
    ) -> Self {
        let engine = &call.engine;
        let patience = deadline.map(|deadline| deadline.saturating_sub(engine.clock.monotonic()));
        let owner = (grant.record.key, grant.record.owner);
        let policy = grant.record.policy;
        let lease = Lease::new(
            owner,
            policy,
            call.lease,
            sent,
            engine.settings.max_run,
            engine.clock.clone(),
        );
        let lease = Arc::new(lease);
        engine.keeper.keep(&lease);
        leader.runs_under(&lease);
        if engine.is_closed() {
            // Too late for the shutdown to take it away. It never begins, and is not kept alive
            // until that is noticed.
            lease.stop_renewal();
        }
        report.attempt = grant.record.attempts;
        let adoption = Adoption::new(claim, &grant);
        Self {
            call,
            grant,
            lease,
            adoption,
            sent,
            repeated,
            patience,
            leader: Some(leader),
            observer,
            report,
            journal: None,
            has_run: false,
            phase: Phase::Granted,
        }
    }

    /// The scope for the body, if it may start: the engine is not closing, and there is enough of
    /// the lease left.
    pub(crate) fn start(&mut self) -> Result<Scope, Error> {
        let (engine, scope) = (&self.call.engine, Scope::current());
        // Asked again with the claim in hand: a shutdown that did not see it sees to it that this
        // does.
        if scope.is_shut_out(engine) {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        if self.lease.is_lost() || !engine.may_start(self.sent, self.call.lease) {
            let detail = "most of the lease was over before the body could start";
            return Err(self.call.refused(ErrorKind::StoreUnavailable).with_detail(detail));
        }
        let (operation, limit) = (&self.call.operation, engine.settings.max_result_size);
        let journal =
            Arc::new(Journal::of(operation, &self.grant.record, self.lease.clone(), limit)?);
        if !self.lease.begin() {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        self.journal = Some(journal.clone());
        self.lease.has_steps(&journal);
        self.phase = Phase::Started;
        self.has_run = true;
        let context =
            Context::new(engine, operation, &self.grant, self.lease.clone(), Some(journal));
        Ok(scope.of_body(context))
    }

    /// The scope and the context of the question about an earlier attempt, if it may be asked.
    pub(super) fn ask(&mut self) -> Result<(Scope, Context), Error> {
        let (engine, scope) = (&self.call.engine, Scope::current());
        if scope.is_shut_out(engine) {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        if self.lease.is_lost() {
            let detail = "the lease was over before the outside world could be asked";
            return Err(self.call.refused(ErrorKind::StoreUnavailable).with_detail(detail));
        }
        if !self.lease.begin() {
            return Err(self.call.refused(ErrorKind::ShuttingDown));
        }
        self.phase = Phase::Asking;
        let context =
            Context::new(engine, &self.call.operation, &self.grant, self.lease.clone(), None);
        Ok((scope.of_body(context.clone()), context))
    }

    /// The answer is that the body may run, under what is left of the lease now.
    pub(super) fn may_run(&mut self) {
        self.phase = Phase::Granted;
        self.sent = self.lease.known_since();
    }

    /// Gives the claim back before anything was done under it. Goes on in the background if it is
    /// dropped.
    pub(super) async fn give_back(mut self: Box<Self>) {
        self.observer = None;
        let engine = self.call.engine.clone();
        engine.give_back(&self.adoption.claim, self.repeated).await;
        self.lease.end_body();
        self.conclude(None);
    }

    /// The same without anybody who waits for it: nothing follows that a claim in the way would
    /// disturb.
    pub(super) fn give_back_later(self: Box<Self>) {
        let keeper = self.call.engine.keeper.clone();
        keeper.finish(self.give_back());
    }

    /// Stores, releases or parks, as the body's end asks for. Goes on in the background if it is
    /// dropped.
    pub(crate) fn finish(mut self: Box<Self>, ending: Ending) -> Followed<Verdict> {
        self.phase = Phase::Ended;
        self.end_body();
        let keeper = self.call.engine.keeper.clone();
        Followed::new(&keeper, finish::finish(self, ending))
    }

    /// From here on no step begins, in whatever task. What runs already is looked at by who decides
    /// about the claim.
    fn end_body(&self) {
        self.lease.end_body();
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// Tells the observer what the caller gets.
    pub(super) fn tell(&mut self, verdict: &Verdict) {
        if let Verdict::Instead(Answer::Stored(stored)) = verdict {
            self.report.replayed = true;
            self.report.attempt = stored.record.attempts;
        }
        if let Some(observer) = self.observer.take() {
            observer.report(self.report.clone());
        }
    }

    /// The body will not come to an end.
    pub(super) fn panicked(&mut self) {
        self.phase = Phase::Panicked;
    }

    /// Ends the renewals, and hands the record to the followers if it is their answer too.
    pub(super) fn conclude(&mut self, record: Option<Arc<Record>>) {
        self.phase = Phase::Concluded;
        self.call.engine.keeper.forget(&self.lease);
        let Some(leader) = self.leader.take() else { return };
        if let Some(record) = record {
            leader.answer(stored(record, self.call.version));
        }
    }

    fn reason(&self) -> Reason {
        match self.phase {
            // The shutdown has written this on the record.
            _ if self.lease.is_shut_down() => Reason::ShutDown,
            Phase::Panicked => Reason::Panicked,
            Phase::Ended => Reason::NotStored,
            _ if self.lease.is_lost() => Reason::LeaseLost,
            _ => Reason::Dropped,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.phase == Phase::Concluded {
            return;
        }
        self.end_body();
        let engine = self.call.engine.clone();
        let (lease, budget) = (self.lease.clone(), self.call.lease);
        let kept = Kept(engine.clone(), lease.clone());
        if let Some(observer) = &self.observer {
            observer.report(self.report.clone());
        }
        // The followers wait until the store knows, so that the next of them finds the record as it
        // is left.
        let leader = self.leader.take();
        if self.phase == Phase::Granted {
            let keeper = engine.keeper.clone();
            let (release, repeated) = (Release::unused(lease.key, lease.token), self.repeated);
            keeper.finish(async move {
                drop(kept);
                claim::give_back(&engine, release, budget, false).await;
                drop(leader);
                if repeated {
                    claim::give_back(&engine, release, budget, true).await;
                }
            });
            return;
        }
        if self.phase == Phase::Asking {
            let (key, token) = (lease.key, lease.token);
            let keeper = engine.keeper.clone();
            let rest = self.rest();
            keeper.finish(async move {
                drop(kept);
                let mut park = Park::own(key, token, Reason::Unverified);
                park.ask_again_after = rest;
                if let Err(error) = retry::until(&engine, budget, || engine.store.clone().park(park)).await {
                    tracing::warn!(%key, %error, "a question without an answer could not be recorded; the next caller asks when the lease is over");
                }
                drop(leader);
            });
            return;
        }
        let reason = self.reason();
        tracing::warn!(operation = %self.call.operation, key = %self.call.key, %reason, "the outcome of a body is unknown");
        let (keeper, journal) = (engine.keeper.clone(), self.journal.take());
        let waits = journal.as_ref().is_some_and(|journal| !journal.is_settled());
        let rest = async move {
            if let Some(journal) = journal {
                journal.settled(&engine, engine.settings.commit_timeout).await;
            }
            // Before that, or a renewal brings back the lease that was given up.
            drop(kept);
            if let Some(_place) = engine.bounds.ends.place() {
                give_up(&engine, &lease, reason, budget).await;
            }
            drop(leader);
        };
        if waits {
            keeper.spawn(rest);
        } else {
            keeper.finish(rest);
        }
    }
}

/// A lease that is renewed until this is dropped: with what follows a dropped call, on every way
/// out of that. Renewed any longer, by nobody's will, it would keep the key from everybody for as
/// long as a body may run.
struct Kept(Arc<super::Inner>, Arc<Lease>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.keeper.forget(&self.1);
    }
}

/// Leaves a record whose outcome is unknown to its policy, at once. Without success the lease runs
/// out: `None` if the store has not answered.
pub(super) async fn give_up(
    engine: &super::Inner,
    lease: &Lease,
    reason: Reason,
    budget: Duration,
) -> Option<Written> {
    let (key, token) = (lease.key, lease.token);
    // What a step has to say that ended before this is on the record before the next caller gets
    // it.
    if let Some(journal) = lease.journal() {
        journal.close();
        journal.settled(engine, budget.min(engine.settings.commit_timeout)).await;
    }
    let written = if lease.may_be_taken_over() {
        retry::until(engine, budget, || {
            engine.store.clone().abandon(Abandon::new(key, token, reason))
        })
        .await
    } else {
        retry::until(engine, budget, || engine.store.clone().park(Park::own(key, token, reason)))
            .await
    };
    let failed = |error: &StoreError| {
        tracing::warn!(%key, %error, "an unknown outcome could not be recorded; the policy applies when the lease is over");
    };
    written.inspect_err(failed).ok()
}
