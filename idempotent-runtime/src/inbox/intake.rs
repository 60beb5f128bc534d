//! Whether the store answers: while it does not, no message is taken in.

use tokio::sync::watch;

/// The state of the intake, which workers report to and wait for.
#[derive(Debug)]
pub(super) struct Intake(watch::Sender<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// A call has failed on the store, and no look at it has succeeded since.
    is_paused: bool,
    /// How many looks have failed.
    failed_looks: u64,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.0.borrow().is_paused
    }

    /// Resolves when a worker has reported a failure.
    pub(super) async fn paused(&self) {
        // Cannot fail: the sender is here.
        let _ = self.0.subscribe().wait_for(|state| state.is_paused).await;
    }

    /// Notes that a look at the store has failed.
    pub(super) fn look_failed(&self) {
        self.0.send_modify(|state| state.failed_looks += 1);
    }

    /// Opens the intake: the store has answered.
    pub(super) fn open(&self) {
        self.0.send_modify(|state| state.is_paused = false);
    }

    /// Reports that a call has failed on the store, and waits until it answers. Returns true if it
    /// did not answer in between: the failure was not that of one record.
    pub(super) async fn report(&self) -> bool {
        let mut state = self.0.subscribe();
        let before = state.borrow().failed_looks;
        self.0.send_modify(|state| state.is_paused = true);
        let after = state.wait_for(|state| !state.is_paused).await;
        after.is_ok_and(|state| state.failed_looks != before)
    }
}
