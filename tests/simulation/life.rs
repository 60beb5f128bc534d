//! The life of one process: it stands still, goes on, and ends in the middle of whatever it does.
//!
//! A process moves when it sleeps no more and when it is answered. Both go through
//! [`Life::goes_on`], which never returns in a process that is dead: what it has sent may still
//! arrive, and nothing else of it happens.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::Token;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

#[derive(Debug)]
pub struct Life {
    /// As the log names it: number of the process and how often it was started before.
    pub name: String,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_dead: bool,
    is_frozen: bool,
    /// Since when its machine is suspended.
    suspended_since: Option<Duration>,
    /// How long its machine was suspended before.
    suspended: Duration,
    tasks: Vec<AbortHandle>,
    acknowledged: Vec<Acknowledged>,
    given_back: Vec<Token>,
    partition_ends: Duration,
}

/// A claim that this process was told to own.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub key: KeyHash,
    /// The token that it had sent.
    pub sent: Token,
    /// The token on the record that it got.
    pub owner: Token,
    pub attempts: u32,
    /// When the token was sent for the first time.
    pub first_sent: Duration,
}

impl Life {
    pub fn new(name: String) -> Self {
        Self { name, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves at once in a process that runs, at its end in one that stands still, and never in
    /// one that is dead.
    pub async fn goes_on(&self) {
        loop {
            let changed = self.changed.notified();
            let (is_dead, is_frozen) = {
                let state = self.state();
                (state.is_dead, state.is_frozen)
            };
            if is_dead {
                std::future::pending::<()>().await;
            }
            if !is_frozen {
                return;
            }
            changed.await;
        }
    }

    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    pub fn freeze(&self) {
        self.state().is_frozen = true;
    }

    /// As [`freeze`](Self::freeze), with its machine: the timers stand still too, and go on from
    /// where they were.
    pub fn suspend(&self, now: Duration) {
        let mut state = self.state();
        state.is_frozen = true;
        state.suspended_since = state.suspended_since.or(Some(now));
    }

    pub fn thaw(&self, now: Duration) {
        {
            let mut state = self.state();
            state.is_frozen = false;
            if let Some(since) = state.suspended_since.take() {
                state.suspended += now.saturating_sub(since);
            }
        }
        self.changed.notify_waiters();
    }

    /// How long its machine has been awake: what a clock shows that stops while it is suspended.
    pub fn awake(&self, now: Duration) -> Duration {
        let state = self.state();
        state.suspended_since.unwrap_or(now).min(now).saturating_sub(state.suspended)
    }

    /// Ends the process and its tasks.
    pub fn end(&self) {
        let tasks = {
            let mut state = self.state();
            state.is_dead = true;
            std::mem::take(&mut state.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Runs `task` until the process ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task).abort_handle();
        self.state().tasks.push(task);
    }

    pub fn acknowledge(&self, acknowledged: Acknowledged) {
        self.state().acknowledged.push(acknowledged);
    }

    /// The process has sent that it does not own this claim any more. It may be told after that
    /// that it owned it.
    pub fn give_back(&self, token: Token) {
        self.state().given_back.push(token);
    }

    /// The last claim of `key` with this number of attempts that the process was told to own, and
    /// has not given back.
    pub fn acknowledged(&self, key: KeyHash, attempts: u32) -> Option<Acknowledged> {
        let state = self.state();
        let is_own = |claim: &&Acknowledged| {
            claim.key == key
                && claim.attempts == attempts
                && !state.given_back.contains(&claim.owner)
        };
        state.acknowledged.iter().rfind(is_own).copied()
    }

    /// From now until `ends` the process cannot reach the store.
    pub fn cut_off_until(&self, ends: Duration) {
        let mut state = self.state();
        state.partition_ends = state.partition_ends.max(ends);
    }

    pub fn heal(&self) {
        self.state().partition_ends = Duration::ZERO;
    }

    pub fn is_cut_off(&self, now: Duration) -> bool {
        now < self.state().partition_ends
    }
}
