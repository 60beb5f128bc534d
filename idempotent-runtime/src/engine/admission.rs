//! The way of a call to its answer or to its body.

use std::sync::Arc;
use std::time::Duration;

use super::claim::Answered;
use super::flight::{Flight, Leader, Seat, Stage};
use super::keeper::Busy;
use super::lent::is_in_body_of;
use super::report::Report;
use super::request::{Checked, Request};
use super::running::Running;
use super::scope::Scope;
use super::window::seek_in_windows;
use super::{Unprotected, Waiting, claim, wait};
use crate::error::{Error, ErrorKind};
use crate::fingerprint::Fingerprint;
use crate::outcome::{Answer, Ending, stored};
use crate::store::{Claim, Claimed, CrashPolicy, Grant, Reason, Record, State, StoreError};

/// What a call may do.
pub(crate) enum Admission {
    /// Return this.
    Answer(Answer),
    /// Run the body under this claim.
    Run(Box<Running>),
    /// Run the body without any protection: the operation is disabled.
    Bypass(Scope, Unprotected),
}

impl Admission {
    /// The call that runs under a claim.
    pub(super) fn call(&self) -> Option<Arc<Checked>> {
        match self {
            Self::Run(running) => Some(running.call.clone()),
            Self::Answer(_) | Self::Bypass(..) => None,
        }
    }
}

/// A claim that was granted, and when it was sent first.
pub(super) struct Granted {
    pub(super) claim: Claim,
    pub(super) grant: Grant,
    pub(super) sent: Duration,
    /// An earlier try of the claim may still be on its way.
    pub(super) repeated: bool,
    /// Until the claim is kept.
    pub(super) _busy: Busy,
}

/// What the leader of a flight learned.
enum Led {
    Granted(Box<Granted>),
    Found(Arc<Record>),
    /// True for every caller of this key.
    Refused(Error),
    /// Says nothing to the others: it comes from this caller's own patience or lease.
    OutOfTime(Error),
}

/// Claims that came too late are sent anew this often.
const LATE_CLAIMS: usize = 1;

pub(crate) async fn admit(request: Request) -> Admission {
    let call = match request.check() {
        Ok(call) => call,
        Err(error) => {
            let report = Report::of_refusal(&error);
            return refuse(error, &report, &Scope::current());
        }
    };
    let scope = Scope::current();
    let mut report = Report::new(call.operation.clone(), call.key);
    if call.engine.operations.is_disabled(&call.operation) {
        let Some(unprotected) = Unprotected::enter(&call.engine, &scope) else {
            return refuse(call.refused(ErrorKind::ShuttingDown), &report, &scope);
        };
        tracing::warn!(operation = %call.operation, key = %call.key, "the operation is disabled: the body runs unprotected");
        report.bypassed = true;
        scope.report(&report);
        let scope = scope.of_body(unprotected.context(&call.operation, call.key));
        return Admission::Bypass(scope, unprotected);
    }
    // A key with a window has more than one record.
    let answer =
        if call.windowed.is_none() { at_hand(&call, &scope, &mut report) } else { Ok(None) };
    match answer {
        // On the heap: a call that is answered by then does not carry the way to the store along.
        Ok(None) => Box::pin(admit_by_store(Arc::new(call), scope, report)).await,
        Ok(Some(record)) => replay(record, call.version, report, &scope),
        Err(error) => refuse(error, &report, &scope),
    }
}

