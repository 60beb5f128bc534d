//! Admission: decides whether a call replays a result, waits, is refused, or runs its body.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::busy::Busy;
use super::exit::{self, Exit};
use super::flight::{Flight, Leader, Seat, Stage};
use super::owner::Owner;
use super::report::Report;
use super::request::{CheckedCall, Request};
use super::store_client::ClaimReply;
use super::task_state::TaskState;
use super::transaction_calls::is_in_body_of;
use super::window::seek_in_windows;
use super::{Unprotected, Waiting, claim, wait};
use crate::error::{Error, ErrorKind};
use crate::events::{Outcome, Source};
use crate::fingerprint::Fingerprint;
use crate::outcome::{Answer, Ending, stored};
use crate::store::{Claim, ClaimOutcome, CrashPolicy, Grant, Reason, Record, State};

/// The outcome of admission.
pub(crate) enum Admission {
    /// Return this.
    Answer(Answer),
    /// Run the body under this claim.
    Run(Box<Owner>),
    /// Run the body without any protection: the operation is disabled.
    Bypass(TaskState, Unprotected),
}

impl Admission {
    /// Returns the call that runs under a claim.
    pub(crate) fn call(&self) -> Option<Arc<CheckedCall>> {
        match self {
            Self::Run(owner) => Some(owner.call.clone()),
            Self::Answer(_) | Self::Bypass(..) => None,
        }
    }
}

/// A claim that was granted, and the time at which it was first sent.
pub(super) struct Granted {
    pub(super) claim: Arc<Claim>,
    pub(super) grant: Grant,
    pub(super) sent: Duration,
    /// True if an earlier try of the claim may still be on its way.
    pub(super) repeated: bool,
    /// Held until the keeper keeps the claim.
    pub(super) _busy: Busy,
}

/// The result of the leader's queries.
enum Led {
    Granted(Box<Granted>),
    Found(Arc<Record>),
    /// Applies to every caller of this key.
    Refused(Error),
    /// Applies to this caller alone: it comes from the caller's own patience or lease.
    OwnRefusal(Error),
}

/// The number of times that a claim which came too late is sent again.
const LATE_CLAIMS: usize = 1;

pub(crate) async fn admit(request: Request) -> Admission {
    let call = match request.check() {
        Ok(call) => call,
        Err(invalid) => {
            return Admission::Answer(Answer::Refused(invalid.refused(&TaskState::current())));
        }
    };
    let task_state = TaskState::current();
    let report = Report::new(call.operation.clone(), call.key);
    if call.engine.operations.is_disabled(&call.operation) {
        let Some(unprotected) = Unprotected::enter(&call.engine, &task_state) else {
            return refuse(&call, &task_state, report, call.refused(ErrorKind::ShuttingDown));
        };
        tracing::warn!(operation = %call.operation, key = %call.key, "the operation is disabled: the body runs unprotected");
        exit::at_once(&call.engine, &task_state, report, Outcome::Bypassed);
        let task_state = task_state.of_body(unprotected.context(&call.operation, call.key));
        return Admission::Bypass(task_state, unprotected);
    }
    // A key with a window has more than one record.
    let answer = if call.windowed.is_none() { at_hand(&call, &task_state) } else { Ok(None) };
    match answer {
        // Boxed: a call that is answered by now does not carry the state of the path to the store.
        Ok(None) => Box::pin(admit_by_store(Arc::new(call), task_state, report)).await,
        Ok(Some((record, source))) => {
            let report = Report { attempt: record.attempts, ..report };
            exit::at_once(&call.engine, &task_state, report, Outcome::Replayed(source));
            Admission::Answer(stored(record, call.version))
        }
        Err(error) => refuse(&call, &task_state, report, error),
    }
}

