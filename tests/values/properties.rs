//! Generated values of every shape: one answer for everybody, or one error.

use std::collections::BTreeMap;

use chrono::TimeZone as _;
use idempotency::ErrorKind;
use proptest::prelude::*;
use proptest::strategy::Union;
use serde_json::Value;

use crate::answers::{Stored, one_answer};
use crate::shapes::*;

/// A value that JSON holds is everybody's as it was, unless its type itself leaves something out.
fn check<T: Stored>(value: &T, is_exact: bool) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    match runtime.block_on(one_answer(value)) {
        Ok(answer) if is_exact => assert_eq!(answer, format!("{value:?}")),
        _ => {}
    }
}

fn floats() -> impl Strategy<Value = f64> + Clone {
    prop_oneof![
        4 => any::<f64>(),
        // As prices are computed.
        4 => (any::<u32>(), 1_u32..1000).prop_map(|(cents, by)| f64::from(cents) / f64::from(by) * 1.1),
        1 => prop::sample::select(vec![
            0.0, -0.0, 0.1 + 0.2, 5e-324, f64::MIN_POSITIVE, f64::MAX, f64::MIN, 1e16, 9_007_199_254_740_993.0,
            f64::NAN, f64::INFINITY, f64::NEG_INFINITY,
        ]),
    ]
}

fn finite() -> impl Strategy<Value = f64> + Clone {
    floats().prop_map(|number| if number.is_finite() { number } else { 0.5 })
}

fn unsigned() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![any::<u64>(), 0..3_u64, Just(u64::MAX), Just(1 << 53), Just((1 << 53) + 1)]
}

fn signed() -> impl Strategy<Value = i64> + Clone {
    prop_oneof![any::<i64>(), -2..3_i64, Just(i64::MIN), Just(i64::MAX)]
}

fn huge() -> impl Strategy<Value = u128> + Clone {
    prop_oneof![
        any::<u128>(),
        unsigned().prop_map(u128::from),
        Just(u128::MAX),
        Just(u128::from(u64::MAX) + 1)
    ]
}

fn texts() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        "\\PC{0,6}",
        prop::sample::select(vec![
            "",
            "null",
            "1",
            "total",
            "rate",
            "type",
            "NaN",
            "\u{0}",
            "\u{feff}",
            "\u{1f980}",
            "$serde_json::private::Number",
            "$serde_json::private::RawValue",
        ])
        .prop_map(str::to_owned),
    ]
}

