//! The recorded steps of a call, as operators see them.

use std::sync::Arc;

use super::checkpoint::{Recorded, decode};

/// One recorded step of a call, without its result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepView {
    /// The name of the step.
    pub name: Arc<str>,
    /// The index of the step among those of its name.
    pub index: u64,
    /// What is recorded of it.
    pub outcome: StepOutcome,
    /// The size of its recorded result in bytes.
    pub size: usize,
}

/// What is recorded of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StepOutcome {
    /// It was about to run, and may have: a step that runs at most once. Look for its effect.
    Started,
    /// It ran, and its result is recorded.
    Finished,
    /// It ran, and its result was larger than the limit.
    TooLarge,
    /// It ran, and its result could not be encoded.
    NotEncodable,
}

/// Returns the steps in `checkpoint` by name and index, or `None` if this release cannot read them.
pub(crate) fn shown(checkpoint: &[u8]) -> Option<Vec<StepView>> {
    let steps = decode(checkpoint).ok()?.into_iter().map(|(id, recorded)| {
        let (outcome, size) = match recorded {
            Recorded::Started => (StepOutcome::Started, 0),
            Recorded::Finished(result) => (StepOutcome::Finished, result.get().len()),
            Recorded::TooLarge => (StepOutcome::TooLarge, 0),
            Recorded::NotEncodable => (StepOutcome::NotEncodable, 0),
        };
        StepView { name: id.name, index: id.index, outcome, size }
    });
    Some(steps.collect())
}
