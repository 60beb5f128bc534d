//! The texts that many records have in common: operations, namespaces and holders.

use std::cell::RefCell;
use std::sync::Arc;

/// The number of pairs of texts that a thread remembers. A power of two.
const PAIRS: usize = 32;
/// The size of the longest text that is remembered, in bytes.
const LONGEST: usize = 64;

thread_local! {
    static RECENT: RefCell<[[Option<Arc<str>>; 2]; PAIRS]> =
        const { RefCell::new([const { [const { None }; 2] }; PAIRS]) };
}

/// Returns `text`, shared with the records that this thread has read before. A replay from a store
/// then allocates nothing for the texts that it has in common with the one before it.
pub(crate) fn shared(text: &str) -> Arc<str> {
    if text.len() > LONGEST {
        return text.into();
    }
    // Fails only while the thread ends.
    RECENT
        .try_with(|recent| remembered(&mut recent.borrow_mut()[pair_of(text)], text))
        .unwrap_or_else(|_| text.into())
}

/// Returns the text that equals `text`. A new one replaces the one that was used less recently.
fn remembered(pair: &mut [Option<Arc<str>>; 2], text: &str) -> Arc<str> {
    if pair[0].as_deref() != Some(text) {
        pair.swap(0, 1);
    }
    match &pair[0] {
        Some(known) if **known == *text => known.clone(),
        _ => pair[0].insert(text.into()).clone(),
    }
}

/// Returns the pair that a text belongs to, by its FNV-1a hash.
fn pair_of(text: &str) -> usize {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The upper half is mixed better than the lower one.
    usize::try_from(hash >> 32).unwrap_or_default() & (PAIRS - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{LONGEST, PAIRS, pair_of, remembered, shared};

    #[test]
    fn equal_texts_are_shared() {
        let texts = ["payments.charge", "shop", "shop-6c9f/1234", ""];
        let first = texts.map(shared);
        for (text, first) in texts.iter().zip(&first) {
            assert_eq!(&**first, *text);
            assert!(Arc::ptr_eq(&shared(text), first), "{text}");
        }
    }

    #[test]
    fn any_number_of_texts_is_read_as_it_is() {
        for number in 0..10 * PAIRS {
            let text = number.to_string();
            assert_eq!(&*shared(&text), text);
            assert_eq!(&*shared(&text), text);
        }
        let long = "x".repeat(LONGEST + 1);
        assert_eq!(&*shared(&long), long);
    }

    #[test]
    fn two_texts_of_one_pair_are_both_remembered() {
        let mut pair = [None, None];
        let first = ["a", "b"].map(|text| remembered(&mut pair, text));
        for _ in 0..2 {
            assert!(Arc::ptr_eq(&remembered(&mut pair, "a"), &first[0]));
            assert!(Arc::ptr_eq(&remembered(&mut pair, "b"), &first[1]));
        }
        assert_eq!(&*remembered(&mut pair, "c"), "c");
        assert!(Arc::ptr_eq(&remembered(&mut pair, "b"), &first[1]), "used after the other one");
        assert!(pair_of("a") < PAIRS);
    }
}
