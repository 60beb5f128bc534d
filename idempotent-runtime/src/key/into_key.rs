//! The types that can be keys.

use std::borrow::Cow;
use std::num::NonZero;
use std::rc::Rc;
use std::sync::Arc;

use super::{Digest, KeyEncoder, Window};

/// A type whose values can be keys.
///
/// Strings, integers, `bool`, `char`, `Uuid`, byte arrays, references, tuples, [`Digest`] and
/// [`Window`] are. `Option` is too, and `None` makes the call fail with
/// [`MissingKey`](crate::ErrorKind::MissingKey). Floating point numbers are not: they have two
/// zeros and a `NaN` that differs from itself.
///
/// A user's newtype forwards to the value it wraps:
///
/// ```
/// use idempotency::key::{IntoKey, Key, KeyEncoder};
///
/// struct OrderId(u64);
///
/// impl IntoKey for OrderId {
///     fn encode(&self, encoder: &mut KeyEncoder) {
///         self.0.encode(encoder);
///     }
/// }
///
/// assert_eq!(Key::of(&OrderId(7)), Key::of(&7));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an idempotency key",
    label = "not a key",
    note = "keys are strings, integers, `bool`, `char`, `Uuid`, byte arrays, `Option`s, references and tuples of these",
    note = "write a field that identifies the request, for example `order.id`, or `::idempotency::key::digest(&order)` for a whole value"
)]
pub trait IntoKey {
    /// Writes the value by calling one method of `encoder`, once.
    fn encode(&self, encoder: &mut KeyEncoder);
}

impl IntoKey for str {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.string(self);
    }
}

impl IntoKey for [u8] {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.bytes(self);
    }
}

impl<const N: usize> IntoKey for [u8; N] {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.bytes(self);
    }
}

impl IntoKey for bool {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.bool(*self);
    }
}

impl IntoKey for char {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.char(*self);
    }
}

impl IntoKey for uuid::Uuid {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.uuid(*self.as_bytes());
    }
}

impl IntoKey for Digest {
    fn encode(&self, encoder: &mut KeyEncoder) {
        self.encode_into(encoder);
    }
}

impl IntoKey for Window {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.window(self.length());
    }
}

impl<T: IntoKey> IntoKey for Option<T> {
    fn encode(&self, encoder: &mut KeyEncoder) {
        match self {
            Some(value) => value.encode(encoder),
            None => encoder.missing(),
        }
    }
}

impl<T: IntoKey + ToOwned + ?Sized> IntoKey for Cow<'_, T> {
    fn encode(&self, encoder: &mut KeyEncoder) {
        (**self).encode(encoder);
    }
}

macro_rules! forwards {
    ($($(#[$($generics:tt)*])? $type:ty;)*) => {$(
        impl$(<$($generics)*>)? IntoKey for $type {
            fn encode(&self, encoder: &mut KeyEncoder) {
                (**self).encode(encoder);
            }
        }
    )*};
}

forwards! {
    String;
    Vec<u8>;
    #[T: IntoKey + ?Sized] &T;
    #[T: IntoKey + ?Sized] &mut T;
    #[T: IntoKey + ?Sized] Box<T>;
    #[T: IntoKey + ?Sized] Rc<T>;
    #[T: IntoKey + ?Sized] Arc<T>;
}

macro_rules! integers {
    ($($method:ident: $($type:ty)*;)*) => {$($(
        impl IntoKey for $type {
            fn encode(&self, encoder: &mut KeyEncoder) {
                #[allow(clippy::cast_lossless, reason = "the list has `usize` and `isize`, which have no `From`")]
                encoder.$method(*self as _);
            }
        }

        impl IntoKey for NonZero<$type> {
            fn encode(&self, encoder: &mut KeyEncoder) {
                self.get().encode(encoder);
            }
        }
    )*)*};
}

integers! {
    unsigned: u8 u16 u32 u64 u128 usize;
    signed: i8 i16 i32 i64 i128 isize;
}

macro_rules! tuples {
    ($($($part:ident)*;)*) => {$(
        impl<$($part: IntoKey),*> IntoKey for ($($part,)*) {
            #[allow(non_snake_case, reason = "the parts are named after their types")]
            fn encode(&self, encoder: &mut KeyEncoder) {
                let ($($part,)*) = self;
                encoder.tuple(|parts| {
                    $(parts.add($part);)*
                });
            }
        }
    )*};
}

tuples! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D F;
    A B C D F G;
    A B C D F G H;
    A B C D F G H I;
    A B C D F G H I J;
    A B C D F G H I J K;
    A B C D F G H I J K L;
    A B C D F G H I J K L M;
}

#[cfg(test)]
mod tests {
    use crate::key::{IntoKey, Key, KeyError};

    fn key(value: impl IntoKey) -> Key {
        Key::of(&value)
    }

    #[test]
    fn values_of_different_types_are_different_keys() {
        let keys = [
            key(1),
            key("1"),
            key('1'),
            key(true),
            key([1_u8]),
            key((1,)),
            key(((1,),)),
            key((1, 1)),
            key(uuid::Uuid::from_u128(1)),
            key(-1),
            key(""),
        ];
        for (position, one) in keys.iter().enumerate() {
            for other in &keys[position + 1..] {
                assert_ne!(one, other);
            }
        }
    }

    #[test]
    fn the_boundary_between_parts_counts() {
        assert_ne!(key(("a", "bc")), key(("ab", "c")));
        assert_ne!(key((("a", "b"), "c")), key(("a", ("b", "c"))));
        assert_ne!(key(([1_u8, 2], [3_u8])), key(([1_u8], [2_u8, 3])));
    }

    #[test]
    fn the_way_a_value_is_held_does_not_count() {
        assert_eq!(key(String::from("a")), key("a"));
        assert_eq!(key(Some(&7_u8)), key(7_i128));
        assert_eq!(key(std::sync::Arc::new(Box::new("a"))), key("a"));
        assert_eq!(key(std::borrow::Cow::Borrowed("a")), key("a"));
        assert_eq!(key(vec![1_u8, 2]), key([1_u8, 2]));
        assert_eq!(key(i128::MAX), key(i128::MAX.unsigned_abs()));
    }

    #[test]
    fn none_anywhere_is_a_missing_key() {
        for missing in [key(None::<u8>), key(("a", (1, None::<&str>)))] {
            let error = missing.in_window(0, 1024).unwrap_err();
            assert!(matches!(error, KeyError::Missing(_)), "{error:?}");
        }
    }

    #[test]
    fn a_key_over_the_limit_is_invalid() {
        let error = key("a".repeat(1025)).in_window(0, 1024).unwrap_err();
        assert!(matches!(error, KeyError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains("the limit is 1024"), "{error}");
    }
}
