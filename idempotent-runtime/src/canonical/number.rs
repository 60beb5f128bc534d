//! Numbers that `serde_json` passes as text if any crate of the build has enabled its feature
//! `arbitrary_precision`.
//!
//! Without the feature, the same value holds an integer of 64 bits or a float. Both builds must
//! encode it alike, or a feature enabled elsewhere would change the key of a request. A number that
//! a build without the feature would round is rejected: rounded, two requests would share one key,
//! and kept as it is, one request would have two.

use super::CanonicalError;

/// A number read from text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

/// Returns what `text` is without the feature.
pub(super) fn read(text: &str) -> Result<Number, CanonicalError> {
    if let Ok(number) = text.parse() {
        return Ok(Number::Unsigned(number));
    }
    match text.parse() {
        // `-0` is a float in that case.
        Ok(0) | Err(_) => {}
        Ok(number) => return Ok(Number::Signed(number)),
    }
    let float: f64 = text.parse().map_err(|_| CanonicalError::Inexact)?;
    if !float.is_finite() {
        return Err(CanonicalError::NotFinite);
    }
    let (written, read) = (Decimal::of(text), Decimal::of(&format!("{float:e}")));
    if written.is_some() && written == read {
        Ok(Number::Float(float))
    } else {
        Err(CanonicalError::Inexact)
    }
}

/// A decimal number in its normal form: digits without zeros at their ends, and the power of ten of
/// the last digit.
#[derive(Debug, PartialEq)]
struct Decimal {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Returns `None` if the exponent is out of range.
    fn of(text: &str) -> Option<Self> {
        let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let kept = digits.trim_end_matches('0');
        let exponent =
            exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        let exponent = exponent.checked_add(i64::try_from(digits.len() - kept.len()).ok()?)?;
        let digits = kept.trim_start_matches('0').to_owned();
        let exponent = if digits.is_empty() { 0 } else { exponent };
        Some(Self { is_negative, digits, exponent })
    }
}

#[cfg(test)]
mod tests {
    use serde::ser::{Serialize, SerializeStruct as _, Serializer};

    use super::{Number, read};
    use crate::canonical::{CanonicalError, to_bytes};
    use crate::encoding::NUMBER;

    /// A number as `serde_json` passes it with `arbitrary_precision`, whether or not the feature is
    /// enabled.
    struct Text(&'static str);

    impl Serialize for Text {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut number = serializer.serialize_struct(NUMBER, 1)?;
            number.serialize_field(NUMBER, self.0)?;
            number.end()
        }
    }

    fn bytes<T: Serialize>(value: T) -> Vec<u8> {
        to_bytes(&value).unwrap()
    }

    #[test]
    fn a_text_is_encoded_as_the_number_that_it_is_without_the_feature() {
        assert_eq!(bytes([Text("0"), Text("7")]), bytes([0, 7]));
        assert_eq!(bytes(Text("18446744073709551615")), bytes(u64::MAX));
        assert_eq!(bytes(Text("-9223372036854775808")), bytes(i64::MIN));
        for (text, float) in [
            ("1.0", 1.0),
            ("1.50", 1.5),
            ("1e2", 100.0),
            ("1E+2", 100.0),
            ("0.1", 0.1),
            ("-0", 0.0),
            ("-0.0", 0.0),
            ("0e99", 0.0),
            ("18446744073709552000", 18_446_744_073_709_552_000.0),
            ("1.7976931348623157e308", f64::MAX),
            ("5e-324", 5e-324),
            ("9007199254740993.0", f64::NAN),
        ] {
            if float.is_nan() {
                assert_eq!(to_bytes(&Text(text)), Err(CanonicalError::Inexact), "{text}");
            } else {
                assert_eq!(bytes(Text(text)), bytes(float), "{text}");
            }
        }
    }

    #[test]
    fn what_would_be_rounded_is_refused_and_never_equal_to_its_neighbour() {
        for text in [
            "1.000000000000000001",
            "18446744073709551616",
            "340282366920938463463374607431768211455",
            "0.1000000000000000055511151231257827",
            "1e-400",
            "1e99999999999999999999",
            "no number",
        ] {
            assert!(
                matches!(read(text), Err(CanonicalError::Inexact | CanonicalError::NotFinite)),
                "{text}"
            );
        }
        assert_eq!(read("1e400"), Err(CanonicalError::NotFinite));
        assert_eq!(read("-1"), Ok(Number::Signed(-1)));
    }
}
