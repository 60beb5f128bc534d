//! An operation with steps: two in a row, the second of which runs at most once, and then two at
//! the same time.

use idempotency::{Context, Error, OnCrash};
use idempotency_test_support::history::Effect;

use crate::service::{DAY, Service};

pub const FULFIL: &str = "orders.fulfil";
const RESERVE: &str = "reserve";
/// Runs at most once.
pub const ONCE: &str = "charge";
const PACK: &str = "pack";
const NOTIFY: &str = "notify";
pub const STEPS: [&str; 4] = [RESERVE, ONCE, PACK, NOTIFY];

/// The effect of each step, in the order of [`STEPS`].
pub type Fulfilled = [String; 4];

/// The name under which the log has the effects of a step.
pub fn effects_of(order: &str, step: &str) -> String {
    format!("{order}/{step}")
}

impl Service {
    pub async fn fulfil(&self, order: &str) -> Result<Fulfilled, Error> {
        let call = self.engine.call(FULFIL, order).ttl(DAY).on_crash(OnCrash::Resume);
        let body = || async {
            let context = Context::current();
            let reserved =
                context.step(RESERVE, || async { self.step(order, RESERVE).await }).await?;
            let charged = context
                .step(ONCE, || async { self.step(order, ONCE).await })
                .at_most_once()
                .await?;
            let (packed, notified) = tokio::join!(
                context.step(PACK, || async { self.step(order, PACK).await }),
                context.step(NOTIFY, || async { self.step(order, NOTIFY).await }),
            );
            Ok([reserved, charged, packed?, notified?])
        };
        call.run(body).await
    }

    /// The effect of a step, with a point before and one after it. Returns what tells it from every
    /// other run.
    async fn step(&self, order: &str, step: &str) -> Result<String, Error> {
        self.points.reach(&format!("before_{step}")).await;
        let effect = uuid::Uuid::new_v4().to_string();
        let line = Effect::now(effects_of(order, step), Context::current().attempt())
            .with_result(effect.as_bytes());
        self.effects.append(line).expect("the effect is written");
        self.points.reach(&format!("after_{step}")).await;
        Ok(effect)
    }
}
