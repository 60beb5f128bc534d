//! An operation whose owners die, and the operators that answer for them.

use std::time::Duration;

use idempotency::record::{RecordHandle, RecordView, Resolution, State};
use idempotency::{Context, Error, ErrorKind, OnCrash, OnError, Verdict};
use idempotency_test_support::deadline::within;
use idempotency_test_support::history::Outcome;
use serde::{Deserialize, Serialize};

use crate::service::{DAY, Planned, Receipt, Service};

pub const PAY: &str = "payments.pay";

/// The operator has looked at the record, and has not answered.
pub const AFTER_LOOK: &str = "after_look";

/// How long an operator waits before it looks again.
const PAUSE: Duration = Duration::from_millis(10);

/// What becomes of a payment whose owner is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Hold,
    Retry,
    Resume,
    /// With a provider that never knows.
    Verify,
}

pub const POLICIES: [Policy; 4] = [Policy::Hold, Policy::Retry, Policy::Resume, Policy::Verify];

/// What an operator says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Completed(Receipt),
    Declined,
    NotExecuted,
}

impl Answer {
    /// A result that no body has given.
    pub fn completed() -> Self {
        Self::Completed(Receipt::new(0))
    }

    /// What every caller gets from then on; `None` where the body is to run.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Completed(receipt) => Some(Outcome::Value(receipt.bytes())),
            Self::Declined => Some(outcome(&Err(PayError::Declined))),
            Self::NotExecuted => None,
        }
    }

    pub fn resolution(&self) -> Resolution {
        match self {
            Self::Completed(receipt) => Resolution::completed(receipt),
            Self::Declined => Resolution::failed(PayError::Declined),
            Self::NotExecuted => Resolution::not_executed(),
        }
    }
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum PayError {
    #[error("the card was declined")]
    Declined,
    #[serde(skip)]
    #[error(transparent)]
    Idempotency(#[from] Error),
}

impl PayError {
    /// `None` for an error of the operation's own.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Declined => None,
            Self::Idempotency(error) => Some(error.kind()),
        }
    }
}

/// How a history has it.
pub fn outcome(result: &Result<Receipt, PayError>) -> Outcome {
    match result {
        Ok(receipt) => Outcome::Value(receipt.bytes()),
        Err(PayError::Declined) => Outcome::StoredError(b"declined".to_vec()),
        Err(PayError::Idempotency(error)) => Outcome::Error(format!("{:?}", error.kind())),
    }
}

impl Service {
    /// An operation with one effect, which stores its errors.
    pub async fn pay(&self, key: &str, policy: Policy) -> Result<Receipt, PayError> {
        self.pay_and(key, policy, std::future::ready(())).await
    }

    /// As [`pay`](Self::pay), with a body that goes on with `rest` after its effect.
    pub async fn pay_and(
        &self,
        key: &str,
        policy: Policy,
        rest: impl Future<Output = ()>,
    ) -> Result<Receipt, PayError> {
        let call = self.engine.call(PAY, key).ttl(DAY).on_error(OnError::Store);
        let body = || async {
            let receipt = self.effect(&Planned::now(key)).await;
            rest.await;
            Ok(receipt)
        };
        match policy {
            Policy::Hold => call.on_crash(OnCrash::Hold).run(body).await,
            Policy::Retry => call.on_crash(OnCrash::Retry).run(body).await,
            Policy::Resume => call.on_crash(OnCrash::Resume).run(body).await,
            Policy::Verify => {
                call.on_crash_verify(async |_: Context| Ok(Verdict::Unknown)).run(body).await
            }
        }
    }

    pub fn payment(&self, key: &str) -> RecordHandle {
        self.engine.record(PAY, key)
    }

    /// What the record shows when its owner is gone.
    pub async fn look(&self, key: &str) -> anyhow::Result<RecordView> {
        let look = async {
            loop {
                match self.payment(key).inspect().await? {
                    // What is in progress has a reason when nobody runs it any more.
                    Some(view) if view.state == State::InDoubt || view.reason.is_some() => {
                        return anyhow::Ok(view);
                    }
                    _ => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        within("the owner to be gone", look).await?
    }

    /// Looks, and answers.
    pub async fn answer(&self, key: &str, answer: &Answer) -> anyhow::Result<Result<(), Error>> {
        let view = self.look(key).await?;
        self.points.reach(AFTER_LOOK).await;
        Ok(self.payment(key).resolve(&view, answer.resolution()).await)
    }
}
