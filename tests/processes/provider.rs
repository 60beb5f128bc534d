//! An operation that asks the outside world after a crash. The outside world is the file of the
//! effects.

use std::time::Duration;

use anyhow::Context as _;
use idempotency::{Context, Error, Verdict};
use idempotency_test_support::history::{Effect, Event, EventLog};

use crate::service::{DAY, Planned, Receipt, Service};

pub const SETTLE: &str = "payments.settle";
/// How long a call waits between its takeover and its question.
pub const DELAY: Duration = Duration::from_millis(200);

/// The question has not been asked.
pub const BEFORE_QUESTION: &str = "before_question";
/// The outside world was asked, and has not answered.
pub const DURING_QUESTION: &str = "during_question";
/// The outside world has answered, and the engine does not know it yet.
pub const AFTER_QUESTION: &str = "after_question";

impl Service {
    /// An operation with one effect. After a crash it asks the provider, which may not know.
    pub async fn settle(&self, key: &str, provider_knows: bool) -> Result<Receipt, Error> {
        let question = async |_: Context| {
            self.points.reach(BEFORE_QUESTION).await;
            let asked = Effect::now(key, Context::current().attempt());
            self.questions.append(asked).expect("the question is written");
            self.points.reach(DURING_QUESTION).await;
            let found = booked(&self.effects, key).expect("the books are read");
            let verdict = match found {
                _ if !provider_knows => Verdict::Unknown,
                Some(receipt) => Verdict::Completed(receipt),
                None => Verdict::NotExecuted,
            };
            self.points.reach(AFTER_QUESTION).await;
            Ok(verdict)
        };
        let call = self.engine.call(SETTLE, key).ttl(DAY).settle(DELAY).on_crash_verify(question);
        call.run(|| async { Ok(self.effect(&Planned::now(key)).await) }).await
    }
}

/// What the provider has of `key`.
fn booked(effects: &EventLog, key: &str) -> anyhow::Result<Option<Receipt>> {
    let last = effects.events_of(key)?.into_iter().rev().find_map(|event| match event {
        Event::Effect(effect) => effect.result,
        _ => None,
    });
    last.map(|result| serde_json::from_slice(&result).context("no receipt")).transpose()
}