async fn admit_by_store(call: Arc<Checked>, scope: Scope, mut report: Report) -> Admission {
    // Counted once, however many records are waited for.
    let clock = &call.engine.clock;
    let deadline = call.patience().map(|patience| clock.monotonic().saturating_add(patience));
    let sought = match &call.windowed {
        None => seek_in_store(&call, deadline, &scope, &mut report)
            .await
            .map(|sought| (call.clone(), sought)),
        Some(windowed) => seek_in_windows(&call, windowed, deadline, &scope, &mut report).await,
    };
    match sought {
        Ok((call, Sought::Found(record))) => replay(record, call.version, report, &scope),
        // The record wants the outside world to be asked, and this caller has no question. A store
        // that grants it the claim all the same does not make its body run.
        Ok((call, Sought::Running(running)))
            if running.must_ask() && call.policy != CrashPolicy::Verify =>
        {
            let left = Record { reason: Some(Reason::Crashed), ..running.grant.record.clone() };
            let ending =
                Ending::Unknown { reason: Reason::Crashed, ask_again_after: Duration::ZERO };
            running.finish(ending).await;
            Admission::Answer(Answer::Refused(in_doubt(&call, &left)))
        }
        Ok((_, Sought::Running(running))) => Admission::Run(running),
        Err(error) => refuse(error, &report, &scope),
    }
}

/// Answers with `record`, for a call that reads schema `version`.
fn replay(record: Arc<Record>, version: u32, mut report: Report, scope: &Scope) -> Admission {
    report.replayed = record.state.is_answer();
    report.attempt = record.attempts;
    tracing::debug!(operation = %report.operation, key = %report.key, attempt = report.attempt, "replayed");
    scope.report(&report);
    Admission::Answer(stored(record, version))
}

fn refuse(error: Error, report: &Report, scope: &Scope) -> Admission {
    tracing::debug!(operation = %report.operation, key = %report.key, kind = ?error.kind(), "refused");
    scope.report(report);
    Admission::Answer(Answer::Refused(error))
}

pub(super) enum Sought {
    Found(Arc<Record>),
    Running(Box<Running>),
}

/// Finds an answer or gets a claim. Others are waited for until `deadline` on the monotonic clock,
/// or not at all.
pub(super) async fn seek(
    call: &Arc<Checked>,
    deadline: Option<Duration>,
    scope: &Scope,
    report: &mut Report,
) -> Result<Sought, Error> {
    match at_hand(call, scope, report)? {
        Some(record) => Ok(Sought::Found(record)),
        None => seek_in_store(call, deadline, scope, report).await,
    }
}

/// The answer that takes no claim, because this process has it.
fn at_hand(
    call: &Checked,
    scope: &Scope,
    report: &mut Report,
) -> Result<Option<Arc<Record>>, Error> {
    let engine = &call.engine;
    if scope.context().is_some_and(|context| context.is_running(engine, &call.key)) {
        return Err(call.refused(ErrorKind::Reentrant));
    }
    if scope.is_shut_out(engine) {
        return Err(call.refused(ErrorKind::ShuttingDown));
    }
    let is_in_transaction =
        scope.context().is_some_and(|context| context.is_in_transaction_of(engine));
    if (is_in_transaction || is_in_body_of(&engine.store))
        && engine.store.capabilities().single_writer
    {
        let detail = "the call would wait for the transaction around it, which keeps all other writers of this store \
                      waiting: give it the transaction too (`tx = tx`)";
        return Err(call.refused(ErrorKind::Unsupported).with_detail(detail));
    }
    let near = engine.near_cache.as_ref().and_then(|near_cache| near_cache.get(&call.key));
    let is_near = near.is_some();
    let Some(record) = near.or_else(|| engine.result_in_memory(&call.key)) else { return Ok(None) };
    match judge(call, &record) {
        Judged::Final => {
            report.near_cached = is_near;
            Ok(Some(record))
        }
        Judged::Refused(error) => Err(error),
        // Nobody is at work on a result: ask the store.
        Judged::Busy => Ok(None),
    }
}

