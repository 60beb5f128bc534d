//! Keys, fingerprints and stored bytes that every build has to agree on.

use std::collections::BTreeMap;
use std::time::Duration;

use idempotency::key::{Fingerprint, digest};
use idempotency::store::{MemoryStore, Store as _};
use idempotency::{Error, Idempotency};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const DAY: Duration = Duration::from_secs(86_400);

/// What a build without `arbitrary_precision` makes of a text, which members are not in order in.
const ORDER: &str = r#"{
    "total": 59.99, "tax": 0.1, "id": 18446744073709551615, "delta": -9223372036854775808, "zero": -0, "large": 1e21,
    "items": [{"sku": "a", "count": 2, "price": 1.10}, {"sku": "b", "note": null, "price": 1.0}]
}"#;

#[derive(Serialize)]
struct Order {
    id: u64,
    delta: i64,
    zero: f64,
    large: f64,
    total: f64,
    tax: f64,
    items: (First, Second),
}

#[derive(Serialize)]
struct First {
    sku: &'static str,
    count: u8,
    price: f64,
}

#[derive(Serialize)]
struct Second {
    sku: &'static str,
    note: Option<()>,
    price: f32,
}

const SAME_ORDER: Order = Order {
    id: u64::MAX,
    delta: i64::MIN,
    zero: 0.0,
    large: 1e21,
    total: 59.99,
    tax: 0.1,
    items: (First { sku: "a", count: 2, price: 1.1 }, Second { sku: "b", note: None, price: 1.0 }),
};

fn key<T: Serialize>(value: &T) -> String {
    let engine = Idempotency::new(MemoryStore::new());
    engine
        .record("payments.charge", digest(value))
        .hash()
        .expect("the value has an encoding")
        .to_hex()
}

fn fingerprint<T: Serialize>(value: &T) -> u128 {
    Fingerprint::of(value).expect("the value has an encoding").bits
}

#[test]
fn a_key_of_any_json_is_the_same_in_every_build() {
    let mut parsed: Value = serde_json::from_str(ORDER).expect("it is JSON");
    assert_eq!(key(&SAME_ORDER), KEY);
    // In the fields of the struct a null is `None`, in the JSON it is nothing.
    parsed["items"][1].as_object_mut().expect("it is an object").remove("note");
    assert_eq!(key(&parsed), KEY_OF_JSON);
    assert_eq!(fingerprint(&parsed), FINGERPRINT_OF_JSON);
    let made = json!({
        "items": [{"price": 1.1, "count": 2, "sku": "a"}, {"price": 1.0, "sku": "b"}], "tax": 0.1, "total": 59.99,
        "large": 1e21, "zero": -0.0, "delta": i64::MIN, "id": u64::MAX,
    });
    assert_eq!(key(&made), KEY_OF_JSON);
    assert_eq!(key(&json!([1, -1, 1.5])), key(&(1_u8, -1_i64, 1.5)));
}

/// With `arbitrary_precision`, `serde_json` keeps the text of the `f32`; without it, its value.
#[test]
fn a_value_made_of_an_f32_is_the_number_that_the_build_makes_of_it() {
    let made = json!(0.1_f32);
    let text = made.to_string();
    let is_text = text == "0.1";
    assert_eq!(key(&made) == key(&0.1_f64), is_text);
    assert_eq!(key(&made) == key(&0.1_f32), !is_text);
    assert_eq!(fingerprint(&made) == fingerprint(&0.1_f32), !is_text);
}

const KEY: &str = "9b6e3e1b0930b1921b3b3684ad9640f86991bd64dbac79f7d6e4eb0538ef4edf";
const KEY_OF_JSON: &str = "b4b1b2693e32d002c6b7b02dc8d28751b58d5402dfd34cfb25fa46dfb2c690b9";
const FINGERPRINT_OF_JSON: u128 = 205_161_893_682_905_638_503_946_697_375_427_417_512;

/// A number that a build without `arbitrary_precision` would round is that number there, and
/// refused with the feature: it is never another key.
#[test]
fn a_number_with_too_many_digits_is_no_key_or_the_key_of_what_it_is_rounded_to() {
    for (text, rounded) in [
        ("1.000000000000000001", 1.0),
        ("18446744073709551616", 18_446_744_073_709_551_616.0),
        ("0.1000000000000000055511151231257827", 0.1),
    ] {
        let parsed: Value = serde_json::from_str(text).expect("it is JSON");
        let written = parsed.to_string();
        let kept = written == text;
        match Fingerprint::of(&parsed) {
            Ok(fingerprint) => assert_eq!(
                fingerprint,
                Fingerprint::of(&rounded).expect("it is a number"),
                "{text}"
            ),
            Err(error) => assert!(kept, "{text}: {error}"),
        }
    }
}