async fn admit_by_store(
    call: Arc<CheckedCall>,
    task_state: TaskState,
    report: Report,
) -> Admission {
    let mut exit = Exit::new(&call, &task_state, report);
    let report = &mut exit.report;
    let (deadlines, mut met) = (Deadlines::of(&call), Met::default());
    let sought = match &call.windowed {
        None => seek_in_store(&call, deadlines, &task_state, report, &mut met)
            .await
            .map(|sought| (call.clone(), sought)),
        Some(windowed) => {
            seek_in_windows(&call, windowed, deadlines, &task_state, report, &mut met).await
        }
    };
    match sought {
        Ok((call, Sought::Found(record, source))) => {
            exit.report.attempt = record.attempts;
            exit.end(Outcome::Replayed(source));
            Admission::Answer(stored(record, call.version))
        }
        // The record requires verification, and this caller has no verification callback. Its body
        // does not run, even if a store has granted it the claim.
        Ok((call, Sought::Owner(owner)))
            if owner.must_ask() && call.policy != CrashPolicy::Verify =>
        {
            // The exit stays here: the end of the call is this refusal.
            let left = Record { reason: Some(Reason::Crashed), ..owner.grant.record.clone() };
            let ending =
                Ending::Unknown { reason: Reason::Crashed, ask_again_after: Duration::ZERO };
            owner.finish(ending).await;
            let error = in_doubt(&call, &left);
            exit.report.attempt = left.attempts;
            exit.end(Outcome::Refused(error.kind()));
            Admission::Answer(Answer::Refused(error))
        }
        Ok((_, Sought::Owner(mut owner))) => {
            owner.take_exit(exit);
            Admission::Run(owner)
        }
        Err(error) => {
            exit.end(Outcome::Refused(error.kind()));
            Admission::Answer(Answer::Refused(error.after_another(met.another)))
        }
    }
}

/// Refuses a call before anything was awaited.
fn refuse(call: &CheckedCall, task_state: &TaskState, report: Report, error: Error) -> Admission {
    exit::at_once(&call.engine, task_state, report, Outcome::Refused(error.kind()));
    Admission::Answer(Answer::Refused(error))
}

/// The deadlines of a call, on the monotonic clock. They count from its beginning, however many
/// records and leaders it waits for.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// The end of its waiting for a call that runs; `None` if it does not wait.
    waits: Option<Duration>,
    /// The end of its following of other callers in this process.
    follows: Duration,
}

impl Deadlines {
    fn of(call: &CheckedCall) -> Self {
        let now = call.engine.clock.monotonic();
        let waits = call.patience().map(|patience| now.saturating_add(patience));
        // A caller that does not wait still learns what the store answers its leaders. All of them
        // together take no longer than a claim of its own.
        let claim = call.engine.settings.claim_timeout;
        Self { waits, follows: waits.unwrap_or_else(|| now.saturating_add(claim)) }
    }
}

/// What a caller has learned about other calls with its key.
#[derive(Default)]
pub(super) struct Met {
    /// There is one, here or elsewhere: no later failure of the store is one of which this caller
    /// knows nothing else.
    pub(super) another: bool,
    /// It was refused for a call whose key has a window, and which has looked at its windows: its body
    /// may have begun.
    pub(super) has_chosen_window: bool,
}

pub(super) enum Sought {
    Found(Arc<Record>, Source),
    Owner(Box<Owner>),
}

/// Returns the answer that needs no claim because this process has it.
pub(super) fn at_hand(
    call: &CheckedCall,
    task_state: &TaskState,
) -> Result<Option<(Arc<Record>, Source)>, Error> {
    check_place(call, task_state)?;
    let engine = &call.engine;
    let near = engine.near_cache.as_ref().and_then(|near_cache| near_cache.get(&call.key));
    let found = near
        .map(|record| (record, Source::Near))
        .or_else(|| engine.local_result(&call.key).map(|record| (record, Source::Memory)));
    let Some((record, source)) = found else { return Ok(None) };
    match judge(call, &record) {
        Judged::Final => Ok(Some((record, source))),
        Judged::Refused(error) => Err(error),
        // Not reached: what is at hand are answers.
        Judged::NoAnswerYet => Ok(None),
    }
}

