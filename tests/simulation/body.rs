//! What a caller guards: bodies with an effect that end well, badly or not at all, and the question
//! after a crash.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use idempotency::{Error, InCurrentCall as _, OnError, Verdict};
use idempotency_test_support::random::Random;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::life::Life;
use crate::mutant::Mutant;
use crate::outside::Work;
use crate::plan::{Class, Key, millis_below};
use crate::world::World;

/// What a body returns instead of its value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Failure {
    /// It happened, and this is the result of every caller.
    Declined(String),
    /// Nothing happened.
    Refused,
    /// Perhaps something happened.
    Ambiguous,
    /// The engine's.
    Guard(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Guard(format!("{:?}", error.kind()))
    }
}

impl Failure {
    pub fn policy(&self) -> OnError {
        match self {
            Self::Declined(_) => OnError::Store,
            Self::Refused | Self::Guard(_) => OnError::Release,
            Self::Ambiguous => OnError::Hold,
        }
    }

    /// The same for a call with steps, which takes the errors with which the engine cuts its body
    /// short for its own. None of them is stored.
    pub fn policy_with_steps(&self) -> OnError {
        const CUT_SHORT: [&str; 3] = ["Superseded", "NotStored", "StoreUnavailable"];
        match self {
            Self::Guard(kind) if CUT_SHORT.contains(&kind.as_str()) => OnError::Store,
            failure => failure.policy(),
        }
    }
}

/// What a body will do, if it runs.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    before: Duration,
    between: Duration,
    after: Duration,
    start: Start,
    end: End,
    asks_fence: bool,
    unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Works,
    Refuses,
    Panics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Value,
    Declines,
    Doubts,
    Panics,
}

impl Script {
    pub fn new(random: &mut Random, lease: Duration) -> Self {
        let pause = |random: &mut Random| match random.below(10) {
            0..6 => millis_below(random, Duration::from_millis(100)),
            6..9 => millis_below(random, lease),
            _ => millis_below(random, lease * 3),
        };
        Self {
            before: pause(random),
            between: pause(random),
            after: pause(random),
            start: match random.below(100) {
                0..12 => Start::Refuses,
                12..16 => Start::Panics,
                _ => Start::Works,
            },
            end: match random.below(100) {
                0..6 => End::Declines,
                6..12 => End::Doubts,
                12..16 => End::Panics,
                _ => End::Value,
            },
            asks_fence: random.chance(30),
            unknown: random.chance(15),
        }
    }

    /// One that ends well, after `length`.
    pub fn calm(length: Duration) -> Self {
        let (start, end) = (Start::Works, End::Value);
        let before = length;
        let (between, after) = (Duration::ZERO, Duration::ZERO);
        Self { before, between, after, start, end, asks_fence: true, unknown: false }
    }
}

/// Who runs a body, and for whom.
#[derive(Clone)]
pub struct Site {
    pub world: Arc<World>,
    pub life: Arc<Life>,
    pub key: Key,
    pub fingerprint: Option<u64>,
    pub script: Script,
    /// How long the call has spent in its body and its question, in milliseconds.
    pub spent: Arc<AtomicU64>,
}

impl Site {
    fn begin(&self, what: &'static str) -> Work {
        Work::begin(self, what)
    }

    pub async fn body(self) -> Result<String, Failure> {
        let (work, script) = (self.begin("body"), self.script);
        let in_task = self.key.class.is_in_task().then(|| self.in_task(&work));
        work.pause(script.before).await;
        match script.start {
            Start::Refuses => {
                if in_task.is_some() {
                    self.world.outside.refuse(work.token());
                }
                return Err(Failure::Refused);
            }
            // No message on the test's output.
            Start::Panics => resume_unwind(Box::new("before the effect")),
            Start::Works => {}
        }
        if script.asks_fence {
            work.fence().await?;
        }
        let value = match self.key.class {
            Class::VerifyByKey => work.charge(script.between, script.after).await,
            Class::Resume | Class::ResumeOnce => self.steps(&work).await?,
            Class::InTask | Class::InTaskResume => Self::of_task(&work, in_task).await?,
            _ => work.effect("").await,
        };
        work.pause(script.after).await;
        match script.end {
            End::Value => Ok(value),
            End::Declines => Err(Failure::Declined(value)),
            End::Doubts => Err(Failure::Ambiguous),
            End::Panics => resume_unwind(Box::new("after the effect")),
        }
    }

    /// Begins a step in a task of its own. It goes on whatever the body does.
    fn in_task(&self, work: &Work) -> oneshot::Receiver<Result<String, Failure>> {
        let (work, script) = (work.aside(), self.script);
        let (sender, result) = oneshot::channel();
        let step = async move {
            // It begins before the body has ended, or not.
            work.pause_aside(script.after).await;
            let charge = async || {
                work.pause_aside(script.between).await;
                Ok::<_, Failure>(work.effect("").await)
            };
            let _ = sender.send(work.context.step("charge", charge).await);
        };
        self.life.spawn(step.in_current_call());
        result
    }

    async fn of_task(
        work: &Work,
        task: Option<oneshot::Receiver<Result<String, Failure>>>,
    ) -> Result<String, Failure> {
        let Some(task) = task else { return Err(Failure::Refused) };
        let result = task.await.unwrap_or(Err(Failure::Ambiguous));
        work.life.goes_on().await;
        result
    }

    async fn steps(&self, work: &Work) -> Result<String, Failure> {
        let work = &work;
        let reserve = work
            .context
            .step("reserve", || async { Ok::<_, Failure>(work.effect("reserve").await) });
        let reserved = reserve.await?;
        work.pause(self.script.between).await;
        let charge =
            work.context.step("charge", || async { Ok::<_, Failure>(work.effect("charge").await) });
        let charged = if self.key.class == Class::ResumeOnce {
            charge.at_most_once().await?
        } else {
            charge.await?
        };
        Ok(format!("{reserved}+{charged}"))
    }

    /// What the world outside says about earlier attempts.
    pub async fn question(self) -> Result<Verdict<String>, Failure> {
        let work = self.begin("question");
        work.pause(self.script.before).await;
        if self.script.unknown {
            return Ok(Verdict::Unknown);
        }
        if self.script.start == Start::Panics {
            resume_unwind(Box::new("in the question"));
        }
        let found = if self.key.class == Class::VerifyByKey {
            work.charged(&work.provider_key())
        } else {
            let is_early = self.world.mutant == Some(Mutant::AskedWhileOwnerLives);
            if !is_early && self.world.outside.is_at_work(&work.grant.key, Some(work.token())) {
                return Ok(Verdict::Unknown);
            }
            let effects = self.world.outside.effects(&work.grant.key, work.grant.retention);
            effects.first().map(|effect| effect.value.clone())
        };
        Ok(found.map_or(Verdict::NotExecuted, Verdict::Completed))
    }
}
