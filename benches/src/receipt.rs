//! The work that all groups do: a result of about 200 bytes, or of a megabyte.

use std::time::Duration;

use idempotency::{Error, Idempotency, idempotent};
use serde::{Deserialize, Serialize};

pub const DAY: Duration = Duration::from_secs(86_400);
/// The key under which what is read again and again is stored.
pub const HOT: u64 = 7;
/// How many keys the calls of many clients go through. Far more than there are clients: calls of
/// one key at one time would share what the first of them reads.
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
    /// About 200 bytes.
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

/// The same with a result that there is nothing to write and to read of.
#[idempotent(name = "bench.acknowledge", key = order.id, fingerprint = order, ttl = "24h", engine = engine)]
pub async fn acknowledge(engine: &Idempotency, order: &Order) -> Result<(), Error> {
    std::hint::black_box(Receipt::of(order));
    Ok(())
}

#[idempotent(name = "bench.export", key = id, ttl = "24h", engine = engine)]
pub async fn export(engine: &Idempotency, id: u64) -> Result<Receipt, Error> {
    Ok(Receipt::with_note(&Order::new(id), "x".repeat(1_000_000)))
}