/// Leads or follows until there is an answer or a claim.
async fn seek_in_store(
    call: &Arc<Checked>,
    deadline: Option<Duration>,
    scope: &Scope,
    report: &mut Report,
) -> Result<Sought, Error> {
    let engine = &call.engine;
    engine.at_home().map_err(|error| error.of_record(Some(&call.operation), &call.key))?;
    engine.keeper.start().map_err(|error| {
        call.refused(ErrorKind::StoreUnavailable)
            .with_detail("the thread that renews leases could not be started")
            .with_source(error)
    })?;
    // Who has waited for another call, here or elsewhere, or was told of one.
    let mut has_met = report.waited;
    loop {
        // Who has a question asks it where the others get an error.
        let asks = call.policy == CrashPolicy::Verify;
        match engine.flights.join((
            call.key,
            call.fingerprint,
            call.former_fingerprints.clone(),
            asks,
        )) {
            Seat::Leader(leader) => {
                match lead(call, &leader, deadline, scope, report, &mut has_met).await {
                    Led::Granted(granted) => {
                        let observer = scope.observer().cloned();
                        return Ok(Sought::Running(Box::new(Running::new(
                            call.clone(),
                            *granted,
                            deadline,
                            leader,
                            observer,
                            report.clone(),
                        ))));
                    }
                    Led::Found(record) => {
                        leader.answer(stored(record.clone(), call.version));
                        return Ok(Sought::Found(record));
                    }
                    Led::Refused(error) => {
                        leader.answer(Answer::Refused(error.clone()));
                        return Err(error);
                    }
                    Led::OutOfTime(error) => return Err(error),
                }
            }
            Seat::Follower(flight) => {
                let answer = follow(call, &flight, deadline, report).await?;
                // Also where it went by unseen.
                has_met |= report.waited || flight.has_met();
                match answer {
                    Some(Answer::Stored(answer)) => {
                        report.joined = true;
                        return Ok(Sought::Found(answer.record));
                    }
                    // The leader may know of nobody, and go on without the store: then this caller
                    // knows of the leader.
                    Some(Answer::Refused(error)) => return Err(error.after_another(true)),
                    None => {}
                }
            }
        }
    }
}

/// Asks the store until it grants the claim, has an answer, or time is over.
async fn lead(
    call: &Arc<Checked>,
    leader: &Leader,
    deadline: Option<Duration>,
    scope: &Scope,
    report: &mut Report,
    has_met: &mut bool,
) -> Led {
    let engine = &call.engine;
    let mut late = 0;
    let mut next = call.fingerprint;
    loop {
        let claim = match new_claim(call) {
            Ok(claim) => {
                Claim { fingerprint: std::mem::replace(&mut next, call.fingerprint), ..claim }
            }
            Err(error) => return Led::Refused(error),
        };
        // In this order, and looked at again after each wait: a shutdown that begins after the look
        // waits for what is busy, and one that began before is seen here.
        let busy = engine.keeper.busy();
        if scope.is_shut_out(engine) {
            return Led::OutOfTime(call.refused(ErrorKind::ShuttingDown));
        }
        let near_cache = engine.near_cache.as_ref().map(|near_cache| near_cache.ask(call.key));
        let sent = engine.clock.monotonic();
        let mut found = match claim::send(engine, claim.clone(), scope).await {
            Err(_) if scope.is_shut_out(engine) => {
                return Led::OutOfTime(call.refused(ErrorKind::ShuttingDown));
            }
            Err(error) => return Led::Refused(store_error(call, error).after_another(*has_met)),
            // The record that an earlier release left is gone: the one that was made in its place
            // is not this call's, and would be that of every other request which was the same to
            // that release.
            Ok(Answered { claimed: Claimed::Mine(grant), repeated })
                if claim.fingerprint != call.fingerprint && grant.taken_over.is_none() =>
            {
                engine.give_back(&claim, repeated).await;
                continue;
            }
            Ok(Answered { claimed: Claimed::Mine(grant), repeated })
                if engine.may_start(sent, call.lease) =>
            {
                return Led::Granted(Box::new(Granted {
                    claim,
                    grant,
                    sent,
                    repeated,
                    _busy: busy,
                }));
            }
            Ok(Answered { claimed: Claimed::Mine(grant), repeated }) => {
                if grant.taken_over.is_some() {
                    *has_met = true;
                    leader.has_met();
                }
                // Released before the next claim, which would wait for this one otherwise.
                engine.give_back(&claim, repeated).await;
                if late == LATE_CLAIMS {
                    let detail = "the claim was granted so late that its lease could end before the body starts";
                    return Led::OutOfTime(
                        call.refused(ErrorKind::StoreUnavailable).with_detail(detail),
                    );
                }
                late += 1;
                continue;
            }
            Ok(Answered { claimed: Claimed::Held(record), repeated }) => {
                *has_met = true;
                leader.has_met();
                if repeated {
                    engine.give_back_later(&claim);
                }
                if is_former(call, &record, claim.fingerprint) {
                    next = record.fingerprint;
                    continue;
                }
                let record = Arc::new(record);
                if let Some(near_cache) = near_cache {
                    near_cache.found(&record);
                }
                Some(record)
            }
        };
        drop(busy);
        // Goes round while the record is read without a claim.
        while let Some(record) = found {
            match judge(call, &record) {
                Judged::Final => return Led::Found(record),
                Judged::Refused(error) => return Led::Refused(error),
                Judged::Busy => {
                    leader.busy();
                    let in_progress = || {
                        in_progress(
                            call,
                            Some(record.lease_until.saturating_duration_since(record.read_at)),
                        )
                    };
                    let Some(deadline) = deadline else { return Led::OutOfTime(in_progress()) };
                    let Some(_waiting) = Waiting::enter(engine) else {
                        return Led::OutOfTime(in_progress());
                    };
                    report.waited = true;
                    found = match wait::for_change(engine, call.key, deadline).await {
                        Ok(wait::Changed::Record(record)) => {
                            Some(record).filter(|record| !may_ask(call, record))
                        }
                        Ok(wait::Changed::Claimable) => None,
                        Ok(wait::Changed::OutOfTime) => return Led::OutOfTime(in_progress()),
                        // The store was asked for no longer than this caller waits.
                        Err(_) if engine.clock.monotonic() >= deadline => {
                            return Led::OutOfTime(in_progress());
                        }
                        Err(error) => {
                            return Led::Refused(store_error(call, error).after_another(true));
                        }
                    };
                }
            }
        }
    }
}

