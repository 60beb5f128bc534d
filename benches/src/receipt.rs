//! The work that all groups do: a result of about 200 bytes, or of a megabyte.

use std::time::Duration;

use idempotency::{Error, Idempotency, idempotent};
use serde::{Deserialize, Serialize};

pub const DAY: Duration = Duration::from_secs(86_400);
/// The key of the result that is read again and again.
pub const HOT: u64 = 7;
/// The number of keys that the calls of many clients use. Far more than there are clients:
/// concurrent calls of one key would share what the first of them reads.
pub const KEYS: u64 = 1_000;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Order {
    pub id: u64,
    pub amount: u64,
    pub currency: String,
    pub customer: String,
}

impl Order {
    pub fn new(id: u64) -> Self {
        Self { id, amount: 49_99, currency: "EUR".into(), customer: "c-81733".into() }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Receipt {
    pub order: u64,
    pub amount: u64,
    pub currency: String,
    pub provider: String,
    pub reference: String,
    pub note: String,
}

impl Receipt {
    /// Creates one of about 200 bytes.
    pub fn of(order: &Order) -> Self {
        Self::with_note(order, "x".repeat(60))
    }

    pub fn with_note(order: &Order, note: String) -> Self {
        Self {
            order: order.id,
            amount: order.amount,
            currency: order.currency.clone(),
            provider: "provider.example".into(),
            reference: format!("ch_3Nq{:018}", order.id),
            note,
        }
    }
}

pub fn decode(bytes: &[u8]) -> anyhow::Result<Receipt> {
    Ok(serde_json::from_slice(bytes)?)
}

#[idempotent(name = "bench.charge", key = order.id, fingerprint = order, ttl = "24h", engine = engine)]
pub async fn charge(engine: &Idempotency, order: &Order) -> Result<Receipt, Error> {
    Ok(Receipt::of(order))
}

/// Does the same with a result that has nothing to write or read.
#[idempotent(name = "bench.acknowledge", key = order.id, fingerprint = order, ttl = "24h", engine = engine)]
pub async fn acknowledge(engine: &Idempotency, order: &Order) -> Result<(), Error> {
    std::hint::black_box(Receipt::of(order));
    Ok(())
}

#[idempotent(name = "bench.export", key = id, ttl = "24h", engine = engine)]
pub async fn export(engine: &Idempotency, id: u64) -> Result<Receipt, Error> {
    Ok(Receipt::with_note(&Order::new(id), "x".repeat(1_000_000)))
}
