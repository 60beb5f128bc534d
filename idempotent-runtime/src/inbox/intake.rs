//! Whether the store answers. While it does not, no message is taken in.

use std::time::Duration;

use super::observed::Observed;

/// The state of the intake, to which workers report.
#[derive(Debug, Default)]
pub(super) struct Intake(Observed<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// A call has failed on the store, and it is being looked at whether that answers at all.
    is_looked_at: bool,
    /// The last look has failed.
    is_away: bool,
    /// How many looks have failed.
    failed_looks: u64,
    /// How many messages have got their result on record.
    successes: u64,
    /// When a message went back last of which it is not known that others succeed.
    returned: Option<Duration>,
}

/// What is known of the store when it answers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// It did not answer in between.
    Again,
    /// It did, and the call has failed all the same.
    AllTheTime,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.0.get().is_away
    }

    /// Resolves when the intake is paused if it was not, or goes on if it was.
    pub(super) async fn changed(&self, was_paused: bool) {
        self.0.when(|state| state.is_away != was_paused).await;
    }

    /// Resolves when the store is to be looked at.
    pub(super) async fn is_to_be_looked_at(&self) {
        self.0.when(|state| state.is_looked_at).await;
    }

    /// Notes that a look at the store has failed.
    pub(super) fn look_failed(&self) {
        self.0.change(|state| {
            state.is_away = true;
            state.failed_looks += 1;
        });
    }

    /// Notes that the store has answered a look.
    pub(super) fn look_succeeded(&self) {
        self.0.change(|state| {
            state.is_looked_at = false;
            state.is_away = false;
        });
    }

    /// Notes that the store has the result of a message: it takes what is written.
    pub(super) fn succeeded(&self) {
        self.0.change_quietly(|state| state.successes += 1);
    }

    /// How many messages have got their result on record.
    pub(super) fn successes(&self) -> u64 {
        self.0.get().successes
    }

    /// Returns true if a message may go back of which it is not known that others succeed. One in
    /// each span of `every` may: if the store fails on as many records as the consumer may hold, it
    /// would otherwise take in none of the others.
    pub(super) fn may_return(&self, now: Duration, every: Duration) -> bool {
        self.0.change_quietly(|state| {
            let may = state.returned.is_none_or(|last| now.saturating_sub(last) >= every);
            if may {
                state.returned = Some(now);
            }
            may
        })
    }

    /// Reports that a call has failed on the store, and waits until that answers.
    pub(super) async fn report(&self) -> Answers {
        let mut before = 0;
        self.0.change(|state| {
            before = state.failed_looks;
            state.is_looked_at = true;
        });
        let state = self.0.when(|state| !state.is_looked_at).await;
        if state.failed_looks == before { Answers::AllTheTime } else { Answers::Again }
    }
}