/// A build with `arbitrary_precision` stores what it has, and its callers get that.
#[tokio::test]
async fn a_value_with_more_digits_than_a_float_keeps_is_stored_as_the_build_has_it() {
    let text = "18446744073709551617";
    let parsed: Value = serde_json::from_str(text).expect("it is JSON");
    let written = parsed.to_string();
    assert_eq!(stored(&parsed).await, written);
    // What is stored has all digits, or is the nearest float.
    let nearest: f64 = written.parse().expect("it is a number");
    assert!(
        written == text || nearest.to_bits() == 18_446_744_073_709_551_616.0_f64.to_bits(),
        "{written}"
    );
}

/// The stored bytes of `value`.
async fn stored<T: Clone + Serialize + DeserializeOwned>(value: &T) -> String {
    let store = MemoryStore::new();
    let engine = Idempotency::new(store.clone());
    engine
        .call("values", 1)
        .ttl(DAY)
        .run(|| async { Ok::<_, Error>(value.clone()) })
        .await
        .expect("it is stored");
    let hash = engine.record("values", 1).hash().expect("the key is fine");
    let record = store.read(hash).await.expect("the store works").expect("there is a record");
    String::from_utf8(record.body.to_vec()).expect("it is JSON")
}

#[derive(Clone, Serialize, Deserialize)]
struct Payload {
    double: f64,
    signed: i64,
    unsigned: u64,
    huge: u128,
    text: String,
    character: char,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum External {
    Wrapped(Payload),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Internal {
    Map(BTreeMap<String, i64>),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "type", content = "content")]
enum Adjacent {
    Map(BTreeMap<String, i64>),
}

fn payload() -> Payload {
    Payload {
        double: 0.1 + 0.2,
        signed: i64::MIN,
        unsigned: u64::MAX,
        huge: 7,
        text: "\"é\u{1f980}".into(),
        character: '\\',
    }
}

const PAYLOAD: &str = r#""double":0.30000000000000004,"signed":-9223372036854775808,"unsigned":18446744073709551615,"huge":7,"text":"\"é🦀","character":"\\""#;

#[tokio::test]
async fn stored_bytes_are_the_same_in_every_build() {
    assert_eq!(stored(&payload()).await, format!("{{{PAYLOAD}}}"));
    assert_eq!(
        stored(&External::Wrapped(payload())).await,
        format!("{{\"wrapped\":{{{PAYLOAD}}}}}")
    );
    let beside = Adjacent::Map(BTreeMap::from([("b".into(), 2), ("a".into(), -1)]));
    assert_eq!(stored(&beside).await, r#"{"type":"Map","content":{"a":-1,"b":2}}"#);
    let inside = Internal::Map(BTreeMap::from([("b".into(), 2), ("a".into(), -1)]));
    assert_eq!(stored(&inside).await, r#"{"type":"Map","a":-1,"b":2}"#);
    assert_eq!(
        stored(&[1.0, -0.0, 1e21, 5e-324, f64::MAX]).await,
        "[1.0,-0.0,1e+21,5e-324,1.7976931348623157e+308]"
    );
    assert_eq!(stored(&[0.1_f32, 16_777_216.0]).await, "[0.1,16777216.0]");
    assert_eq!(stored(&json!({"a": [1.5, 1, null]})).await, r#"{"a":[1.5,1,null]}"#);
}

/// Amounts that are computed are not the shortest texts that parsers find easy.
#[tokio::test]
async fn a_computed_amount_is_everybodys_to_the_last_bit() {
    let store = MemoryStore::new();
    let (here, there) = (Idempotency::new(store.clone()), Idempotency::new(store));
    for cents in 0..1000_u32 {
        let amount = f64::from(cents) * 1.1 / 3.0;
        for engine in [&here, &there] {
            let call = engine.call("values", cents).ttl(DAY);
            let got: Result<f64, Error> = call.run(|| async { Ok(amount) }).await;
            assert_eq!(got.expect("it is stored").to_bits(), amount.to_bits(), "{amount}");
        }
    }
}
