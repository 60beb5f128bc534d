//! Whether the store answers. While it does not, no message is taken in.

use std::time::Duration;

use tokio::sync::watch;

/// The state of the intake, to which workers report.
#[derive(Debug)]
pub(super) struct Intake(watch::Sender<State>);

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
        Self(watch::Sender::default())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.0.borrow().is_away
    }

    /// Resolves when the intake is paused if it was not, or goes on if it was.
    pub(super) async fn changed(&self, was_paused: bool) {
        // Cannot fail: the sender is here.
        let _ = self.0.subscribe().wait_for(|state| state.is_away != was_paused).await;
    }

    /// Resolves when the store is to be looked at.
    pub(super) async fn is_to_be_looked_at(&self) {
        let _ = self.0.subscribe().wait_for(|state| state.is_looked_at).await;
    }

    /// Notes that a look at the store has failed.
    pub(super) fn look_failed(&self) {
        self.0.send_modify(|state| {
            state.is_away = true;
            state.failed_looks += 1;
        });
    }

    /// Notes that the store has answered a look.
    pub(super) fn look_succeeded(&self) {
        self.0.send_modify(|state| {
            state.is_looked_at = false;
            state.is_away = false;
        });
    }

    /// Notes that the store has the result of a message: it takes what is written.
    pub(super) fn succeeded(&self) {
        // Wakes no waiter: none waits for it.
        self.0.send_if_modified(|state| {
            state.successes += 1;
            false
        });
    }

    /// How many messages have got their result on record.
    pub(super) fn successes(&self) -> u64 {
        self.0.borrow().successes
    }

    /// Returns true if a message may go back of which it is not known that others succeed. One in
    /// each span of `every` may: if the store fails on as many records as the consumer may hold, it
    /// would otherwise take in none of the others.
    pub(super) fn may_return(&self, now: Duration, every: Duration) -> bool {
        let mut may = false;
        self.0.send_if_modified(|state| {
            may = state.returned.is_none_or(|last| now.saturating_sub(last) >= every);
            if may {
                state.returned = Some(now);
            }
            false
        });
        may
    }

    /// Reports that a call has failed on the store, and waits until that answers.
    pub(super) async fn report(&self) -> Answers {
        let mut state = self.0.subscribe();
        let before = state.borrow().failed_looks;
        self.0.send_modify(|state| state.is_looked_at = true);
        match state.wait_for(|state| !state.is_looked_at).await {
            Ok(state) if state.failed_looks != before => Answers::Again,
            _ => Answers::AllTheTime,
        }
    }
}
