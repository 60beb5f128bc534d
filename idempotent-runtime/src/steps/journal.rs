//! The steps of one attempt: the recorded ones, the requested ones, and the single writer of their
//! checkpoints.
//!
//! A checkpoint holds all recorded steps. Only one is under way at a time, and the next is not sent
//! before the answer to the previous one is known. So steps that finish at the same time do not
//! overwrite each other, and a lost answer does not lose a step. No step begins while an answer is
//! missing that no other step waits for: one that was given up, or one about a dropped step, which
//! only the background follows.
//!
//! Steps run in other tasks too, so the end of the body and the start of a step can race. One lock
//! decides between them. A step that began before the journal was [closed](Journal::close) is seen
//! by the code that decides about the claim, and a step that comes later is rejected before its
//! body runs. There is no third case.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::checkpoint::{Recorded, Unreadable, decode, encode};
use super::identity::StepId;
use crate::encoding::{NotEncodable, Redacted};
use crate::engine::Inner;
use crate::engine::lease::Lease;
use crate::engine::retry::Budget;
use crate::error::{Error, ErrorKind};
use crate::key::KeyHash;
use crate::lock::Mutex;
use crate::outcome::refused;
use crate::store::{Checkpoint, Operation, Record, StoreError, StoreErrorKind};

pub(crate) struct Journal {
    operation: Arc<str>,
    lease: Arc<Lease>,
    /// The maximum size of a checkpoint in bytes.
    limit: usize,
    steps: Mutex<Steps>,
    writer: tokio::sync::Mutex<Writer>,
    /// Notified when a step has ended, and is on the record if it belongs there, or when the
    /// background has an answer.
    step_ended: Notify,
}

/// The missing answer to a checkpoint of a dropped step. It counts as missing until this is
/// dropped.
pub(super) struct Unheard(Arc<Journal>);

impl Unheard {
    pub(super) fn new(journal: &Arc<Journal>) -> Self {
        journal.steps().unheard += 1;
        Self(journal.clone())
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.steps().unheard -= 1;
        self.0.step_ended.notify_waiters();
    }
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
struct Steps {
    recorded: BTreeMap<StepId, Recorded>,
    /// What became of steps that have ended, where the checkpoint was given up, or none could be
    /// sent in time because it was another one's turn, or where a start is on the record of a step
    /// that will not run. It is a part of the next checkpoint.
    postponed: BTreeMap<StepId, Option<Recorded>>,
    /// The identities that this attempt has used.
    asked: BTreeSet<StepId>,
    /// The steps that are running or about to run.
    running: BTreeMap<StepId, Progress>,
    /// The number of answers that only the background waits for.
    unheard: usize,
    /// True if a step may have had its effect without being recorded.
    unsettled: bool,
    /// True if the store has reported that this attempt no longer holds the claim.
    superseded: bool,
    /// True if the body got an error because its claim is lost, or because the store has not
    /// confirmed something that it needs.
    cut_short: bool,
    /// True once the body has ended or was given up: no step begins any more.
    closed: bool,
}

/// The progress of a step that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has had no effect yet, or reports that it had none, and is checked once more before it
    /// has one.
    Asked,
    /// Its body runs.
    Running,
    /// Its body has ended, and its result is on its way to the record.
    Recording,
}

#[derive(Default)]
struct Writer {
    /// The number of the next checkpoint.
    sequence: u32,
    /// A checkpoint that was sent, and may have been applied.
    unanswered: Option<Sent>,
}

struct Sent {
    body: Bytes,
    changes: BTreeMap<StepId, Option<Recorded>>,
}

/// Returns true unless it is the start of a step.
fn is_of_an_end(recorded: Option<&Recorded>) -> bool {
    !matches!(recorded, Some(Recorded::Started))
}

/// The change that a checkpoint makes to one step; `None` forgets it.
pub(super) type Change = (StepId, Option<Recorded>);

/// The reason why a checkpoint was not written, as far as it is known.
#[derive(Debug)]
pub(super) enum Unwritten {
    Superseded,
    /// The checkpoint would take this many bytes.
    TooLarge(usize),
    NotEncodable(NotEncodable),
    Unknown(StoreError),
}

