//! Exact decimal numbers, independent of their spelling.

/// A decimal number. Two are equal if and only if they have the same value, unlike floats, which
/// round.
///
/// It is stored as the text that spells it, so even the largest exponent costs nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal<'a>(&'a str);

/// The parts of a number, independent of its spelling.
struct Parts<'a> {
    is_negative: bool,
    /// The text from its first digit that is not zero to its last one, possibly with a point in
    /// between. Empty for zero.
    significant: &'a str,
    /// The power of ten of the last significant digit.
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Returns the number that `text` spells in JSON (RFC 8259). Returns `None` for everything
    /// else, and for an exponent beyond 2⁶², with which no reader could calculate.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        parts(text).map(|_| Self(text))
    }

    /// Returns true if readers that use floats see a number and not an infinity.
    pub(super) fn is_finite(&self) -> bool {
        self.0.parse::<f64>().is_ok_and(f64::is_finite)
    }

    /// Appends the same bytes for the same number: the sign, the exponent, and the digits followed
    /// by a zero byte, which is not a digit.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        // `read` has accepted the text, so this never returns early.
        let Some(Parts { is_negative, significant, exponent }) = parts(self.0) else { return };
        bytes.push(is_negative.into());
        bytes.extend(exponent.to_be_bytes());
        bytes.extend(significant.bytes().filter(u8::is_ascii_digit));
        bytes.push(0);
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        let encoded = |decimal: &Self| {
            let mut bytes = Vec::new();
            decimal.encode(&mut bytes);
            bytes
        };
        encoded(self) == encoded(other)
    }
}

