//! The digest of a whole value as a key.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::KeyEncoder;
use crate::canonical;

/// The digest of a value, created by [`digest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(Result<[u8; 32], String>);

impl Digest {
    pub(super) fn encode_into(&self, encoder: &mut KeyEncoder) {
        match &self.0 {
            Ok(bytes) => encoder.digest(*bytes),
            Err(reason) => encoder.invalid(reason.clone()),
        }
    }
}

/// Creates a key from everything in `value`, for requests that carry no identifier.
///
/// Two requests with equal content are then one call, even if the user meant to order the same
/// thing twice: prefer an identifier that the client chose once per intent. What counts, and what
/// does not:
///
/// - The serialized form of the value counts, not `==`: **equal values with different text are two
///   keys**, and the retry runs again. A decimal type that keeps its zeros writes `1.0` and `1.00`,
///   a time has another text in another zone, and a type that is written in the words of a locale
///   differs between locales. Digest cents, UTC, and codes.
/// - The order of fields and of map entries does not count. That of a sequence does, and for a
///   `HashSet` it is random: use a `BTreeSet`.
/// - The width of an integer does not count: `1_u8` is `1_i64`. An integer is not a float: `1` and
///   `1.0` are two keys. A float has only one zero, and `0.1_f32` is another number than `0.1_f64`.
///   `0.1 + 0.2` is not `0.3` either, and a sum of floats depends on its order: digest cents, not
///   euros.
/// - `None` is a value here, unlike in a key itself, and `Some(1)` is not `1`. A field that is
///   added later as an `Option` changes the digest unless it has
///   `#[serde(skip_serializing_if = "Option::is_none")]`.
/// - The boundary between two fields counts: `("ab", "c")` is not `("a", "bc")`.
/// - Names of fields and variants count, that of the type does not: renaming a field creates new
///   keys, and retries of earlier calls run again.
/// - Content that changes between retries (a time stamp, a trace identifier) turns every retry into
///   a new call.
/// - A `serde_json::Value` has the same digest whether or not a crate of the build enables
///   `arbitrary_precision`, unless it was made of an `f32`: `json!(0.1_f32)` is `0.1` with it, and
///   `0.10000000149011612` without. With it, a number with more digits than an `f64` keeps has no
///   canonical encoding.
/// - What a type of another crate writes may depend on that crate's features, such as
///   `serde-float` of `rust_decimal`, and any crate of the build can enable them. Then every
///   digest changes, and a fingerprint too: digest text or integers of your own instead.
///
/// A value that has no canonical encoding (`NaN`, an infinity) makes the call fail with
/// [`InvalidKey`](crate::ErrorKind::InvalidKey).
///
/// ```
/// use idempotency::key::digest;
///
/// assert_eq!(digest(&("ada", [1, 2])), digest(&("ada", [1, 2])));
/// assert_ne!(digest(&("ada", [1, 2])), digest(&("ada", [2, 1])));
/// ```
pub fn digest<T: Serialize + ?Sized>(value: &T) -> Digest {
    Digest(
        canonical::to_bytes(value)
            .map(|bytes| Sha256::digest(bytes).into())
            .map_err(|error| error.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use serde::Serialize;

    use super::digest;
    use crate::key::{Key, KeyError};

    #[test]
    fn the_order_of_map_entries_does_not_count_and_that_of_a_sequence_does() {
        let forward: HashMap<u32, u32> = (0..100).map(|number| (number, number)).collect();
        let backward: HashMap<u32, u32> = (0..100).rev().map(|number| (number, number)).collect();
        let sorted: BTreeMap<u32, u32> =
            forward.iter().map(|(key, value)| (*key, *value)).collect();
        assert_eq!(digest(&forward), digest(&backward));
        assert_eq!(digest(&forward), digest(&sorted));
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
        assert_eq!(digest(&BTreeSet::from([1, 2])), digest(&BTreeSet::from([2, 1])));
    }

    #[test]
    fn golden_bytes_of_a_released_format() {
        let key = Key::of(&digest(&("ada", [1, 2])));
        let bytes = key
            .in_window(0, 1024)
            .unwrap()
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        assert_eq!(bytes, "645af9c1cf0470318c3b3931fa036ef6df80cb5f287ea4bbe50f0d967f4d354d9c");
    }

    #[test]
    fn where_one_field_ends_and_the_next_begins_counts() {
        assert_ne!(digest(&("ab", "c")), digest(&("a", "bc")));
        assert_ne!(digest(&("abc", "")), digest(&("", "abc")));
        assert_ne!(digest(&[vec![1], vec![2, 3]]), digest(&[vec![1, 2], vec![3]]));
        assert_ne!(digest(&(1, (2, 3))), digest(&((1, 2), 3)));
        assert_ne!(digest(&[""; 1]), digest(&[""; 2]));
        let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_ne!(digest(&map("ab", "c")), digest(&map("a", "bc")));
    }

    #[test]
    fn names_of_fields_and_variants_count_and_their_order_and_the_name_of_the_type_do_not() {
        #[derive(Serialize)]
        struct Order {
            user: u8,
            item: u8,
        }
        #[derive(Serialize)]
        struct Turned {
            item: u8,
            user: u8,
        }
        #[derive(Serialize)]
        struct Renamed {
            user: u8,
            article: u8,
        }
        #[derive(Serialize)]
        enum Way {
            Land(u8),
            Sea(u8),
        }
        let order = digest(&Order { user: 1, item: 2 });
        assert_eq!(order, digest(&Turned { item: 2, user: 1 }));
        assert_ne!(order, digest(&Turned { item: 1, user: 2 }), "values belong to their names");
        assert_ne!(order, digest(&Renamed { user: 1, article: 2 }));
        assert_ne!(digest(&Way::Land(1)), digest(&Way::Sea(1)));
    }

    #[test]
    fn the_width_of_a_number_does_not_count_and_its_kind_does() {
        assert_eq!(digest(&1_u8), digest(&1_i128));
        assert_eq!(digest(&u64::MAX), digest(&u128::from(u64::MAX)));
        assert_eq!(digest(&0.5_f32), digest(&0.5_f64));
        assert_ne!(digest(&0.1_f32), digest(&0.1_f64), "two different numbers");
        assert_ne!(digest(&1), digest(&1.0));
        assert_ne!(digest(&1), digest(&"1"));
    }

    #[test]
    fn both_zeros_are_one_value_and_what_equals_nothing_is_no_key() {
        assert_eq!(digest(&-0.0), digest(&0.0));
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = Key::of(&("order", digest(&[number]))).in_window(0, 1024).unwrap_err();
            assert!(matches!(error, KeyError::Invalid(_)), "{error:?}");
        }
    }

    #[test]
    fn none_is_a_value_in_a_digest_and_a_missing_key_outside_of_one() {
        assert_ne!(digest(&None::<()>), digest(&Some(())));
        assert_ne!(digest(&Some(None::<u8>)), digest(&None::<Option<u8>>));
        assert_ne!(digest(&Some(1)), digest(&1), "unlike in a key");
        assert!(Key::of(&digest(&None::<u8>)).in_window(0, 1024).is_ok());
        let missing = Key::of(&None::<u8>).in_window(0, 1024).unwrap_err();
        assert!(matches!(missing, KeyError::Missing(_)), "{missing:?}");
    }

    #[test]
    fn what_serde_skips_is_not_there() {
        #[derive(Serialize)]
        struct Order {
            id: u8,
            #[serde(skip_serializing_if = "Option::is_none")]
            note: Option<u8>,
            #[serde(skip)]
            #[expect(dead_code, reason = "it is skipped")]
            seen: u8,
        }
        #[derive(Serialize)]
        struct Older {
            id: u8,
        }
        assert_eq!(
            digest(&Order { id: 1, note: None, seen: 1 }),
            digest(&Order { id: 1, note: None, seen: 2 })
        );
        assert_eq!(digest(&Order { id: 1, note: None, seen: 1 }), digest(&Older { id: 1 }));
        assert_ne!(digest(&Order { id: 1, note: Some(1), seen: 1 }), digest(&Older { id: 1 }));
    }

    #[test]
    fn a_digest_is_no_other_key_and_fits_the_limit_whatever_the_size_of_the_value() {
        let large = "a".repeat(1 << 20);
        assert!(Key::of(&digest(&large)).in_window(0, 1024).is_ok());
        assert_ne!(Key::of(&digest(&"a")), Key::of(&"a"));
    }
}