impl Unwritten {
    fn not_encodable(error: serde_json::Error) -> Self {
        Self::NotEncodable(error.into())
    }
}

impl Journal {
    /// Creates the journal of an attempt that continues from the checkpoint on `record`.
    pub(crate) fn of(
        operation: &Arc<str>,
        record: &Record,
        lease: Arc<Lease>,
        limit: usize,
    ) -> Result<Self, Error> {
        let recorded = decode(&record.body)
            .map_err(|unreadable| unread(operation, &record.key, unreadable))?;
        let steps = Mutex::new(Steps { recorded, ..Steps::default() });
        let writer =
            tokio::sync::Mutex::new(Writer { sequence: record.checkpoints, unanswered: None });
        Ok(Self {
            operation: operation.clone(),
            lease,
            limit,
            steps,
            writer,
            step_ended: Notify::new(),
        })
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock()
    }

    pub(super) fn refused(&self, kind: ErrorKind, step: &StepId) -> Error {
        refused(kind, &self.operation, &self.lease.key).of_step(step)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns what is recorded of `step`, or `None` if it must run. It then counts as running
    /// until [`ended`](Self::ended).
    pub(super) fn ask(&self, step: &StepId) -> Result<Option<Recorded>, Error> {
        let mut steps = self.steps();
        self.check(&mut steps, step)?;
        // Under the lock, as in `stands_in_line`: a body that waits for its turn has begun when it
        // comes to a step, in whichever task. A shutdown was faster only if the lease is lost too.
        if !self.lease.begin() {
            self.cut_short(&mut steps);
            return Err(self.refused(ErrorKind::Superseded, step).would_repeat());
        }
        if !steps.asked.insert(step.clone()) {
            return Err(self
                .refused(ErrorKind::Config, step)
                .with_detail("this attempt has used its identity before"));
        }
        if let Some(recorded) = steps.recorded.get(step) {
            return Ok(Some(recorded.clone()));
        }
        // Whatever its outcome, there must be room to record that it ran.
        match steps.checkpoint(Some((step, Some(&Recorded::NotEncodable))), true) {
            Ok(body) if body.len() <= self.limit => {}
            _ => {
                let detail =
                    format!("there is no room for it within {} bytes: it did not run", self.limit);
                return Err(self.refused(ErrorKind::TooLarge, step).with_detail(detail));
            }
        }
        steps.running.insert(step.clone(), Progress::Asked);
        Ok(None)
    }

    /// Rejects running anything once another attempt may do so.
    fn check(&self, steps: &mut Steps, step: &StepId) -> Result<(), Error> {
        let is_lost = steps.superseded || self.lease.is_lost();
        if !steps.closed && !is_lost {
            return Ok(());
        }
        self.cut_short(steps);
        let superseded = self.refused(ErrorKind::Superseded, step).would_repeat();
        Err(if steps.closed {
            superseded.with_detail("the body of the call has ended")
        } else {
            superseded
        })
    }

    /// Like [`note_cut_short`](Self::note_cut_short). What comes after the end of the body has no
    /// part in it.
    fn cut_short(&self, steps: &mut Steps) {
        // A shutdown closes the journal too, while the body runs.
        steps.cut_short |= !self.lease.has_body_ended();
    }

    /// Marks that the body gets an error because its claim is lost, or because the store has not
    /// confirmed something that it needs.
    pub(crate) fn note_cut_short(&self) {
        self.cut_short(&mut self.steps());
    }

    /// Returns true if an error of the body may say no more than that the engine cut it short.
    pub(crate) fn was_cut_short(&self) -> bool {
        self.steps().cut_short
    }

    /// Marks that the body of `step` runs from now on, unless it must not.
    pub(super) fn begin(&self, step: &StepId) -> Result<(), Error> {
        let mut steps = self.steps();
        self.check(&mut steps, step)?;
        steps.running.insert(step.clone(), Progress::Running);
        Ok(())
    }

    /// Marks that the body of `step` no longer runs, although `step` has not ended.
    pub(super) fn goes_on(&self, step: &StepId, progress: Progress) {
        if let Some(running) = self.steps().running.get_mut(step) {
            *running = progress;
        }
    }

    /// Marks that `step` has ended. If its body was running, or its result was on its way, its outcome
    /// is unknown: a checkpoint may have broken off, by a panic of the store's client for example.
    pub(super) fn ended(&self, step: &StepId) {
        {
            let mut steps = self.steps();
            match steps.running.remove(step) {
                None => {}
                Some(Progress::Asked) => steps.take_back_start(step),
                Some(Progress::Running) => steps.unsettled = true,
                Some(Progress::Recording) => {
                    steps.unsettled = true;
                    self.cut_short(&mut steps);
                }
            }
        }
        self.step_ended.notify_waiters();
    }

    /// Prevents further steps from beginning. Those that run are known to
    /// [`tells_of_effects`](Self::tells_of_effects). Returns true if this attempt has come to a step,
    /// of its own or of an earlier attempt.
    pub(crate) fn close(&self) -> bool {
        let mut steps = self.steps();
        steps.closed = true;
        !steps.asked.is_empty()
    }

    /// Marks that a step may have had an effect of which there is no record.
    pub(super) fn unsettled(&self) {
        self.steps().unsettled = true;
    }

    /// Returns true if releasing the claim would forget an effect: that of a step that is recorded,
    /// that was interrupted, or that runs in another task with an outcome that is not known. The
    /// journal must be closed and settled.
    pub(crate) fn tells_of_effects(&self) -> bool {
        let steps = self.steps();
        let runs = steps.running.values().any(|progress| *progress != Progress::Asked);
        steps.unsettled || runs || !steps.recorded.is_empty()
    }

    /// Returns true if the record may say something else of the steps than this journal, because a
    /// checkpoint is on its way, without an answer or still to be sent.
    pub(crate) fn owes(&self) -> bool {
        let is_sent = self.writer.try_lock().is_ok_and(|writer| writer.unanswered.is_none());
        !is_sent || !self.steps().postponed.is_empty()
    }

    /// Marks that nothing has happened under the claim yet: its body waits for its turn. A body that
    /// has come to a step has begun, whatever it says, and so has one that has ended: a task that it
    /// has left behind may still have its turn.
    pub(crate) fn stands_in_line(&self) {
        let steps = self.steps();
        if steps.asked.is_empty() && !steps.closed {
            self.lease.mark_waiting();
        }
    }

    /// Marks that something may have happened from now on, as the turn of the body has come. Returns
    /// false if the claim has ended, or is about to: then nothing may happen.
    ///
    /// Under the lock, as the start of a step. A task that the body has left behind either begins
    /// before the journal is closed, or not at all: by then the claim may be another caller's,
    /// although the lease has not expired.
    pub(crate) fn begins_turn(&self) -> bool {
        let steps = self.steps();
        !steps.closed && self.lease.may_start() && self.lease.begin()
    }

    /// The error for a result that leaves out a step which an earlier attempt has recorded.
    pub(crate) fn unasked(&self) -> Option<Error> {
        let steps = self.steps();
        let step = steps.recorded.keys().find(|step| !steps.asked.contains(step))?;
        let detail = format!(
            "`{step}` is recorded and the body did not ask for it, so its result was not stored"
        );
        Some(self.refused(ErrorKind::Decode, step).with_detail(detail))
    }

    /// Returns true if no checkpoint is under way or about to be, and none was given up.
    pub(crate) fn is_settled(&self) -> bool {
        let is_recording =
            self.steps().running.values().any(|progress| *progress == Progress::Recording);
        let is_free = self.writer.try_lock().is_ok_and(|writer| writer.unanswered.is_none());
        !is_recording && is_free && self.steps().postponed.is_empty()
    }

    /// Resolves when no checkpoint is under way or about to be, after `patience` at the latest: a
    /// step that is no longer polled makes no progress.
    pub(crate) async fn settled(&self, engine: &Inner, patience: Duration) {
        self.settles(engine, patience, false).await;
    }

    /// Like [`settled`](Self::settled), before the record is left to others. A checkpoint that was
    /// given up because the store did not answer in time is sent once more: the next caller would
    /// otherwise run a step again whose result is in hand.
    pub(crate) async fn flushed(&self, engine: &Inner, patience: Duration) {
        self.settles(engine, patience, true).await;
    }

    async fn settles(&self, engine: &Inner, patience: Duration, sends_again: bool) {
        let end = engine.clock.monotonic().saturating_add(patience);
        let all_recorded = async {
            loop {
                // Created before the check: a step that ends in between wakes it too.
                let step_ended = self.step_ended.notified();
                if !self.steps().running.values().any(|progress| *progress == Progress::Recording) {
                    break;
                }
                step_ended.await;
            }
            let mut writer = self.writer.lock().await;
            if sends_again {
                let mut flushing = pin!(self.flush(engine, &mut writer, end));
                // What is left out is known to `tells_of_effects`. The record has to be left also
                // where the store's client panics.
                poll_fn(|cx| {
                    let poll = AssertUnwindSafe(|| flushing.as_mut().poll(cx));
                    catch_unwind(poll).map_or(Poll::Ready(()), |polled| polled.map(drop))
                })
                .await;
            }
        };
        tokio::select! {
            biased;
            () = all_recorded => {}
            // Only a start can be on its way without being seen as a running step: of a step that
            // will not run, so this is more careful than it has to be.
            () = engine.clock.sleep(patience) => self.unsettled(),
        }
    }

    /// Ensures that no answer is missing, unless another step is waiting for it at this moment.
    pub(super) async fn catch_up(&self, engine: &Inner) -> Result<(), Unwritten> {
        let patience = engine.settings.commit_timeout;
        let end = engine.clock.monotonic().saturating_add(patience);
        tokio::select! {
            biased;
            () = self.all_are_heard() => {}
            () = engine.clock.sleep(patience) => {
                let error = StoreError::new(StoreErrorKind::Unavailable, Operation::Checkpoint);
                let detail = format!("no answer about a step that was dropped within {patience:?}");
                return Err(Unwritten::Unknown(error.with_detail(detail)));
            }
        }
        match self.writer.try_lock() {
            Ok(mut writer) => {
                self.follow(engine, &mut writer, end).await?;
                self.flush(engine, &mut writer, end).await
            }
            Err(_) => Ok(()),
        }
    }

    /// Sends again what was given up, and what was postponed.
    async fn flush(
        &self,
        engine: &Inner,
        writer: &mut Writer,
        end: Duration,
    ) -> Result<(), Unwritten> {
        self.follow(engine, writer, end).await?;
        {
            let mut steps = self.steps();
            steps.take_back_starts();
            if steps.postponed.is_empty() {
                return Ok(());
            }
            steps.fit(self.limit);
            let body = steps.checkpoint(None, false).map_err(Unwritten::not_encodable)?;
            writer.unanswered = Some(Sent { body, changes: steps.postponed.clone() });
        }
        self.follow(engine, writer, end).await
    }

    /// Resolves when the background no longer waits for an answer: it has them all, or has given
    /// up.
    async fn all_are_heard(&self) {
        loop {
            // Created before the check: an answer that arrives in between wakes it too.
            let step_ended = self.step_ended.notified();
            if self.steps().unheard == 0 {
                return;
            }
            step_ended.await;
        }
    }

    /// Records `change`, and waits at most `commit_timeout` for the store.
    pub(super) async fn write(&self, engine: &Inner, change: Change) -> Result<(), Unwritten> {
        let end = engine.clock.monotonic().saturating_add(engine.settings.commit_timeout);
        let ready = async {
            let mut writer = self.writer_by(engine, end).await?;
            self.follow(engine, &mut writer, end).await?;
            Ok(writer)
        };
        let mut writer = match ready.await {
            Err(Unwritten::Unknown(error)) => {
                if is_of_an_end(change.1.as_ref()) {
                    self.steps().postponed.insert(change.0, change.1);
                }
                return Err(Unwritten::Unknown(error));
            }
            ready => ready?,
        };
        let (body, postponed) = {
            let mut steps = self.steps();
            steps.fit(self.limit);
            // The step will not run, so its start must not be written.
            let will_not_run = steps.closed || self.lease.is_lost();
            if will_not_run && matches!(change.1, Some(Recorded::Started)) {
                return Err(Unwritten::Superseded);
            }
            let (step, recorded) = (&change.0, change.1.as_ref());
            let size = steps
                .checkpoint(Some((step, recorded)), true)
                .map_err(Unwritten::not_encodable)?
                .len();
            if size > self.limit {
                return Err(Unwritten::TooLarge(size));
            }
            let body = steps
                .checkpoint(Some((step, recorded)), false)
                .map_err(Unwritten::not_encodable)?;
            (body, steps.postponed.clone())
        };
        let mut changes = postponed;
        changes.insert(change.0, change.1);
        writer.unanswered = Some(Sent { body, changes });
        self.follow(engine, &mut writer, end).await
    }

    /// Locks the writer, by `end` at the latest: a step that is no longer polled while it is
    /// recorded does not release it.
    async fn writer_by(
        &self,
        engine: &Inner,
        end: Duration,
    ) -> Result<tokio::sync::MutexGuard<'_, Writer>, Unwritten> {
        let left = end.saturating_sub(engine.clock.monotonic());
        tokio::select! {
            biased;
            writer = self.writer.lock() => Ok(writer),
            () = engine.clock.sleep(left) => {
                let error = StoreError::new(StoreErrorKind::Unavailable, Operation::Checkpoint);
                let detail = format!("another step has been on its way to the record for {left:?}");
                Err(Unwritten::Unknown(error.with_detail(detail)))
            }
        }
    }

