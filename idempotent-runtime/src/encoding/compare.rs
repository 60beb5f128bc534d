//! Whether what was read back says what was written: both are encoded, and the encodings compared.
//!
//! They are the same text for most types. A `HashSet` and a `HashMap` have another order in each instance, so where the texts
//! differ, members and elements are compared without their order.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::place::{Place, Step};

/// The longest text that is compared without its order: much more than what most results are, and little enough to be
/// looked at several times.
const LONGEST: usize = 64 * 1024;

type Members<'a> = BTreeMap<String, &'a RawValue>;
type Elements<'a> = Vec<&'a RawValue>;

/// The first place at which `again` says something else than `written`, if there is one.
pub(super) fn difference(written: &[u8], again: &[u8]) -> Option<Place> {
    if written == again || written.len().max(again.len()) > LONGEST {
        return None;
    }
    let parsed = serde_json::from_slice::<&RawValue>(written).ok().zip(serde_json::from_slice::<&RawValue>(again).ok());
    let Some((written, again)) = parsed else { return Some(Place::default()) };
    if ordered(written) == ordered(again) { None } else { Some(place(written, again)) }
}

/// The value with its members and elements in an order that depends on nothing but themselves.
fn ordered(value: &RawValue) -> String {
    let text = value.get();
    match parts(text) {
        Parts::Members(members) => {
            // The names are unequal, and in order.
            let members = members.iter().map(|(name, value)| format!("{name:?}:{}", ordered(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Parts::Elements(elements) => {
            let mut elements: Vec<_> = elements.into_iter().map(ordered).collect();
            elements.sort_unstable();
            format!("[{}]", elements.join(","))
        }
        Parts::None => text.to_owned(),
    }
}

enum Parts<'a> {
    Members(Members<'a>),
    Elements(Elements<'a>),
    /// It is text, a number, or one of the three words.
    None,
}

fn parts(text: &str) -> Parts<'_> {
    match text.as_bytes().first() {
        Some(b'{') => serde_json::from_str(text).map_or(Parts::None, Parts::Members),
        Some(b'[') => serde_json::from_str(text).map_or(Parts::None, Parts::Elements),
        _ => Parts::None,
    }
}

/// Where two values that differ do so first. A name may be data of the user's, so a member goes by its position.
fn place(written: &RawValue, again: &RawValue) -> Place {
    let inside = match (parts(written.get()), parts(again.get())) {
        (Parts::Members(written), Parts::Members(again)) => {
            let pairs = written.iter().map(|(name, value)| (*value, again.get(name).copied()));
            differing(pairs, Step::Entry)
        }
        (Parts::Elements(written), Parts::Elements(again)) if written.len() == again.len() => {
            let pairs = written.iter().zip(again).map(|(value, again)| (*value, Some(again)));
            differing(pairs, Step::Element)
        }
        _ => None,
    };
    inside.unwrap_or_default()
}

fn differing<'a>(
    pairs: impl Iterator<Item = (&'a RawValue, Option<&'a RawValue>)>,
    step: fn(usize) -> Step,
) -> Option<Place> {
    pairs.enumerate().find_map(|(position, (written, again))| {
        let mut place = match again {
            Some(again) if written.get() == again.get() => return None,
            Some(again) if ordered(written) == ordered(again) => return None,
            Some(again) => place(written, again),
            None => Place::default(),
        };
        place.within(step(position));
        Some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, difference};

    fn place(written: &str, again: &str) -> Option<String> {
        difference(written.as_bytes(), again.as_bytes()).map(|place| place.to_string())
    }

    #[test]
    fn another_order_is_no_difference() {
        assert_eq!(place("[1,2,[3,4]]", "[[4,3],2,1]"), None);
        assert_eq!(place(r#"{"a":[{"b":1,"c":2}],"d":null}"#, r#"{"d":null,"a":[{"c":2,"b":1}]}"#), None);
        assert_eq!(place(r#"{"a\n":1,"b":2}"#, r#"{"b":2,"a\u000a":1}"#), None);
    }

    #[test]
    fn anything_else_is_and_has_a_place() {
        let at = |written, again| place(written, again).unwrap();
        assert_eq!(at("1", "1.0"), "the value itself");
        assert_eq!(at("100000000000000000000000001", "1e26"), "the value itself");
        assert_eq!(at("[1,1,2]", "[1,2,2]"), "`[1]`");
        assert_eq!(at("[1,[2,3],4]", "[1,[2,5],4]"), "`[1][1]`");
        assert_eq!(at("[1,2]", "[1,2,3]"), "the value itself");
        assert_eq!(at(r#"{"a":1,"b":{"c":2}}"#, r#"{"a":1,"b":{"c":3}}"#), "`{1}{0}`");
        assert_eq!(at(r#"{"code":1,"charge":"ch_1"}"#, r#"{"code":1}"#), "`{0}`");
        assert_eq!(at(r#"{"code":1}"#, r#"{"code":1,"charge":null}"#), "the value itself");
        assert_eq!(at(r#"{"a":"1"}"#, r#"{"a":1}"#), "`{0}`");
        assert_eq!(at(r#"["a,b"]"#, r#"["a","b"]"#), "the value itself");
    }

    #[test]
    fn what_is_too_long_for_another_order_is_not_compared() {
        let long = |first| format!("[{first},{}]", "1,".repeat(LONGEST / 2) + "1");
        assert_eq!(place(&long(2), &long(3)), None);
    }
}
