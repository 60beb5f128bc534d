//! The operations of one process, in the test or in a worker, with the world that their bodies
//! change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use idempotency::{Context, Error, Idempotency, OnCrash};
use idempotency_test_support::history::{Effect, EventLog};
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPoints};
use serde::{Deserialize, Serialize};

/// How long a claim lives of an owner that must not lose it on a busy machine before it is killed:
/// an answer that is late by three seconds is not too late for a body.
pub const STEADY_LEASE: Duration = Duration::from_secs(4);
/// How long a claim lives that is renewed while others wait for its end: two thirds are left for a
/// late renewal.
pub const LIVING_LEASE: Duration = Duration::from_secs(9);
pub const DAY: Duration = Duration::from_secs(86_400);
pub const CHARGE: &str = "payments.charge";

/// One call, and when it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Planned {
    pub key: String,
    pub payload: u32,
    pub delay: Duration,
    pub body: Duration,
}

impl Planned {
    pub fn now(key: &str) -> Self {
        Self { key: String::from(key), payload: 0, delay: Duration::ZERO, body: Duration::ZERO }
    }
}

/// What a body returns: names its effect, so that a second run would give another receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub effect: String,
    pub payload: u32,
}

impl Receipt {
    pub fn new(payload: u32) -> Self {
        Self { effect: uuid::Uuid::new_v4().to_string(), payload }
    }

    /// As histories have it.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a receipt is written")
    }
}

/// Where the questions stand, if the effects stand there.
pub fn questions_beside(effects: &Path) -> PathBuf {
    effects.with_file_name("questions")
}

/// One process's engine and files.
pub struct Service {
    pub engine: Idempotency,
    pub effects: EventLog,
    /// What was asked of the outside world.
    pub questions: EventLog,
    pub points: KillPoints,
}

impl Service {
    pub fn new(engine: Idempotency, effects: &Path, points: KillPoints) -> anyhow::Result<Self> {
        let questions = EventLog::open(questions_beside(effects))?;
        Ok(Self { engine, effects: EventLog::open(effects)?, questions, points })
    }

    /// An operation with one effect. An `endless` one waits after it, until its process is killed.
    pub async fn charge(
        &self,
        planned: &Planned,
        on_crash: OnCrash,
        endless: bool,
    ) -> Result<Receipt, Error> {
        let call =
            self.engine.call(CHARGE, planned.key.as_str()).ttl(DAY).fingerprint(&planned.payload);
        let body = || async {
            let receipt = self.effect(planned).await;
            if endless {
                std::future::pending::<()>().await;
            }
            Ok(receipt)
        };
        call.on_crash(on_crash).run(body).await
    }

    /// The effect of a body, outside the code under test.
    pub async fn effect(&self, planned: &Planned) -> Receipt {
        tokio::time::sleep(planned.body).await;
        self.points.reach(BEFORE_EFFECT).await;
        let receipt = Receipt::new(planned.payload);
        let effect =
            Effect::now(&*planned.key, Context::current().attempt()).with_result(receipt.bytes());
        let effect = effect.with_fingerprint(planned.payload.to_string());
        self.effects.append(effect).expect("the effect is written");
        self.points.reach(AFTER_EFFECT).await;
        receipt
    }
}