pub(super) fn new_claim(call: &Checked) -> Result<Claim, Error> {
    let token = call.engine.token().map_err(|error| {
        call.refused(ErrorKind::StoreUnavailable)
            .with_detail("no random numbers for the claim")
            .with_source(error)
    })?;
    let mut claim = Claim::new(call.key, token, call.operation.clone());
    claim.fingerprint = call.fingerprint;
    claim.policy = call.policy;
    claim.schema = call.version;
    claim.lease = call.lease;
    claim.linger = call.linger();
    claim.ttl = call.ttl;
    claim.after_expiry = call.after_expiry;
    claim.tell_expiry = call.engine.near_cache.is_some();
    Ok(claim)
}

fn store_error(call: &Checked, error: StoreError) -> Error {
    call.engine.store_error(error).of_record(Some(&call.operation), &call.key)
}

fn in_progress(call: &Checked, retry_after: Option<Duration>) -> Error {
    let error = call.refused(ErrorKind::InProgress);
    match retry_after {
        Some(retry_after) => error.with_retry_after(retry_after),
        None => error,
    }
}

/// Whether the record was left by this very call before its fingerprint changed, and a claim with
/// `sent` did not get it for that: a store lets only an equal fingerprint take over. The claim with
/// the record's own that follows has no reason to be sent again, whatever is found then.
fn is_former(call: &Checked, record: &Record, sent: Option<Fingerprint>) -> bool {
    let is_left =
        matches!(record.state, State::InProgress | State::InDoubt) && !record.is_running();
    is_left && record.fingerprint != sent && call.accepts(record.fingerprint)
}

pub(super) enum Judged {
    Final,
    Busy,
    Refused(Error),
}

