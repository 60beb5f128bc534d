//! A window of time as a part of a key.

use std::time::Duration;

/// A window of time as a part of a key, created by [`window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(Duration);

impl Window {
    pub(super) fn length(self) -> Duration {
        self.0
    }
}

/// The window of time in which the call is made, as a part of a key. It is for calls without an
/// identifier that count as one when they follow each other within `length`.
///
/// Time is divided into windows of `length` since 1970, on the [`clock`](crate::Builder::clock) of
/// the engine. A call belongs to the window in which it finds a record: the one in which it is
/// made, or else the previous one. So a repetition within `length` after the first call is always
/// recognised, one that comes twice `length` later never is, and in between it depends on the
/// position of the first call in its window.
///
/// **A short `ttl` is usually the better window**: `key = user, ttl = "1h"` has one record that is
/// kept for an hour after the call ended, on the store's clock. There is no edge and no second
/// record to check, and all processes agree. A window is for a result that must outlive the time in
/// which repetitions count, because its record is inspected later.
///
/// - A first call costs an additional read and an additional write: it checks the previous window,
///   and its record notes that this is done, for a caller that has to take it over. A call that the
///   previous window answers costs four requests instead of one.
/// - Windows are counted in UTC and have no calendar: a window of a day begins at midnight UTC, and
///   has 24 hours also on the two days of the year on which local clocks change. For "once per day
///   of the customer", put the customer's date into the key as a text. The caller computes it, and
///   is then responsible for retries around midnight.
/// - The edge is only as sharp as the clocks of the processes agree: if they differ by a second,
///   two calls within a second around the end of a window can both run. So can a call that is
///   repeated after a clock was set back across the beginning of the window: future windows are not
///   checked.
/// - A call that broke off belongs to the window in which it began, even if its policy lets the
///   next one run it again: repetitions count from its beginning, not from its end.
/// - `ttl` must be at least `length`, and a millisecond is added to it, because clocks show whole
///   ones. Otherwise the call fails with [`Config`](crate::ErrorKind::Config): a record that has
///   expired is not found in the previous window.
/// - A key has one window, of a millisecond or more. A scope cannot have one, and neither can a
///   call in a transaction ([`run_in`](crate::Call::run_in)).
/// - [`Idempotency::record`](crate::Idempotency::record) returns the record of the window at the
///   time it is used.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, key::window, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let hour = Duration::from_secs(3600);
/// for _ in 0..2 {
///     let call = engine.call("reports.send", ("ada", window(hour))).ttl(24 * hour);
///     let sent = call.run(|| async { Ok::<_, Error>("report 1".to_owned()) }).await?;
///     assert_eq!(sent, "report 1");
/// }
/// # Ok(())
/// # }
/// ```
pub fn window(length: Duration) -> Window {
    Window(length)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::window;
    use crate::clock::Timestamp;
    use crate::key::Key;

    #[test]
    fn golden_bytes_of_a_released_format() {
        let key = Key::of(&(1, window(Duration::from_secs(1))));
        let bytes = key.in_window(258, 1024).unwrap();
        assert_eq!(
            bytes[bytes.len() - 17..],
            [b'w', 0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0, 0, 1, 2]
        );
    }

    const DAY: u64 = 86_400_000;

    #[test]
    fn both_sides_of_an_edge_are_two_keys_and_all_of_a_window_is_one() {
        let key = Key::of(&("ada", window(Duration::from_millis(DAY))));
        let at = |millis| {
            let number = key.window_number(Timestamp::from_millis(millis));
            key.in_window(number, 1024).unwrap().into_owned()
        };
        for edge in [DAY, 20_454 * DAY] {
            assert_ne!(at(edge - 1), at(edge));
            assert_eq!(at(edge), at(edge + DAY - 1));
            assert_ne!(at(edge), at(edge + DAY));
        }
    }

    #[test]
    fn days_on_which_local_clocks_change_are_windows_like_all_others() {
        let day = Key::of(&window(Duration::from_millis(DAY)));
        let hour = Key::of(&window(Duration::from_secs(3600)));
        // Midnight UTC of 2026-03-29 and 2026-10-25, when clocks in Europe change at one o'clock
        // UTC.
        for midnight in [1_774_742_400_000, 1_792_886_400_000] {
            let number =
                |key: &Key, millis| key.window_number(Timestamp::from_millis(midnight + millis));
            assert_eq!(number(&day, 0) * DAY, midnight);
            assert_eq!(number(&day, DAY - 1), number(&day, 0));
            assert_eq!(number(&day, DAY), number(&day, 0) + 1);
            let hours: Vec<_> =
                (0..24).map(|hours| number(&hour, hours * 3_600_000) - number(&hour, 0)).collect();
            assert!(hours.iter().copied().eq(0..24), "{hours:?}");
        }
    }

    #[test]
    fn time_begins_with_window_zero_and_its_end_has_a_number_too() {
        let key = Key::of(&window(Duration::from_millis(1)));
        assert_eq!(key.window_number(Timestamp::default()), 0);
        assert_eq!(key.window_number(Timestamp::from_millis(u64::MAX)), u64::MAX);
        assert!(key.in_window(u64::MAX, 1024).is_ok());
    }

    #[test]
    fn a_window_begins_with_its_first_millisecond() {
        let key = Key::of(&window(Duration::from_secs(1)));
        for (millis, number) in [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2)] {
            assert_eq!(key.window_number(Timestamp::from_millis(millis)), number, "at {millis} ms");
        }
    }
}