fn json() -> impl Strategy<Value = Value> + Clone {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        signed().prop_map(Value::from),
        unsigned().prop_map(Value::from),
        floats().prop_map(Value::from),
        texts().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(texts(), inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn numbers() -> impl Strategy<Value = Numbers> {
    let single =
        prop_oneof![any::<f32>(), Just(0.1_f32), Just(f32::MAX), Just(-0.0_f32), Just(f32::NAN)];
    let wide = (any::<i32>(), any::<u32>(), signed(), unsigned());
    let huge = (prop_oneof![any::<i128>(), Just(i128::MIN)], huge());
    (any::<(i8, u8, i16, u16)>(), wide, huge, single, floats()).prop_map(
        |(small, wide, huge, single, double)| Numbers { small, wide, huge, single, double },
    )
}

fn options() -> impl Strategy<Value = Options> {
    let often = |inner| prop::option::weighted(0.7, inner);
    let wrapped = prop::option::weighted(0.1, prop::option::of(Just(Unit)).prop_map(Wrapped));
    (
        any::<Option<u8>>(),
        prop::option::of(often(any::<u8>())),
        prop::option::weighted(0.1, Just(())),
        wrapped,
        prop::option::of(floats()),
        prop::collection::vec(prop::option::of(prop::option::weighted(0.8, any::<bool>())), 0..3),
        prop::option::of(json()),
        prop::option::of(often(any::<u8>())),
    )
        .prop_map(|(plain, twice, unit, wrapped, float, listed, any, skipped)| Options {
            plain,
            twice,
            unit,
            wrapped,
            float,
            listed,
            any,
            skipped,
        })
}

fn payload() -> impl Strategy<Value = Payload> {
    (floats(), signed(), unsigned(), huge(), texts(), any::<char>()).prop_map(
        |(double, signed, unsigned, huge, text, character)| Payload {
            double,
            signed,
            unsigned,
            huge,
            text,
            character,
        },
    )
}

/// The same variants of an enum of any tagging.
macro_rules! tagged {
    ($name:ident) => {
        Union::new([
            Just($name::Nothing).boxed(),
            payload().prop_map($name::Wrapped).boxed(),
            (floats(), unsigned(), prop::option::of(prop::option::weighted(0.8, texts())))
                .prop_map(|(amount, count, note)| $name::Named { amount, count, note })
                .boxed(),
            prop::collection::btree_map(texts(), signed(), 0..3).prop_map($name::Map).boxed(),
        ])
    };
}

fn ambiguous() -> impl Strategy<Value = Ambiguous> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(Ambiguous::Small),
        unsigned().prop_map(Ambiguous::Large),
        huge().prop_map(Ambiguous::Huge),
        finite().prop_map(Ambiguous::Float),
        any::<Option<bool>>().prop_map(Ambiguous::Maybe),
        Just(Ambiguous::Nothing),
        texts().prop_map(Ambiguous::Text),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop::collection::vec(inner, 0..3).prop_map(Ambiguous::List)
    })
}

fn maps() -> impl Strategy<Value = Maps> {
    let key = prop_oneof![(-2_i16..12).prop_map(Key::Number), "[0-9]{1,2}".prop_map(Key::Text)];
    let name = prop_oneof![4 => Just(Name::One), 4 => Just(Name::Two), 1 => any::<u8>().prop_map(Name::Other)];
    let wrapped = prop::option::weighted(0.9, texts());
    (
        prop::collection::btree_map(key, any::<u8>(), 0..4),
        prop::collection::btree_map(any::<i128>(), any::<u8>(), 0..3),
        prop::collection::btree_map(any::<bool>(), any::<Option<u8>>(), 0..3),
        prop::collection::btree_map(any::<char>(), any::<u8>(), 0..3),
        prop::collection::btree_map(name, any::<u8>(), 0..2),
        prop::collection::btree_map(wrapped, any::<u8>(), 0..2),
    )
        .prop_map(|(odd, numbers, flags, characters, named, wrapped)| Maps {
            odd,
            numbers,
            flags,
            characters,
            named,
            wrapped,
        })
}

fn flat() -> impl Strategy<Value = Flat> {
    let inner = (floats(), any::<u8>(), 0..3_u8, 0..3_u8)
        .prop_map(|(rate, unseen, needed, defaulted)| Inner { rate, unseen, needed, defaulted });
    let rest = prop::collection::btree_map(texts(), json(), 0..3);
    (floats(), inner, rest).prop_map(|(total, inner, rest)| Flat { total, inner, rest })
}

fn moments() -> impl Strategy<Value = Moments> {
    let seconds = -377_000_000_000_i64..253_000_000_000;
    (seconds, 0..1_000_000_000_u32, -86_399..86_400_i32, any::<bool>(), any::<(i64, u64)>())
        .prop_map(|(seconds, nanoseconds, offset, is_stamped, (signed, unsigned))| {
            let instant = chrono::Utc.timestamp_opt(seconds.max(0), nanoseconds).unwrap();
            let zone = chrono::FixedOffset::east_opt(offset).expect("it is less than a day");
            let at = time::OffsetDateTime::from_unix_timestamp(seconds).expect("it is in range");
            let offset =
                time::UtcOffset::from_whole_seconds(offset).expect("it is less than a day");
            Moments {
                instant,
                zoned: instant.with_timezone(&zone),
                stamp: is_stamped.then_some(instant),
                day: instant.date_naive(),
                at: at
                    .checked_to_offset(offset)
                    .unwrap_or(at)
                    .replace_nanosecond(nanoseconds)
                    .expect("it is in range"),
                length: time::Duration::new(signed / 2, 7),
                wait: std::time::Duration::new(unsigned / 2, nanoseconds),
            }
        })
}

