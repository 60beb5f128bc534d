//! Types with every shape that serde has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wrapped<T>(pub T);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    pub small: (i8, u8, i16, u16),
    pub wide: (i32, u32, i64, u64),
    pub huge: (i128, u128),
    pub single: f32,
    pub double: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub plain: Option<u8>,
    pub twice: Option<Option<u8>>,
    pub unit: Option<()>,
    pub wrapped: Option<Wrapped<Option<Unit>>>,
    pub float: Option<f64>,
    pub listed: Vec<Option<Option<bool>>>,
    pub any: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Option<u8>>,
}

macro_rules! taggings {
    ($($name:ident: $($attribute:ident $(= $value:literal)?),*;)*) => {$(
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde($($attribute $(= $value)?),*)]
        pub enum $name {
            Nothing,
            Wrapped(Payload),
            Named {
                amount: f64,
                count: u64,
                #[serde(default)]
                note: Option<Option<String>>,
            },
            Map(BTreeMap<String, i64>),
        }
    )*};
}

taggings! {
    External: rename_all = "snake_case";
    Internal: tag = "type";
    Adjacent: tag = "type", content = "content";
    Untagged: untagged;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    pub double: f64,
    pub signed: i64,
    pub unsigned: u64,
    pub huge: u128,
    pub text: String,
    pub character: char,
}

/// One of them reads what another one wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ambiguous {
    Small(u8),
    Large(u64),
    Huge(u128),
    Float(f64),
    Maybe(Option<bool>),
    Nothing,
    Text(String),
    List(Vec<Ambiguous>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Key {
    Number(i16),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Name {
    #[serde(rename = "1")]
    One,
    Two,
    Other(u8),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Maps {
    pub odd: BTreeMap<Key, u8>,
    pub numbers: BTreeMap<i128, u8>,
    pub flags: BTreeMap<bool, Option<u8>>,
    pub characters: BTreeMap<char, u8>,
    pub named: BTreeMap<Name, u8>,
    pub wrapped: BTreeMap<Option<String>, u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flat {
    pub total: f64,
    #[serde(flatten)]
    pub inner: Inner,
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inner {
    pub rate: f64,
    #[serde(skip)]
    pub unseen: u8,
    #[serde(skip_serializing_if = "is_zero")]
    pub needed: u8,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub defaulted: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    pub instant: chrono::DateTime<chrono::Utc>,
    pub zoned: chrono::DateTime<chrono::FixedOffset>,
    #[serde(with = "chrono::serde::ts_milliseconds_option")]
    pub stamp: Option<chrono::DateTime<chrono::Utc>>,
    pub day: chrono::NaiveDate,
    pub at: time::OffsetDateTime,
    pub length: time::Duration,
    pub wait: std::time::Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Money {
    pub price: rust_decimal::Decimal,
    #[serde(default)]
    pub refund: Option<rust_decimal::Decimal>,
    pub id: uuid::Uuid,
}