    /// Sends the unanswered checkpoint, with the same number, until its answer is known.
    async fn follow(
        &self,
        engine: &Inner,
        writer: &mut Writer,
        end: Duration,
    ) -> Result<(), Unwritten> {
        let Some(sent) = &writer.unanswered else { return Ok(()) };
        let (key, token) = (self.lease.key, self.lease.token);
        let checkpoint = Checkpoint::new(key, token, writer.sequence, sent.body.clone());
        let left = end.saturating_sub(engine.clock.monotonic());
        let written = engine.store.checkpoint(Budget::of(left), checkpoint).await;
        let written = written.map_err(|error| {
            // Whether or not it is on the record, it takes its room.
            let ends = sent.changes.iter().filter(|(_, recorded)| is_of_an_end(recorded.as_ref()));
            let ends = ends.map(|(step, recorded)| (step.clone(), recorded.clone()));
            self.steps().postponed.extend(ends);
            Unwritten::Unknown(error)
        })?;
        if !written.is_done() {
            self.steps().superseded = true;
            return Err(Unwritten::Superseded);
        }
        writer.sequence = writer.sequence.saturating_add(1);
        if let Some(Sent { changes, .. }) = writer.unanswered.take() {
            let mut steps = self.steps();
            for (step, recorded) in changes {
                steps.apply(step, recorded);
            }
        }
        Ok(())
    }
}