fn parts(text: &str) -> Option<Parts<'_>> {
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => (true, unsigned),
        None => (false, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let is_whole = is_digits(whole) && (whole == "0" || !whole.starts_with('0'));
    let exponent_digits =
        exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
    if !is_whole || !fraction.is_none_or(is_digits) || !exponent_digits.is_none_or(is_digits) {
        return None;
    }
    let significant = mantissa.trim_matches(['0', '.']);
    if significant.is_empty() {
        return Some(Parts { is_negative: false, significant, exponent: 0 });
    }
    let exponent = match exponent {
        Some(exponent) => {
            exponent.parse::<i64>().ok().filter(|exponent| exponent.unsigned_abs() < 1 << 62)?
        }
        None => 0,
    };
    // The trimmed end was zeros in front of the point, unless significant digits reach behind it.
    let behind = fraction.map_or(0, |fraction| fraction.trim_end_matches('0').len());
    let zeros = if behind == 0 { whole.len() - whole.trim_end_matches('0').len() } else { 0 };
    let shift = i64::try_from(zeros).ok()? - i64::try_from(behind).ok()?;
    Some(Parts { is_negative, significant, exponent: exponent + shift })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Decimal;

    fn encoded(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        Decimal::read(text).unwrap_or_else(|| panic!("{text} is a number")).encode(&mut bytes);
        bytes
    }

    /// A number with up to six digits at up to twelve places on both sides of the point, as JSON
    /// spells it, and its value in units of 10⁻¹⁸.
    fn spelled() -> impl Strategy<Value = (String, i128)> {
        (any::<bool>(), 0..1_000_000_u32, 0..6_usize, 0..3_usize, -6..=6_i32, 0..4_usize).prop_map(
            |(is_negative, digits, point, zeros, exponent, spelling)| {
                let padded = format!("{digits:0width$}", width = point + 1);
                let (whole, fraction) = padded.split_at(padded.len() - point);
                let whole = whole.trim_start_matches('0');
                let whole = if whole.is_empty() { "0" } else { whole };
                let fraction = format!("{fraction}{}", "0".repeat(zeros));
                let sign = if is_negative { "-" } else { "" };
                let point_and_fraction =
                    if fraction.is_empty() { String::new() } else { format!(".{fraction}") };
                let exponent_text = match spelling {
                    0 if exponent == 0 => String::new(),
                    0 | 1 => format!("e{exponent}"),
                    2 if exponent >= 0 => format!("E+{exponent:03}"),
                    _ => format!("E{exponent}"),
                };
                let places = 18 + exponent - i32::try_from(point).unwrap();
                let scale = 10_i128.pow(u32::try_from(places).unwrap());
                let value = i128::from(digits) * scale * if is_negative { -1 } else { 1 };
                (format!("{sign}{whole}{point_and_fraction}{exponent_text}"), value)
            },
        )
    }

    proptest! {
        #[test]
        fn equal_bytes_are_equal_values((one, this) in spelled(), (other, that) in spelled()) {
            prop_assert_eq!(encoded(&one) == encoded(&other), this == that, "{} {}", one, other);
            prop_assert_eq!(Decimal::read(&one) == Decimal::read(&other), this == that, "{} {}", one, other);
        }

        /// Most pairs of the property above differ; these never do.
        #[test]
        fn every_spelling_of_a_value_has_the_same_bytes(
            digits in "[1-9][0-9]{0,30}",
            shift in 0..40_usize,
            zeros in 0..40_usize,
            exponent in -1_000_000_000_000_i64..1_000_000_000_000,
        ) {
            let plain = encoded(&format!("{digits}e{exponent}"));
            let shift_back = exponent + i64::try_from(shift).unwrap();
            prop_assert_eq!(&plain, &encoded(&format!("{digits}.{}e{exponent}", "0".repeat(zeros + 1))));
            let behind = format!("0.{}{digits}{}", "0".repeat(shift), "0".repeat(zeros));
            let length = i64::try_from(digits.len()).unwrap();
            prop_assert_eq!(&plain, &encoded(&format!("{behind}E{}", shift_back + length)));
            prop_assert_eq!(&plain, &encoded(&format!("{digits}{}e{}", "0".repeat(zeros), exponent - i64::try_from(zeros).unwrap())));
            prop_assert_ne!(&plain, &encoded(&format!("-{digits}e{exponent}")));
            prop_assert_ne!(&plain, &encoded(&format!("{digits}e{}", exponent + 1)));
            prop_assert_ne!(&plain, &encoded(&format!("{digits}.{}1e{exponent}", "0".repeat(zeros))));
        }

        /// A number that round-trips through a float is the same number to readers with floats and
        /// to us.
        #[test]
        fn the_text_of_a_float_is_its_own(number in any::<f64>().prop_filter("JSON has no others", |number| number.is_finite())) {
            let (plain, scientific) = (format!("{number}"), format!("{number:e}"));
            prop_assert_eq!(encoded(&plain), encoded(&scientific));
            prop_assert!(Decimal::read(&plain).is_some_and(|decimal| decimal.is_finite()));
        }
    }

    #[test]
    fn an_exponent_that_cannot_be_counted_with_is_no_number_but_for_zero() {
        for text in
            ["1e4611686018427387904", "1e99999999999999999999", "-1.5E-99999999999999999999"]
        {
            assert!(Decimal::read(text).is_none(), "{text}");
        }
        assert_eq!(encoded("0e99999999999999999999"), encoded("0"));
        assert_eq!(encoded("1e-000000000000000000000000000001"), encoded("0.1"));
        assert_ne!(encoded("1e4611686018427387903"), encoded("1e4611686018427387902"));
    }

    #[test]
    fn what_json_does_not_spell_is_no_number() {
        for text in [
            "", "-", "+1", "01", "-01", "1.", ".1", "1e", "1e+", "e1", "1e1.0", "1_0", "0x1", "1 ",
            "١", "--1", "1.-1",
        ] {
            assert!(Decimal::read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn infinities_of_floats_are_told() {
        assert!(Decimal::read("1.7976931348623157e308").unwrap().is_finite());
        for text in ["1e309", "-1e309", "1e4611686018427387903"] {
            assert!(!Decimal::read(text).unwrap().is_finite(), "{text}");
        }
        assert!(Decimal::read("1e-4611686018427387903").unwrap().is_finite());
    }
}