/// What a record that stands in the way means to this call.
pub(super) fn judge(call: &Checked, record: &Record) -> Judged {
    if record.state != State::Tombstone && !call.accepts(record.fingerprint) {
        return Judged::Refused(call.refused(ErrorKind::Mismatch));
    }
    match record.state {
        State::Completed | State::Failed => Judged::Final,
        State::InDoubt => Judged::Refused(in_doubt(call, record)),
        State::InProgress if is_for_askers(call, record) => Judged::Refused(in_doubt(call, record)),
        State::Tombstone if record.reason == Some(Reason::Resolved) => {
            let left = record.expires.saturating_duration_since(record.read_at);
            let detail = "its record was removed while its body ran";
            Judged::Refused(
                call.refused(ErrorKind::InProgress).with_detail(detail).with_retry_after(left),
            )
        }
        State::Tombstone => Judged::Refused(call.refused(ErrorKind::Expired)),
        State::InProgress | State::Released => Judged::Busy,
    }
}

/// Whether this caller has a question, and the record's policy is content with an answer to it.
fn asks(call: &Checked, record: &Record) -> bool {
    call.policy == CrashPolicy::Verify && record.policy <= CrashPolicy::Verify
}

/// Whether the record's owner is gone, and only who asks the outside world goes on from there.
fn is_for_askers(call: &Checked, record: &Record) -> bool {
    record.is_orphaned()
        && record.policy == CrashPolicy::Verify
        && call.policy != CrashPolicy::Verify
}

fn may_ask(call: &Checked, record: &Record) -> bool {
    record.state == State::InDoubt && record.lease_until <= record.read_at && asks(call, record)
}

pub(super) fn in_doubt(call: &Checked, record: &Record) -> Error {
    let age = record.read_at.saturating_duration_since(record.created);
    let reason =
        record.reason.map_or_else(|| "its owner is gone".to_owned(), |reason| reason.to_string());
    let detail =
        format!("{reason}; attempt {}, first claimed {} ago", record.attempts, in_words(age));
    if asks(call, record) {
        let left = record.lease_until.saturating_duration_since(record.read_at);
        let seconds =
            Duration::from_secs(u64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u64::MAX));
        let detail = format!(
            "{detail}; a call with this key asks again, in {} at the earliest",
            in_words(seconds)
        );
        return call.refused(ErrorKind::InDoubt).with_detail(detail).with_retry_after(left);
    }
    let detail = match record.policy {
        CrashPolicy::Verify => {
            format!("{detail}; a call with `on_crash = verify` asks the outside world")
        }
        _ => detail,
    };
    call.refused(ErrorKind::InDoubt).with_detail(detail)
}

/// Whole seconds, in the two largest units.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, ..) => format!("{days}d {hours}h"),
    }
}

/// Waits for the leader's answer. `None`: it has none, or its lease is over, and the seat is free.
async fn follow(
    call: &Checked,
    flight: &Flight,
    deadline: Option<Duration>,
    report: &mut Report,
) -> Result<Option<Answer>, Error> {
    let clock = &call.engine.clock;
    let Some(_waiting) = Waiting::enter(&call.engine) else { return Err(in_progress(call, None)) };
    // Who refuses to wait still learns what the store answers to the leader: that takes no longer
    // than an own claim.
    let deadline_or_answer = deadline
        .unwrap_or_else(|| clock.monotonic().saturating_add(call.engine.settings.claim_timeout));
    let out_of_time = clock.sleep(deadline_or_answer.saturating_sub(clock.monotonic()));
    tokio::pin!(out_of_time);
    loop {
        // Before the look: a change in between wakes it too.
        let changed = flight.changed();
        match flight.stage() {
            Stage::Asking => {}
            Stage::Busy if deadline.is_none() => return Err(in_progress(call, None)),
            Stage::Busy => report.waited = true,
            Stage::Answered(answer) => return Ok(Some(answer)),
            Stage::Vacant => return Ok(None),
        }
        tokio::select! {
            biased;
            () = changed => {}
            () = flight.forsaken() => return Ok(None),
            () = &mut out_of_time => return Err(in_progress(call, None)),
        }
    }
}
