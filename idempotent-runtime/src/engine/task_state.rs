//! The state that a task carries: the engine that overrides the installed one, that of the running
//! edge, the running call, and the receiver of reports.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use tokio::task::futures::TaskLocalFuture;

use super::extensions::Extensions;
use super::report::Receiver;
use super::{Idempotency, Inner};
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::steps::StepId;
#[cfg(feature = "testing")]
use crate::watch::Watched;

tokio::task_local! {
    static TASK_STATE: TaskState;
}

static INSTALLED: OnceLock<Idempotency> = OnceLock::new();

/// The state of a task. `None` where there is none, so that reading it does not allocate.
#[derive(Clone, Default)]
pub(crate) struct TaskState(Option<Arc<Parts>>);

#[derive(Clone, Default)]
struct Parts {
    /// The engine that the user has set. It overrides the installed one.
    engine: Option<Idempotency>,
    /// The engine of the innermost edge, where none is set or installed.
    edge: Option<Idempotency>,
    context: Option<Context>,
    receiver: Option<Receiver>,
    /// The steps that the code is in, the innermost last. There are several if a step makes a call
    /// that has steps itself.
    steps: Vec<RunningStep>,
    extensions: Extensions,
    /// The call of a test helper that this is part of.
    #[cfg(feature = "testing")]
    watched: Option<Watched>,
}

#[derive(Clone)]
struct RunningStep {
    context: Context,
    id: StepId,
    /// The number of the try, from one.
    number_of_try: u32,
}

impl TaskState {
    pub(crate) fn current() -> Self {
        TASK_STATE.try_with(Self::clone).unwrap_or_default()
    }

    fn of(parts: Parts) -> Self {
        Self(Some(Arc::new(parts)))
    }

    fn parts(&self) -> Parts {
        self.0.as_deref().cloned().unwrap_or_default()
    }

    pub(crate) fn with_engine(&self, engine: Idempotency) -> Self {
        Self::of(Parts { engine: Some(engine), ..self.parts() })
    }

    /// The state for a body. An outer receiver does not see the calls that the body makes.
    pub(crate) fn of_body(&self, context: Context) -> Self {
        Self::of(Parts { context: Some(context), receiver: None, ..self.parts() })
    }

    /// The state for the step `step` of the call to which `context` belongs.
    pub(crate) fn of_step(&self, context: &Context, step: StepId) -> Self {
        let mut parts = self.parts();
        // Tasks that endlessly spawn one another would otherwise keep all earlier steps.
        parts.steps.retain(|step| !step.context.is_over());
        parts.steps.push(RunningStep { context: context.clone(), id: step, number_of_try: 1 });
        Self::of(parts)
    }

    /// The state for the next try of the step for which this one was made.
    pub(crate) fn of_next_try(&self) -> Self {
        let mut parts = self.parts();
        if let Some(step) = parts.steps.last_mut() {
            step.number_of_try = step.number_of_try.saturating_add(1);
        }
        Self::of(parts)
    }

    fn running_step_of(&self, context: &Context) -> Option<&RunningStep> {
        self.0.as_ref()?.steps.iter().rev().find(|step| step.context.is(context))
    }

    /// The step of the call of `context` that runs here, also around calls that it makes.
    pub(crate) fn step_of(&self, context: &Context) -> Option<&StepId> {
        self.running_step_of(context).map(|step| &step.id)
    }

    /// The number of the try of that step.
    pub(crate) fn try_of(&self, context: &Context) -> Option<u32> {
        self.running_step_of(context).map(|step| step.number_of_try)
    }

    pub(crate) fn with_receiver(&self, receiver: Receiver) -> Self {
        Self::of(Parts { receiver: Some(receiver), ..self.parts() })
    }

    /// The state for a call of an edge. Functions that name no engine use the edge's, not that of
    /// an edge around it, unless one is set or installed.
    pub(crate) fn of_edge(&self, engine: &Idempotency, extensions: &Extensions) -> Self {
        let mut parts = self.parts();
        parts.edge = Some(engine.clone());
        parts.extensions = parts.extensions.and(extensions);
        Self::of(parts)
    }

    /// The state with `value` in place of the extension of its type, or without that.
    pub(crate) fn with_extension<T: Send + Sync + 'static>(&self, value: Option<T>) -> Self {
        let mut parts = self.parts();
        parts.extensions = match value {
            Some(value) => parts.extensions.with(Arc::new(value)),
            None => parts.extensions.without::<T>(),
        };
        Self::of(parts)
    }

    pub(crate) fn extensions(&self) -> Extensions {
        self.0.as_ref().map(|parts| parts.extensions.clone()).unwrap_or_default()
    }

    /// The state for a call of a test helper.
    #[cfg(feature = "testing")]
    pub(crate) fn watched(&self, watched: Watched) -> Self {
        Self::of(Parts { watched: Some(watched), ..self.parts() })
    }

    #[cfg(feature = "testing")]
    pub(crate) fn watcher(&self) -> Option<&Watched> {
        self.0.as_ref()?.watched.as_ref()
    }

    pub(crate) fn context(&self) -> Option<&Context> {
        self.0.as_ref()?.context.as_ref()
    }

    /// Returns true if `engine` is closing and accepts no new calls from here. Calls made by a
    /// running body are part of its drain, until the body is given up.
    pub(crate) fn is_shut_out(&self, engine: &Arc<Inner>) -> bool {
        engine.is_closing()
            && (engine.is_closed()
                || !self.context().is_some_and(|context| context.is_inside(engine)))
    }

    pub(crate) fn receiver(&self) -> Option<&Receiver> {
        self.0.as_ref()?.receiver.as_ref()
    }

    /// Runs `function` with this state as the current one.
    pub(crate) fn enter<R>(&self, function: impl FnOnce() -> R) -> R {
        TASK_STATE.sync_scope(self.clone(), function)
    }

    /// Runs `future` with this state as the current one, in whatever task polls it.
    pub(crate) fn wrap<F: Future>(self, future: F) -> TaskLocalFuture<Self, F> {
        TASK_STATE.scope(self, future)
    }
}

/// Installs `engine` for every call that names none and runs in no future with an engine of its
/// own.
pub(crate) fn install(engine: Idempotency) -> Result<(), Error> {
    INSTALLED.set(engine).map_err(|_| {
        Error::config(
            "an engine is installed already; call `install` once, at the start of the process",
        )
    })
}

/// Returns the engine that is set for the task, or else the installed one, or else that of the edge
/// whose body this is.
pub(crate) fn current_engine() -> Result<Idempotency, Error> {
    let state = TaskState::current();
    let parts = state.0.as_deref();
    parts
        .and_then(|parts| parts.engine.as_ref())
        .or_else(|| INSTALLED.get())
        .or_else(|| parts.and_then(|parts| parts.edge.as_ref()))
        .cloned()
        .ok_or_else(|| Error::new(ErrorKind::NotInstalled))
}
