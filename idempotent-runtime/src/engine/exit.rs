//! The exit of a call: the one place where its end is reported, whatever it is.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::report::{Receiver, Report};
use super::request::CheckedCall;
use super::task_state::TaskState;
use crate::events::{Outcome, What};
use crate::watch::{Arrival, call_arrives};

/// A call that has not ended. It ends once: with [`end`](Self::end), or as dropped.
pub(super) struct Exit {
    engine: Arc<Inner>,
    receiver: Option<Receiver>,
    pub(super) report: Report,
    /// Monotonic time at which the call turned to the store.
    since: Duration,
    has_ended: bool,
    _arrival: Arrival,
}

impl Exit {
    /// Creates the exit of a call that turns to the store now.
    pub(super) fn new(call: &CheckedCall, task_state: &TaskState, report: Report) -> Self {
        let (engine, since) = (call.engine.clone(), call.engine.clock.monotonic());
        let arrival = call_arrives(Some(Arc::as_ptr(&engine)), &report.operation, task_state);
        Self {
            engine,
            receiver: task_state.receiver().cloned(),
            report,
            since,
            has_ended: false,
            _arrival: arrival,
        }
    }

    pub(super) fn end(mut self, outcome: Outcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        self.has_ended = true;
        let duration = self.engine.clock.monotonic().saturating_sub(self.since);
        let receiver = self.receiver.as_ref();
        tell(&self.engine, receiver, &mut self.report, outcome, Some(duration));
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        if !self.has_ended {
            self.tell(Outcome::Dropped);
        }
    }
}

/// Reports the end of a call that never awaited anything, so that it needs no [`Exit`].
pub(super) fn at_once(
    engine: &Inner,
    task_state: &TaskState,
    mut report: Report,
    outcome: Outcome,
) {
    let _arrival = call_arrives(Some(engine), &report.operation, task_state);
    tell(engine, task_state.receiver(), &mut report, outcome, None);
}

/// Like [`at_once`], for a call that has no engine, which no observer can learn of.
pub(super) fn without_engine(task_state: &TaskState, mut report: Report, outcome: Outcome) {
    let _arrival = call_arrives(None, &report.operation, task_state);
    report.ended(outcome);
    trace(&report);
    if let Some(receiver) = task_state.receiver() {
        receiver.report(report);
    }
}

fn tell(
    engine: &Inner,
    receiver: Option<&Receiver>,
    report: &mut Report,
    outcome: Outcome,
    duration: Option<Duration>,
) {
    report.ended(outcome);
    trace(report);
    if let Some(receiver) = receiver {
        receiver.report(report.clone());
    }
    let Report { attempt, waited, .. } = *report;
    engine.observers.tell(
        Some(&report.operation),
        report.has_record().then_some(&report.key),
        What::Finished { outcome, duration, attempt, waited },
    );
}

fn trace(report: &Report) {
    let Report { operation, key, attempt, outcome, .. } = report;
    match outcome {
        Outcome::Replayed(_) => tracing::debug!(%operation, %key, attempt, "replayed"),
        Outcome::Refused(kind) => tracing::debug!(%operation, %key, ?kind, "refused"),
        outcome => {
            tracing::debug!(%operation, %key, attempt, outcome = outcome.name(), "finished");
        }
    }
}