impl Steps {
    /// Encodes the checkpoint with what was postponed, and one more step changed. With `room`, it
    /// includes a marker for each running step, for which there must be room.
    fn checkpoint(
        &self,
        change: Option<(&StepId, Option<&Recorded>)>,
        room: bool,
    ) -> Result<Bytes, serde_json::Error> {
        let mut steps: BTreeMap<_, _> = self.recorded.iter().collect();
        let postponed = self.postponed.iter().map(|(step, recorded)| (step, recorded.as_ref()));
        if room {
            for step in self.running.keys() {
                steps.entry(step).or_insert(&Recorded::NotEncodable);
            }
        }
        for (step, recorded) in postponed.chain(change) {
            match recorded {
                Some(recorded) => steps.insert(step, recorded),
                None => steps.remove(step),
            };
        }
        encode(&steps)
    }

    /// Makes room for what was postponed, and for a marker of each running step: a result for which
    /// there is none is marked as too large, as it would have been on a checkpoint of its own.
    fn fit(&mut self, limit: usize) {
        while !self.postponed.is_empty()
            && self.checkpoint(None, true).is_ok_and(|body| body.len() > limit)
        {
            let finished =
                |recorded: &&mut Option<Recorded>| matches!(recorded, Some(Recorded::Finished(_)));
            let Some(recorded) = self.postponed.values_mut().rev().find(finished) else { return };
            *recorded = Some(Recorded::TooLarge);
        }
    }

