//! The events that a test records.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A caller made a call, and it returned.
    Call(Call),
    /// A body ran.
    Effect(Effect),
    /// A claim was taken over from an earlier owner. Only needed where no body reports its attempt.
    Takeover {
        /// The key.
        key: String,
        /// See [`Call::retention`].
        retention: u32,
    },
    /// The record in the store when everything has finished.
    Stored(Stored),
}

impl Event {
    /// Returns the key, as the test names it.
    pub fn key(&self) -> &str {
        match self {
            Self::Call(call) => &call.key,
            Self::Effect(effect) => &effect.key,
            Self::Takeover { key, .. } => key,
            Self::Stored(stored) => &stored.key,
        }
    }
}

/// A call that has returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The key, as the test names it.
    pub key: String,
    /// The number of times that the record of the key has ended by expiry or removal. The test
    /// knows, because it ended it.
    pub retention: u32,
    /// The fingerprint that distinguishes requests under one key, if there is one.
    pub fingerprint: Option<String>,
    /// The caller.
    pub caller: String,
    /// The time at which the call began, in microseconds of the machine's clock.
    pub started: u64,
    /// The time at which it returned, in microseconds of the machine's clock.
    pub ended: u64,
    /// The outcome for the caller.
    pub outcome: Outcome,
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    /// A value, its own or replayed.
    Value(Vec<u8>),
    /// An error of the body that is stored as the result, its own or replayed.
    StoredError(Vec<u8>),
    /// The key is known with another fingerprint.
    Mismatch,
    /// Anything else, by kind: says nothing about the result.
    Error(String),
}

impl Outcome {
    /// Returns true if this is the result of the key.
    pub fn is_result(&self) -> bool {
        matches!(self, Self::Value(_) | Self::StoredError(_))
    }
}

/// One run of a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The key, as the test names it.
    pub key: String,
    /// See [`Call::retention`].
    pub retention: u32,
    /// The fingerprint of the call whose body ran, as in [`Call::fingerprint`].
    pub fingerprint: Option<String>,
    /// `Context::attempt` of the body: 1 in the first.
    pub attempt: u32,
    /// The value that the body returns after the effect, if it distinguishes this effect from all
    /// others.
    pub result: Option<Vec<u8>>,
    /// The time, in microseconds of the machine's clock.
    pub at: u64,
}

/// The record of a key, as an operator reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The key, as the test names it.
    pub key: String,
    /// See [`Call::retention`].
    pub retention: u32,
    /// The number of owners so far.
    pub attempts: u32,
    /// The result, if there is one.
    pub result: Option<Outcome>,
}

impl Effect {
    /// Creates an effect that happens now, in the first retention.
    pub fn now(key: impl Into<String>, attempt: u32) -> Self {
        Self { key: key.into(), retention: 0, fingerprint: None, attempt, result: None, at: now() }
    }

    /// Adds the fingerprint of the call.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Adds the value that the body returns after the effect.
    #[must_use]
    pub fn with_result(mut self, result: impl Into<Vec<u8>>) -> Self {
        self.result = Some(result.into());
        self
    }

    /// Sets another retention than the first.
    #[must_use]
    pub fn in_retention(mut self, retention: u32) -> Self {
        self.retention = retention;
        self
    }
}

/// A call that has not returned. One that never does leaves no record, and needs none.
#[derive(Clone, Debug)]
#[must_use = "the call is recorded when it ends"]
pub struct OpenCall {
    key: String,
    retention: u32,
    fingerprint: Option<String>,
    caller: String,
    started: u64,
}

impl OpenCall {
    /// Creates a call that starts now, in the first retention.
    pub fn start(key: impl Into<String>, caller: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            retention: 0,
            fingerprint: None,
            caller: caller.into(),
            started: now(),
        }
    }

    /// Adds the fingerprint that distinguishes this request from others under the key.
    pub fn with_fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Sets another retention than the first.
    pub fn in_retention(mut self, retention: u32) -> Self {
        self.retention = retention;
        self
    }

    /// Ends the call now.
    pub fn end(self, outcome: Outcome) -> Call {
        let Self { key, retention, fingerprint, caller, started } = self;
        Call { key, retention, fingerprint, caller, started, ended: now(), outcome }
    }
}

impl From<Call> for Event {
    fn from(call: Call) -> Self {
        Self::Call(call)
    }
}

impl From<Effect> for Event {
    fn from(effect: Effect) -> Self {
        Self::Effect(effect)
    }
}

impl From<Stored> for Event {
    fn from(stored: Stored) -> Self {
        Self::Stored(stored)
    }
}

/// The time. All processes of a machine share the clock.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