/// Refuses a call that cannot be made from here: inside itself, during a shutdown, or in a
/// transaction for which it would wait.
fn check_place(call: &CheckedCall, task_state: &TaskState) -> Result<(), Error> {
    let engine = &call.engine;
    if task_state.context().is_some_and(|context| context.is_running(engine, &call.key)) {
        return Err(call.refused(ErrorKind::Reentrant));
    }
    if task_state.is_shut_out(engine) {
        return Err(call.refused(ErrorKind::ShuttingDown));
    }
    if waits_for_transaction_around(engine, task_state) {
        let detail = "the call would wait for the transaction around it, which blocks all other \
            writers of this store: pass it the transaction too (`tx = tx`)";
        return Err(call.refused(ErrorKind::Unsupported).with_detail(detail));
    }
    Ok(())
}

/// Returns true if what is written to the store here would wait for the transaction around it, which
/// blocks all other writers, as far as a call in it has recorded.
pub(crate) fn waits_for_transaction_around(engine: &Inner, task_state: &TaskState) -> bool {
    let is_in_transaction =
        || task_state.context().is_some_and(|context| context.is_in_transaction_of(engine));
    engine.store.capabilities().single_writer
        && (is_in_transaction() || is_in_body_of(&engine.store))
}

/// Leads or follows until there is an answer or a claim. Waits for other callers until their
/// deadline, or not at all. Notes in `met` what this caller learns about other calls, in whichever
/// of its records.
pub(super) async fn seek_in_store(
    call: &Arc<CheckedCall>,
    deadlines: Deadlines,
    task_state: &TaskState,
    report: &mut Report,
    met: &mut Met,
) -> Result<Sought, Error> {
    let engine = &call.engine;
    engine.at_home().map_err(|error| error.of_record(Some(&call.operation), &call.key))?;
    engine.keeper.start().map_err(|error| {
        call.refused(ErrorKind::StoreUnavailable)
            .with_detail("the thread that renews leases could not be started")
            .with_source(error)
    })?;
    let deadline = deadlines.waits;
    loop {
        // A caller with a verification callback verifies where others get an error, so the two do
        // not share a flight.
        let asks = call.policy == CrashPolicy::Verify;
        match engine.flights.join((
            call.key,
            call.fingerprint,
            call.former_fingerprints.clone(),
            asks,
        )) {
            Seat::Leader(leader) => {
                met.another |= leader.has_met();
                match lead(call, &leader, deadline, task_state, report, met).await {
                    Led::Granted(granted) => {
                        let owner = Owner::new(call.clone(), *granted, deadline, leader);
                        return Ok(Sought::Owner(Box::new(owner)));
                    }
                    Led::Found(record) => {
                        leader.answer(stored(record.clone(), call.version));
                        return Ok(Sought::Found(record, Source::Store));
                    }
                    Led::Refused(error) => {
                        leader.answer(Answer::Refused(error.clone()));
                        return Err(error);
                    }
                    Led::OwnRefusal(error) => return Err(error),
                }
            }
            Seat::Follower(flight) => {
                let answer = follow(call, &flight, deadlines, report).await;
                // Also if this follower did not see the stage in which the leader met another call.
                met.another |= report.waited || flight.has_met();
                met.has_chosen_window = flight.has_chosen_window();
                match answer? {
                    Some(Answer::Stored(answer)) => {
                        return Ok(Sought::Found(answer.record, Source::Joined));
                    }
                    // A leader that knows of no other call may run without the store. This caller
                    // knows of the leader.
                    Some(Answer::Refused(error)) => {
                        met.another = true;
                        return Err(error);
                    }
                    None => {}
                }
            }
        }
    }
}

