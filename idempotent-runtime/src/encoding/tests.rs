//! Tests of which values are rejected, where, and what the others read back as.

use std::collections::{BTreeMap, HashMap};

use serde::de::DeserializeOwned;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{decode, encode, encode_for_any_reader, encode_part};

/// Returns the reason why `value` is rejected.
fn refusal<T: Serialize + DeserializeOwned>(value: &T) -> String {
    let refused = encode(value).map(|encoded| encoded.body).unwrap_err().to_string();
    assert_eq!(
        encode_part(value).map(|encoded| encoded.body.get().to_owned()).unwrap_err().to_string(),
        refused
    );
    refused
}

fn text<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> String {
    let encoded = encode(value).unwrap();
    assert_eq!(encoded.value, *value);
    String::from_utf8(encoded.body.to_vec()).unwrap()
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped<T>(T);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
    Nothing,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Payment {
    Card {
        limit: Option<f64>,
    },
    #[expect(clippy::option_option, reason = "it is what JSON cannot tell apart")]
    Transfer(u8, Option<Option<u8>>),
    Voucher(Option<f64>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    items: Vec<Payment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<Wrapped<Option<u8>>>,
}

#[test]
fn some_of_what_becomes_null_is_refused() {
    let null = "the value itself is a `Some` of what becomes `null`, which reads back as `None`";
    assert_eq!(refusal(&Some(())), null);
    assert_eq!(refusal(&Some(None::<u8>)), null);
    assert_eq!(refusal(&Some(Some(None::<u8>))), null);
    assert_eq!(refusal(&Some(Value::Null)), null);
    assert_eq!(refusal(&Some(Unit)), null);
    assert_eq!(refusal(&Some(Wrapped(()))), null);
    assert_eq!(refusal(&Some(Wrapped(None::<u8>))), null);
    assert_eq!(refusal(&Some(Untagged::Nothing)), null);
    assert_eq!(refusal(&Some(Box::new(None::<u8>))), null);
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    assert!(encode(&Some(raw(" null "))).is_err());
    assert!(encode(&Some(raw("[null]"))).is_ok());
}

#[test]
fn nothing_where_nothing_is_meant_is_not_refused() {
    assert_eq!(text(&()), "null");
    assert_eq!(text(&None::<Option<u8>>), "null");
    assert_eq!(text(&Some(Some(1))), "1");
    assert_eq!(text(&Unit), "null");
    assert_eq!(text(&Value::Null), "null");
    assert_eq!(text(&vec![None, Some(1)]), "[null,1]");
    assert_eq!(text(&Ok::<_, u8>(())), r#"{"Ok":null}"#);
    assert_eq!(text(&Some([(); 0])), "[]");
}

#[test]
fn a_number_that_is_not_finite_is_refused_wherever_it_is() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(refusal(&number).contains("NaN or infinite"));
        assert!(refusal(&Some(number)).contains("NaN or infinite"));
        assert!(refusal(&vec![1.0, number]).starts_with("`[1]` is NaN"));
    }
    assert!(refusal(&f32::INFINITY).contains("NaN or infinite"));
    assert_eq!(text(&[f64::MAX, -0.0, 5e-324]), "[1.7976931348623157e+308,-0.0,5e-324]");
}

#[test]
fn the_place_is_named_by_fields_variants_and_positions_and_never_by_keys() {
    let order = |payment| Order { items: vec![Payment::Voucher(None), payment], note: None };
    let nan = Some(f64::NAN);
    assert!(
        refusal(&order(Payment::Card { limit: nan })).starts_with("`items[1].Card.limit` is NaN")
    );
    assert!(refusal(&order(Payment::Voucher(nan))).starts_with("`items[1].Voucher` is NaN"));
    assert!(
        refusal(&order(Payment::Transfer(1, Some(None))))
            .starts_with("`items[1].Transfer[1]` is a `Some`")
    );
    let note = Order { items: Vec::new(), note: Some(Wrapped(None)) };
    assert!(refusal(&note).starts_with("`note` is a `Some`"));
    let cards =
        BTreeMap::from([("4242".to_owned(), vec![1.0]), ("4243".to_owned(), vec![f64::NAN])]);
    assert!(refusal(&cards).starts_with("`{1}[0]` is NaN"));
}

#[test]
fn keys_that_become_one_text_are_refused() {
    #[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Key {
        Number(u8),
        Text(String),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat {
        total: u8,
        #[serde(flatten)]
        rest: BTreeMap<String, u8>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "type")]
    enum Tagged {
        Map(BTreeMap<String, String>),
    }

    let map =
        BTreeMap::from([(Key::Number(1), 1), (Key::Number(2), 2), (Key::Text("1".into()), 3)]);
    assert_eq!(refusal(&map), "the value itself is a map with two keys that have the same text");
    let flat = |key: &str| Flat { total: 1, rest: BTreeMap::from([(key.to_owned(), 2)]) };
    assert!(refusal(&vec![flat("total")]).starts_with("`[0]` is a map with two keys"));
    assert_eq!(text(&flat("other")), r#"{"total":1,"other":2}"#);
    let tagged = Tagged::Map(BTreeMap::from([("type".to_owned(), "Map".to_owned())]));
    assert!(refusal(&tagged).contains("two keys"));
}

#[test]
fn keys_that_json_has_no_text_for_are_refused_and_the_others_read_back() {
    assert!(refusal(&BTreeMap::from([((1, 2), 3)])).contains("a key that is not a string"));
    assert!(refusal(&BTreeMap::from([(None::<u8>, 3)])).contains("a key that is not a string"));
    assert_eq!(text(&BTreeMap::from([(Some(1), 3)])), r#"{"1":3}"#);
    assert_eq!(
        text(&BTreeMap::from([(u128::MAX, 1)])),
        r#"{"340282366920938463463374607431768211455":1}"#
    );
    assert_eq!(text(&BTreeMap::from([(false, 0), (true, 1)])), r#"{"false":0,"true":1}"#);
    assert_eq!(text(&BTreeMap::from([('"', 0)])), r#"{"\"":0}"#);
    let numbers: HashMap<i16, i16> = (0..100).map(|number| (number, number)).collect();
    assert_eq!(encode(&numbers).unwrap().value, numbers);
}

#[test]
fn a_key_that_the_parser_takes_for_an_instruction_is_refused() {
    let nested = json!({"$serde_json::private::RawValue": "{\"amount\":1}"});
    assert!(refusal(&nested).contains("reserves for itself"));
    let number = HashMap::from([("$serde_json::private::Number".to_owned(), "1".to_owned())]);
    assert!(refusal(&number).contains("reserves for itself"));
    let raw = RawValue::from_string(r#"{"amount": 1}"#.to_owned()).unwrap();
    assert_eq!(encode(&raw).unwrap().value.get(), r#"{"amount": 1}"#);
}

#[test]
fn what_does_not_read_back_is_refused_without_a_word_of_the_value() {
    #[derive(Debug, Serialize)]
    struct Secret(&'static str);
    impl<'de> Deserialize<'de> for Secret {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u8::deserialize(deserializer).map(|_| Self(""))
        }
    }
    let refused = refusal(&[Secret("card-4242")]);
    assert!(refused.contains("cannot be read back as its type: Data error at byte"), "{refused}");
    assert!(!refused.contains("4242"));
}

/// A list that is as deep as it is long.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Chain {
    next: Option<Box<Chain>>,
}

fn chain(length: usize) -> Chain {
    (1..length).fold(Chain { next: None }, |next, _| Chain { next: Some(Box::new(next)) })
}

#[test]
fn what_is_too_deep_to_be_read_is_refused_and_nothing_that_is_not() {
    assert_eq!(text(&chain(127)).len(), "{\"next\":}".len() * 127 + "null".len());
    assert!(refusal(&chain(128)).contains("cannot be read back"));
    assert!(refusal(&chain(10_000)).contains("nested too deep"));
}

#[test]
fn newtypes_and_options_make_no_value_too_deep_that_reads_back() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Link(Option<Box<Order>>);
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        next: Link,
    }
    /// It contains no container, however deep it is.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Hollow(Option<Box<Hollow>>);
    let link = |length: usize| {
        (0..length).fold(Link(None), |next, _| Link(Some(Box::new(Order { next }))))
    };
    assert!(text(&link(127)).ends_with('}'));
    assert!(refusal(&link(128)).contains("nested too deep"));

    let hollow = (0..10_000).fold(Hollow(None), |inner, _| Hollow(Some(Box::new(inner))));
    assert!(refusal(&hollow).contains("nested too deep"));
}

#[test]
fn an_answer_without_a_known_reader_reads_back_as_json() {
    assert_eq!(encode_for_any_reader(&"receipt 7").unwrap(), r#""receipt 7""#);
    assert!(encode_for_any_reader(&chain(127)).is_ok());
    assert!(
        encode_for_any_reader(&chain(128)).unwrap_err().to_string().contains("cannot be read back")
    );
    assert!(encode_for_any_reader(&Some(())).is_err());
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    assert!(encode_for_any_reader(&raw(&deep)).is_err());
}

#[test]
fn the_words_of_a_serialize_that_fails_are_kept_with_the_place() {
    struct Refuses;
    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            map.serialize_entry("a", &1)?;
            Err(serde::ser::Error::custom("not today"))
        }
    }
    assert_eq!(encode_for_any_reader(&vec![Refuses]).unwrap_err().to_string(), "`[0]`: not today");
}

#[test]
fn a_text_that_cannot_be_written_is_refused_and_no_panic() {
    #[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
    struct Date(u8);
    impl std::fmt::Display for Date {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            if self.0 == 0 { Err(std::fmt::Error) } else { write!(f, "day {}", self.0) }
        }
    }
    impl Serialize for Date {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }
    let dates = [Date(1), Date(0)];
    assert_eq!(
        encode_for_any_reader(&dates).unwrap_err().to_string(),
        "`[1]` has a text that its `Display` implementation failed to write"
    );
    assert_eq!(encode_for_any_reader(&Date(1)).unwrap(), r#""day 1""#);
    assert!(refusal(&HashMap::from([(Date(0), 1)])).contains("failed to write"));
}

#[test]
fn a_float_reads_back_as_itself() {
    let mut state = 1_u64;
    for _ in 0..10_000 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = f64::from_bits(state);
        if number.is_finite() {
            let encoded = encode(&number).unwrap();
            assert_eq!(encoded.value.to_bits(), number.to_bits());
            assert_eq!(decode::<f64>(&encoded.body).unwrap().to_bits(), number.to_bits());
        }
        let single = f32::from_bits((state >> 32) as u32);
        if single.is_finite() {
            assert_eq!(encode(&single).unwrap().value.to_bits(), single.to_bits());
        }
    }
}

/// A map whose keys are floats, which no map of the standard library can be.
#[derive(Debug)]
struct Rates<F>(Vec<(F, u8)>);

impl<F: Serialize> Serialize for Rates<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (rate, count) in &self.0 {
            map.serialize_entry(rate, count)?;
        }
        map.end()
    }
}

#[test]
fn a_key_of_a_map_that_is_no_number_is_refused_as_a_value_is() {
    for number in [f64::NAN, f64::INFINITY] {
        let refused = encode_for_any_reader(&Rates(vec![(number, 1)])).unwrap_err().to_string();
        assert!(refused.contains("NaN or infinite"), "{refused}");
    }
    let refused = encode_for_any_reader(&Rates(vec![(f32::NAN, 1)])).unwrap_err().to_string();
    assert!(refused.contains("NaN or infinite"), "{refused}");
}
