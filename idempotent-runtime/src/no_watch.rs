//! The stand-in for the watch of the test helpers where their feature is off: nothing is reported.

use std::future::Future;
use std::task::{Context as Task, Poll};

use crate::engine::Inner;
use crate::engine::task_state::TaskState;

pub(crate) struct Arrival;

pub(crate) fn call_arrives(_: Option<*const Inner>, _: &str, _: &TaskState) -> Arrival {
    Arrival
}

pub(crate) struct BodyWatch;

pub(crate) struct Polling;

#[expect(clippy::unused_self, reason = "it is used where the feature is on")]
impl BodyWatch {
    pub(crate) fn begins(_: &TaskState) -> Self {
        Self
    }

    pub(crate) fn polls(&self, _: &mut Task<'_>) -> Polling {
        Polling
    }

    pub(crate) fn around<F: Future>(self, future: F) -> F {
        future
    }
}

impl Polling {
    #[expect(clippy::unused_self, reason = "it is used where the feature is on")]
    pub(crate) fn ended(self, _: bool) {}
}

pub(crate) fn of_engine<T>(polled: Poll<T>) -> Poll<T> {
    polled
}

pub(crate) fn engine_waits<F: Future>(work: F) -> F {
    work
}

pub(crate) fn body_is_in_line(_: bool) {}

pub(crate) fn step_waits_before_record(_: &Task<'_>) -> bool {
    false
}