    /// Postpones that the start of `step` is removed from the record, if it is there: the step has
    /// ended, or will not go on, and has had no effect.
    fn take_back_start(&mut self, step: &StepId) {
        if let Some(Recorded::Started) = self.recorded.get(step) {
            self.recorded.remove(step);
            self.postponed.insert(step.clone(), None);
        }
    }

    /// Like [`take_back_start`](Self::take_back_start), of the steps that are kept from going on
    /// once the journal is closed.
    fn take_back_starts(&mut self) {
        if !self.closed {
            return;
        }
        let asked = self.running.iter().filter(|(_, progress)| **progress == Progress::Asked);
        for step in asked.map(|(step, _)| step.clone()).collect::<Vec<_>>() {
            self.take_back_start(&step);
        }
    }

    fn apply(&mut self, step: StepId, recorded: Option<Recorded>) {
        self.postponed.remove(&step);
        match recorded {
            // The answer came too late, so the step did not run.
            Some(Recorded::Started) if !self.running.contains_key(&step) => {
                self.postponed.insert(step, None);
            }
            Some(recorded) => {
                self.recorded.insert(step, recorded);
            }
            None => {
                self.recorded.remove(&step);
            }
        }
    }
}

fn unread(operation: &Arc<str>, key: &KeyHash, unreadable: Unreadable) -> Error {
    let error = refused(ErrorKind::Decode, operation, key);
    match unreadable {
        Unreadable::Version(version) => error.with_detail(format!(
            "its steps are recorded in version {version}, which this release does not know"
        )),
        Unreadable::Malformed(source) => {
            error.with_detail("its recorded steps are damaged").with_source(Redacted::of(&source))
        }
        Unreadable::Twice(step) => {
            error.with_detail(format!("its recorded steps are damaged: `{step}` is recorded twice"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Journal, Progress};
    use crate::clock::SystemClock;
    use crate::engine::lease::{Lease, Term};
    use crate::key::KeyHash;
    use crate::steps::identity::StepId;
    use crate::store::{CrashPolicy, Record, Token};

    fn journal() -> Journal {
        let (key, token) = (KeyHash::from_bytes([7; 32]), Token::from_bits(9));
        let operation: Arc<str> = "payments.charge".into();
        let (minute, clock) = (Duration::from_secs(60), Arc::new(SystemClock::new()));
        let lease = Lease::new(
            (key, token),
            operation.clone(),
            CrashPolicy::Resume,
            Term { length: minute, max_run: minute, after_body: minute },
            Duration::ZERO,
            clock,
        );
        let record = Record::new(key, token, operation.clone());
        Journal::of(&operation, &record, Arc::new(lease), 1024).unwrap()
    }

    /// The result of a step may wait for the writer, and a checkpoint may have no step any more that
    /// waits for it.
    #[test]
    fn a_result_before_its_checkpoint_and_a_checkpoint_without_its_step_are_both_under_way() {
        let (journal, step) = (journal(), StepId { name: "charge".into(), index: 0 });
        assert!(journal.is_settled());
        journal.ask(&step).unwrap();
        journal.begin(&step).unwrap();
        assert!(journal.is_settled(), "nothing of it is to be written yet");
        journal.goes_on(&step, Progress::Recording);
        assert!(!journal.is_settled());
        journal.ended(&step);
        assert!(journal.is_settled());
        let writing = journal.writer.try_lock().unwrap();
        assert!(!journal.is_settled());
        drop(writing);
        assert!(journal.is_settled());
    }
}
