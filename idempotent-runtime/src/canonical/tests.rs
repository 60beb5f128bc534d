//! Tests of what counts in the canonical encoding and what does not.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use super::{CanonicalError, to_bytes};

fn bytes<T: Serialize>(value: T) -> Vec<u8> {
    to_bytes(&value).unwrap()
}

#[derive(Serialize)]
struct Order {
    total: i64,
    currency: &'static str,
    note: Option<()>,
}

#[derive(Serialize)]
enum Payment {
    Cash,
    Card(u8),
    Transfer(u8, u8),
    Voucher { code: u8 },
}

#[derive(Serialize)]
struct Unit;

#[derive(Serialize)]
struct Wrapped(u8);

#[derive(Serialize)]
struct Point {
    y: u8,
    x: u8,
}

/// Bytes as serde has them, not as a sequence of numbers.
struct Blob<'a>(&'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// A map with its entries in this order.
struct Listed<'a, K, V>(&'a [(K, V)]);

impl<K: Serialize, V: Serialize> Serialize for Listed<'_, K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// A sequence that does not know its length.
struct Streamed<'a>(&'a [u8]);

impl Serialize for Streamed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(None)?;
        for element in self.0 {
            sequence.serialize_element(element)?;
        }
        sequence.end()
    }
}

/// A list that is as deep as it is long.
#[derive(Serialize)]
struct Chain(Option<Box<Chain>>);

fn chain(length: usize) -> Chain {
    (0..length).fold(Chain(None), |rest, _| Chain(Some(Box::new(rest))))
}

#[test]
fn golden_bytes_of_version_1() {
    let value = (
        Order { total: -7, currency: "EUR", note: Some(()) },
        [Payment::Card(1), Payment::Cash],
        1.5,
        'x',
    );
    let expected = [
        "5b 0000000000000004",
        "7b 0000000000000003",
        "73 0000000000000004 6e6f7465 6f 30",
        "73 0000000000000005 746f74616c 69 01 00000000000000000000000000000007",
        "73 0000000000000008 63757272656e6379 73 0000000000000003 455552",
        "5b 0000000000000002",
        "76 0000000000000004 43617264 69 00 00000000000000000000000000000001",
        "65 0000000000000004 43617368",
        "66 3ff8000000000000",
        "63 00000078",
    ];
    let expected = expected.concat().replace(' ', "");
    let expected: Vec<u8> = (0..expected.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&expected[at..at + 2], 16).unwrap())
        .collect();
    assert_eq!(bytes(value), expected);
}

#[test]
fn the_way_a_value_is_held_does_not_count() {
    assert_eq!(bytes(1_u8), bytes(1_i128));
    assert_eq!(bytes(-1_i8), bytes(-1_i64));
    assert_eq!(bytes(u128::from(u64::MAX)), bytes(u64::MAX));
    assert_eq!(bytes(0.5_f32), bytes(0.5_f64));
    assert_eq!(bytes(-0.0), bytes(0.0));
    assert_eq!(bytes(-0.0_f32), bytes(0.0));
    assert_eq!(bytes(Wrapped(7)), bytes(7));
    assert_eq!(bytes(()), bytes(Unit));
    assert_eq!(bytes([1, 2]), bytes(vec![1, 2]));
    assert_eq!(bytes((1, 2)), bytes(Streamed(&[1, 2])));
    assert_eq!(bytes(Box::new("a")), bytes(String::from("a")));
    assert_eq!(bytes(Point { y: 2, x: 1 }), bytes(Listed(&[("x", 1), ("y", 2)])));
}

#[test]
fn different_values_have_different_bytes() {
    let encodings = [
        bytes(()),
        bytes(None::<()>),
        bytes(Some(())),
        bytes(Some(Some(()))),
        bytes(false),
        bytes(true),
        bytes(0),
        bytes(1),
        bytes(-1),
        bytes(i128::MIN),
        bytes(i128::MAX),
        bytes(u128::MAX),
        bytes(0.0),
        bytes(1.0),
        bytes(-1.0),
        bytes('1'),
        bytes("1"),
        bytes(""),
        bytes(Blob(b"1")),
        bytes(Blob(&[1])),
        bytes([1_u8]),
        bytes([1, 1]),
        bytes([[1], [1]]),
        bytes((1, (1,))),
        bytes(((1,), 1)),
        bytes(["a", "bc"]),
        bytes(["ab", "c"]),
        bytes([0_u8; 0]),
        bytes(HashMap::<u8, u8>::new()),
        bytes(HashMap::from([(1, 2)])),
        bytes(HashMap::from([("1", 2)])),
        bytes(HashMap::from([("2", 1)])),
        bytes(Payment::Cash),
        bytes("Cash"),
        bytes(Payment::Card(1)),
        bytes(Payment::Transfer(1, 1)),
        bytes(Payment::Voucher { code: 1 }),
        bytes(Order { total: 1, currency: "EUR", note: None }),
        bytes(Order { total: 1, currency: "EUR", note: Some(()) }),
        bytes(Order { total: 1, currency: "USD", note: None }),
    ];
    for (position, one) in encodings.iter().enumerate() {
        for other in &encodings[position + 1..] {
            assert_ne!(one, other);
        }
    }
}