/// Queries the store until it grants the claim, has an answer, or time runs out.
async fn lead(
    call: &Arc<CheckedCall>,
    leader: &Leader,
    deadline: Option<Duration>,
    task_state: &TaskState,
    report: &mut Report,
    met: &mut Met,
) -> Led {
    let engine = &call.engine;
    if met.another {
        leader.note_other_call();
    }
    let mut late = 0;
    // Another one for one claim only: a record with a former fingerprint of this call was found.
    let mut claimed_fingerprint = call.fingerprint;
    loop {
        let claim = match new_claim(call) {
            Ok(claim) => Arc::new(Claim { fingerprint: claimed_fingerprint, ..claim }),
            Err(error) => return Led::Refused(error),
        };
        claimed_fingerprint = call.fingerprint;
        // Busy first, then the check, and both again after each wait. Either a shutdown begins
        // after the check, and then it waits for everything busy, this claim included; or it began
        // before the check, and is seen here. So no claim is sent that a shutdown does not know of.
        let busy = engine.keeper.busy();
        if task_state.is_shut_out(engine) {
            return Led::OwnRefusal(call.refused(ErrorKind::ShuttingDown));
        }
        let near_cache =
            engine.near_cache.as_ref().map(|near_cache| near_cache.begin_lookup(call.key));
        let sent = engine.clock.monotonic();
        let record = match claim::send(engine, claim.clone(), task_state).await {
            Err(_) if task_state.is_shut_out(engine) => {
                return Led::OwnRefusal(call.refused(ErrorKind::ShuttingDown));
            }
            Err(error) => return Led::Refused(call.store_error(error)),
            // The record with the former fingerprint is gone, and the claim has created a new one
            // in its place. That record does not identify this call: it would match every other
            // request that had the same fingerprint in the former release. So it is released, and
            // the claim is sent again.
            Ok(ClaimReply { claimed: ClaimOutcome::Granted(grant), repeated })
                if claim.fingerprint != call.fingerprint && grant.taken_over.is_none() =>
            {
                claim::release_granted(engine, &claim, repeated).await;
                continue;
            }
            Ok(ClaimReply { claimed: ClaimOutcome::Granted(grant), repeated })
                if engine.may_start(sent, call.lease) =>
            {
                // The body may not start yet: another window may be looked at first.
                met.another |= grant.taken_over.is_some();
                return Led::Granted(Box::new(Granted {
                    claim,
                    grant,
                    sent,
                    repeated,
                    _busy: busy,
                }));
            }
            Ok(ClaimReply { claimed: ClaimOutcome::Granted(grant), repeated }) => {
                if grant.taken_over.is_some() {
                    met.another = true;
                    leader.note_other_call();
                }
                // Released before the next claim, which would otherwise wait for this one.
                claim::release_granted(engine, &claim, repeated).await;
                if late == LATE_CLAIMS {
                    let detail = "the claim was granted so late that its lease could expire before \
                        the body starts";
                    return Led::OwnRefusal(
                        call.refused(ErrorKind::StoreUnavailable).with_detail(detail),
                    );
                }
                late += 1;
                continue;
            }
            // Also a finished result: every replay from the store comes through here.
            Ok(ClaimReply { claimed: ClaimOutcome::Existing(record), repeated }) => {
                met.another = true;
                report.attempt = record.attempts;
                leader.note_other_call();
                if repeated {
                    claim::release_denied(engine, &claim);
                }
                if is_former(call, &record, claim.fingerprint) {
                    claimed_fingerprint = record.fingerprint;
                    continue;
                }
                let record = Arc::new(record);
                if let Some(near_cache) = near_cache {
                    near_cache.found(&record);
                }
                record
            }
        };
        drop(busy);
        if let Some(led) = wait_for_other(call, leader, deadline, report, met, record).await {
            return led;
        }
    }
}

/// Waits on the record of another call for as long as it can be read without a claim. Returns
/// `None` if the next step is a claim.
async fn wait_for_other(
    call: &Arc<CheckedCall>,
    leader: &Leader,
    deadline: Option<Duration>,
    report: &mut Report,
    met: &mut Met,
    mut record: Arc<Record>,
) -> Option<Led> {
    let engine = &call.engine;
    loop {
        match judge(call, &record) {
            Judged::Final => return Some(Led::Found(record)),
            Judged::Refused(error) => return Some(Led::Refused(error)),
            Judged::NoAnswerYet => {}
        }
        met.has_chosen_window = record.checkpoints > 0;
        leader.claimed_elsewhere(met.has_chosen_window);
        let give_up_waiting = || {
            let left = record.lease_until.saturating_duration_since(record.read_at);
            Some(Led::OwnRefusal(in_progress(call, Some(left))))
        };
        let Some(deadline) = deadline else { return give_up_waiting() };
        let Some(_waiting) = Waiting::enter(engine) else { return give_up_waiting() };
        report.waited = true;
        record = match wait::for_change(engine, call.key, deadline).await {
            Ok(wait::WaitOutcome::Record(record)) if may_ask(call, &record) => return None,
            Ok(wait::WaitOutcome::Record(record)) => record,
            Ok(wait::WaitOutcome::Claimable) => return None,
            Ok(wait::WaitOutcome::OutOfTime) => return give_up_waiting(),
            // The store was queried for no longer than this caller waits.
            Err(_) if engine.clock.monotonic() >= deadline => return give_up_waiting(),
            Err(error) => return Some(Led::Refused(call.store_error(error))),
        };
    }
}

