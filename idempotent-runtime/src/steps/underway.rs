//! A step from its request to its record, without its types.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde_json::value::RawValue;

use super::checkpoint::Recorded;
use super::identity::StepId;
use super::journal::{Journal, Progress, Unheard, Unwritten};
use crate::clock::Sleep;
use crate::context::Context;
use crate::encoding::NotEncodable;
use crate::engine::Inner;
use crate::engine::admission::waits_for_transaction_around;
use crate::engine::followed::Followed;
use crate::engine::task_state::TaskState;
use crate::error::{Error, ErrorKind};

pub(super) type Core<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A checkpoint on its way. It continues in the background when it is dropped: what was sent is
/// followed to its answer, and no step begins meanwhile.
pub(super) struct Writing<T: Send + 'static = Result<(), Error>> {
    followed: Option<Followed<T>>,
    journal: Arc<Journal>,
}

impl<T: Send + 'static> Writing<T> {
    fn new(
        engine: &Inner,
        journal: Arc<Journal>,
        write: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { followed: Some(Followed::new(&engine.keeper, write)), journal }
    }
}

impl<T: Send + 'static> Future for Writing<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<T> {
        let Some(followed) = &mut self.followed else { return Poll::Pending };
        let polled = Pin::new(followed).poll(cx);
        // Spares the drop of this a detour: nothing is missing any more.
        if polled.is_ready() {
            self.followed = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Writing<T> {
    fn drop(&mut self) {
        let Some(followed) = self.followed.take() else { return };
        // Counted here, and not when the background starts to follow it: the next step of this body
        // may begin before that, and must find the answer missing.
        let unheard = Unheard::new(&self.journal);
        drop(followed.and_if_dropped(move |writing| async move {
            let _unheard = unheard;
            drop(writing.await);
        }));
    }
}

/// The request for a step.
pub(super) struct Plan {
    pub(super) context: Context,
    pub(super) id: StepId,
    pub(super) at_most_once: bool,
    pub(super) timeout: Option<Duration>,
}

/// The decision about a step.
pub(super) enum Admitted {
    /// An earlier attempt has recorded this result.
    Replay(Replay),
    Run(Underway),
}

/// A recorded result, and what its error needs if it does not decode.
pub(super) struct Replay {
    pub(super) result: Box<RawValue>,
    context: Context,
    id: StepId,
}

impl Replay {
    pub(super) fn refused(&self, kind: ErrorKind) -> Error {
        self.context.refused(kind).of_step(&self.id)
    }
}

pub(super) async fn admit(plan: Plan) -> Result<Admitted, Error> {
    let Plan { context, id, at_most_once, timeout } = plan;
    let task_state = TaskState::current();
    if let Some(around) = task_state.step_of(&context) {
        let detail = format!(
            "steps cannot be nested: replaying `{around}` would skip it; move it out of `{around}`"
        );
        return Err(context.refused(ErrorKind::Unsupported).of_step(&id).with_detail(detail));
    }
    let (engine, journal) = context.journal().map_err(|error| error.of_step(&id))?;
    let recorded = journal.as_ref().map_or(Ok(None), |journal| journal.ask(&id))?;
    let refused = |kind, detail: &str| Err(context.refused(kind).of_step(&id).with_detail(detail));
    let has_run = "an earlier attempt has run it, and it does not run again";
    match recorded {
        None => {}
        Some(Recorded::Finished(result)) => {
            return Ok(Admitted::Replay(Replay { result, context, id }));
        }
        Some(Recorded::Started) => {
            let detail = "an earlier attempt started it, and it runs at most once";
            return refused(ErrorKind::StepInterrupted, detail);
        }
        Some(Recorded::TooLarge) => return refused(ErrorKind::TooLarge, has_run),
        Some(Recorded::NotEncodable) => return refused(ErrorKind::Encode, has_run),
    }
    if journal.is_some() && waits_for_transaction_around(&engine, &task_state) {
        let detail = "its record would wait for the transaction around it, which blocks all other \
            writers of this store: run it before the transaction, or after it";
        return refused(ErrorKind::Unsupported, detail);
    }
    let task_state = task_state.of_step(&context, id.clone());
    let underway = Underway { context, engine, journal, id, task_state, at_most_once, timeout };
    underway.prepare().await?;
    Ok(Admitted::Run(underway))
}

/// A step that is about to run, runs, or has run. If it is dropped while it runs, its outcome is
/// unknown.
pub(super) struct Underway {
    context: Context,
    engine: Arc<Inner>,
    /// `None` where the operation is disabled: nothing is recorded.
    journal: Option<Arc<Journal>>,
    id: StepId,
    task_state: TaskState,
    at_most_once: bool,
    timeout: Option<Duration>,
}

impl Underway {
    /// Settles everything that must be known before the step runs.
    async fn prepare(&self) -> Result<(), Error> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let did_not_run =
            |unwritten| self.unwritten(journal, unwritten, ErrorKind::StoreUnavailable);
        journal.catch_up(&self.engine).await.map_err(did_not_run)?;
        if self.at_most_once {
            let (writer, engine) = (journal.clone(), self.engine.clone());
            let change = (self.id.clone(), Some(Recorded::Started));
            let write = async move { writer.write(&engine, change).await };
            Writing::new(&self.engine, journal.clone(), write).await.map_err(did_not_run)?;
        }
        Ok(())
    }

    fn refused(&self, kind: ErrorKind) -> Error {
        self.context.refused(kind).of_step(&self.id)
    }

    fn unwritten(&self, journal: &Journal, unwritten: Unwritten, unknown: ErrorKind) -> Error {
        match unwritten {
            Unwritten::Superseded => {
                journal.note_cut_short();
                self.refused(ErrorKind::Superseded).would_repeat()
            }
            Unwritten::TooLarge(size) => self.refused(ErrorKind::TooLarge).with_detail(format!(
                "with it the steps take {size} bytes and the limit is {}",
                journal.limit()
            )),
            Unwritten::NotEncodable(source) => {
                self.refused(ErrorKind::Encode).with_detail(source.to_string()).with_source(source)
            }
            Unwritten::Unknown(error) => {
                journal.note_cut_short();
                let error = self.engine.store_error(error);
                self.refused(unknown).with_store(self.engine.store.name()).with_source(error)
            }
        }
    }

    /// Checks that the body may run now. From here on it counts as running, in whatever task it
    /// does.
    pub(super) fn begin(&self) -> Result<(), Error> {
        self.journal.as_ref().map_or(Ok(()), |journal| journal.begin(&self.id))
    }

    /// Marks that the body no longer runs and the step continues.
    fn goes_on(&self, progress: Progress) {
        if let Some(journal) = &self.journal {
            journal.goes_on(&self.id, progress);
        }
    }

    /// Marks that the next try begins.
    pub(super) fn begins_again(&mut self) {
        self.task_state = self.task_state.of_next_try();
    }

    /// Runs the user's code as part of this step.
    pub(super) fn enter<T>(&self, code: impl FnOnce() -> T) -> T {
        self.task_state.enter(code)
    }

    /// The time limit of one try.
    pub(super) fn timer(&self) -> Option<Sleep> {
        self.timeout.map(|timeout| self.engine.clock.sleep(timeout))
    }

    /// Handles a try that took too long and was dropped. `Ok` if another one may follow.
    pub(super) fn timed_out(&self) -> Result<(), Error> {
        // Whatever the next try says, this one may have had its effect.
        if let Some(journal) = &self.journal {
            journal.unsettled();
        }
        if self.at_most_once { Err(self.interrupted()) } else { Ok(()) }
    }

    /// The error of a try that took too long.
    pub(super) fn interrupted(&self) -> Error {
        let detail = format!("it took longer than {:?}", self.timeout.unwrap_or_default());
        self.refused(ErrorKind::StepInterrupted).with_detail(detail)
    }

    /// The pause before the next try.
    pub(super) fn pause(&self, pause: Duration) -> Sleep {
        self.goes_on(Progress::Asked);
        self.engine.clock.sleep(pause)
    }

    /// Handles an error of the step, which means that nothing happened: nothing stays recorded for
    /// it.
    pub(super) fn failed(self) -> Option<Writing> {
        self.goes_on(Progress::Asked);
        let journal = self.journal.clone().filter(|_| self.at_most_once)?;
        self.goes_on(Progress::Recording);
        let engine = self.engine.clone();
        Some(Writing::new(&engine, journal.clone(), async move {
            if let Err(unwritten) = journal.write(&self.engine, (self.id.clone(), None)).await {
                tracing::warn!(step = %self.id, ?unwritten, "a step that failed stays recorded as started");
            }
            self.goes_on(Progress::Asked);
            Ok(())
        }))
    }

    /// Handles a result of the step.
    pub(super) fn finished(self, result: Result<Box<RawValue>, NotEncodable>) -> Option<Writing> {
        self.goes_on(Progress::Recording);
        let journal = self.journal.clone()?;
        let engine = self.engine.clone();
        Some(Writing::new(&engine, journal.clone(), async move {
            let (outcome, encoded) = match result {
                Ok(result) => (Recorded::Finished(result), Ok(())),
                Err(error) => (Recorded::NotEncodable, Err(Unwritten::NotEncodable(error))),
            };
            let mut written = journal.write(&self.engine, (self.id.clone(), Some(outcome))).await;
            let mut kept = encoded;
            if let Err(Unwritten::TooLarge(size)) = written {
                let marker = (self.id.clone(), Some(Recorded::TooLarge));
                written = journal.write(&self.engine, marker).await;
                kept = Err(Unwritten::TooLarge(size));
            }
            if written.is_ok() {
                // It, or the marker in its place, is on the record.
                self.goes_on(Progress::Asked);
            }
            written.and(kept).map_err(|unwritten| {
                journal.unsettled();
                self.unwritten(&journal, unwritten, ErrorKind::NotStored)
            })
        }))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(journal) = &self.journal {
            journal.ended(&self.id);
        }
    }
}