fn money() -> impl Strategy<Value = Money> {
    let decimal = || {
        (any::<i64>(), 0..28_u32)
            .prop_map(|(digits, scale)| rust_decimal::Decimal::new(digits, scale))
            .boxed()
    };
    (decimal(), prop::option::of(decimal()), any::<u128>()).prop_map(|(price, refund, id)| Money {
        price,
        refund,
        id: uuid::Uuid::from_u128(id),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn numbers_are_everybodys_as_they_were(value in numbers()) {
        check(&value, true);
    }

    #[test]
    fn computed_floats_are_everybodys_as_they_were(value in finite()) {
        check(&value, true);
    }

    #[test]
    fn options_are_everybodys_as_they_were_or_refused(value in options()) {
        check(&value, true);
    }

    #[test]
    fn variants_with_a_name_outside_are_everybodys_as_they_were(value in tagged!(External)) {
        check(&value, true);
    }

    #[test]
    fn variants_with_a_name_inside_are_everybodys_as_they_were(value in tagged!(Internal)) {
        check(&value, true);
    }

    #[test]
    fn variants_with_a_name_beside_are_everybodys_as_they_were(value in tagged!(Adjacent)) {
        check(&value, true);
    }

    #[test]
    fn variants_without_a_name_are_everybodys_as_the_first_that_reads_them(value in tagged!(Untagged)) {
        check(&value, false);
    }

    #[test]
    fn variants_that_read_each_other_are_everybodys_as_the_first_that_reads_them(value in ambiguous()) {
        check(&value, false);
    }

    #[test]
    fn maps_with_odd_keys_are_everybodys_as_they_were_or_refused(value in maps()) {
        // To a key without a name, a number in a text is a text.
        check(&value, value.odd.keys().all(|key| matches!(key, Key::Text(_))));
    }

    #[test]
    fn flattened_structs_are_everybodys_without_what_is_skipped(value in flat()) {
        check(&value, false);
    }

    #[test]
    fn moments_are_everybodys_as_they_were(value in moments()) {
        // `chrono` stores milliseconds where it was told so, and zones without seconds.
        check(&value, false);
    }

    #[test]
    fn amounts_of_money_are_everybodys_as_they_were(value in money()) {
        check(&value, true);
    }

    #[test]
    fn any_json_is_everybodys_as_it_was(value in json()) {
        check(&value, true);
    }

    #[test]
    fn lists_of_anything_are_one_answer(value in prop::collection::vec((options(), flat(), ambiguous()), 0..2)) {
        check(&value, false);
    }
}

#[test]
fn what_a_type_does_not_read_back_is_refused_at_once_and_for_everybody() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let inner = Inner { rate: 1.0, unseen: 7, needed: 0, defaulted: 0 };
    assert_eq!(runtime.block_on(one_answer(&inner)), Err(ErrorKind::Encode), "a field is missing");
    let inner = Inner { needed: 1, ..inner };
    let read = Inner { unseen: 0, ..inner.clone() };
    assert_eq!(
        runtime.block_on(one_answer(&inner)),
        Ok(format!("{read:?}")),
        "what is skipped is nobody's"
    );
    for refused in [Some(None), Some(Some(None))] {
        assert_eq!(
            runtime.block_on(one_answer::<Option<Option<Option<u8>>>>(&refused)),
            Err(ErrorKind::Encode)
        );
    }
    assert_eq!(
        runtime.block_on(one_answer(&BTreeMap::from([((1, 2), 3)]))),
        Err(ErrorKind::Encode)
    );
}