pub(super) fn new_claim(call: &CheckedCall) -> Result<Claim, Error> {
    let token = call.engine.token().map_err(|error| {
        call.refused(ErrorKind::StoreUnavailable)
            .with_detail("no random numbers are available for the claim")
            .with_source(error)
    })?;
    let mut claim = Claim::new(call.key, token, call.operation.clone());
    claim.namespace = call.engine.settings.namespace.clone();
    claim.holder = call.engine.settings.instance.clone();
    claim.trace = call.engine.trace();
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

fn in_progress(call: &CheckedCall, retry_after: Option<Duration>) -> Error {
    let error = call.refused(ErrorKind::InProgress);
    match retry_after {
        Some(retry_after) => error.with_retry_after(retry_after),
        None => error,
    }
}

/// Returns true if the record was left by this very call before its fingerprint changed, and a
/// claim with `sent` was denied for that reason: a store lets only an equal fingerprint take over.
/// The next claim carries the record's own fingerprint, and is not denied for this reason again.
fn is_former(call: &CheckedCall, record: &Record, sent: Option<Fingerprint>) -> bool {
    let is_left =
        matches!(record.state, State::InProgress | State::InDoubt) && !record.is_running();
    is_left && record.fingerprint != sent && call.accepts(record.fingerprint)
}

pub(super) enum Judged {
    Final,
    NoAnswerYet,
    Refused(Error),
}

/// Judges what a record that was found means for this call.
pub(super) fn judge(call: &CheckedCall, record: &Record) -> Judged {
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
        State::InProgress | State::Released => Judged::NoAnswerYet,
    }
}

/// Returns true if this caller has a verification callback and the record's policy accepts its
/// verdict.
fn asks(call: &CheckedCall, record: &Record) -> bool {
    call.policy == CrashPolicy::Verify && record.policy <= CrashPolicy::Verify
}

/// Returns true if the record's owner is gone and the record requires a verification callback,
/// which this caller does not have.
fn is_for_askers(call: &CheckedCall, record: &Record) -> bool {
    record.is_orphaned()
        && record.policy == CrashPolicy::Verify
        && call.policy != CrashPolicy::Verify
}

fn may_ask(call: &CheckedCall, record: &Record) -> bool {
    record.state == State::InDoubt && record.lease_until <= record.read_at && asks(call, record)
}

pub(super) fn in_doubt(call: &CheckedCall, record: &Record) -> Error {
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

/// Formats whole seconds in the two largest units.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, ..) => format!("{days}d {hours}h"),
    }
}

/// Waits for the leader's answer. Returns `None` if there is none or the leader's lease has
/// expired: the leader's place is free.
async fn follow(
    call: &CheckedCall,
    flight: &Flight,
    deadlines: Deadlines,
    report: &mut Report,
) -> Result<Option<Answer>, Error> {
    let clock = &call.engine.clock;
    let Some(_waiting) = Waiting::enter(&call.engine) else { return Err(in_progress(call, None)) };
    let out_of_time = clock.sleep(deadlines.follows.saturating_sub(clock.monotonic()));
    tokio::pin!(out_of_time);
    loop {
        // Created before the stage is read: a change in between wakes it too.
        let changed = flight.changed();
        match flight.stage() {
            Stage::Querying => {}
            Stage::Claimed if deadlines.waits.is_none() => return Err(in_progress(call, None)),
            Stage::Claimed => report.waited = true,
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