#[test]
fn numbers_that_equal_nothing_are_refused() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(to_bytes(&vec![Some(number)]), Err(CanonicalError::NotFinite));
    }
    assert_eq!(to_bytes(&f32::NAN), Err(CanonicalError::NotFinite));
    assert!(CanonicalError::NotFinite.to_string().contains("NaN or infinite"));
}

#[test]
fn a_value_without_end_is_refused_and_a_deep_one_is_not() {
    assert_ne!(to_bytes(&chain(60)), to_bytes(&chain(61)));
    assert_eq!(to_bytes(&chain(1000)), Err(CanonicalError::TooDeep));
}

#[test]
fn the_depth_of_neighbours_does_not_add_up() {
    assert!(to_bytes(&vec![(1, Some([2])); 1000]).is_ok());
}

#[test]
fn the_error_of_a_value_is_kept() {
    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no card number in fingerprints"))
        }
    }

    assert_eq!(to_bytes(&[Refuses]).unwrap_err().to_string(), "no card number in fingerprints");
}

#[test]
fn a_text_that_cannot_be_written_is_refused() {
    struct Date;

    impl std::fmt::Display for Date {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Err(std::fmt::Error)
        }
    }

    impl Serialize for Date {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    assert_eq!(to_bytes(&[Date]), Err(CanonicalError::Unwritable));
    assert_eq!(bytes(format_args!("day {}", 1)), bytes("day 1"));
}

/// A value that is compared structurally, so that two values with one encoding are the same value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    None,
    Some(Box<Value>),
    Bool(bool),
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            Self::Some(value) => serializer.serialize_some(value),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Bytes(value) => serializer.serialize_bytes(value),
            Self::List(value) => value.serialize(serializer),
            Self::Map(value) => value.serialize(serializer),
        }
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        (-2_i64..3).prop_map(Value::Integer),
        "[ab]{0,2}".prop_map(Value::Text),
        proptest::collection::vec(0_u8..2, 0..3).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|value| Value::Some(Box::new(value))),
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::List),
            proptest::collection::btree_map("[ab]{0,2}", inner, 0..3).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn the_order_of_entries_does_not_count(
        (sorted, shuffled) in proptest::collection::btree_map("[a-c]{0,3}", 0_u8..4, 0..8).prop_flat_map(|map| {
            let entries: Vec<_> = map.into_iter().collect();
            (Just(entries.clone()), Just(entries).prop_shuffle())
        })
    ) {
        let sorted = Listed(&sorted);
        let shuffled = Listed(&shuffled);
        prop_assert_eq!(bytes(&sorted), bytes(&shuffled));
        prop_assert_eq!(bytes([(1, sorted)]), bytes([(1, shuffled)]));
    }

    #[test]
    fn two_values_share_their_bytes_only_if_they_are_equal(one in values(), other in values()) {
        prop_assert_eq!(bytes(&one) == bytes(&other), one == other);
    }

    #[test]
    fn the_order_of_a_sequence_counts(list: Vec<u8>) {
        let reversed: Vec<u8> = list.iter().rev().copied().collect();
        prop_assert_eq!(bytes(&list) == bytes(&reversed), list == reversed);
    }
}

#[test]
fn the_variant_counts_also_where_its_fields_are_the_same() {
    #[derive(Serialize)]
    enum Other {
        Coupon { code: u8 },
    }
    #[derive(Serialize)]
    struct Code {
        code: u8,
    }
    let voucher = bytes(Payment::Voucher { code: 1 });
    assert_ne!(voucher, bytes(Other::Coupon { code: 1 }));
    assert_ne!(voucher, bytes(Code { code: 1 }));
}
