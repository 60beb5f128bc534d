//! A window of time as a part of a key.

use std::time::Duration;

/// A window of time as a part of a key, made by [`window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(Duration);

impl Window {
    pub(super) fn length(self) -> Duration {
        self.0
    }
}

/// The window of time in which the call is made, as a part of a key: for calls that nobody gave an identifier, and that
/// count as one when they follow each other within `length`.
///
/// Time is cut into windows of `length` since 1970, on the [`clock`](crate::Builder::clock) of the engine. A call
/// belongs to the window that it finds a record in: the one it is made in, or else the one before. So a repetition
/// within `length` after the first call is always recognised, one that comes twice `length` later never, and in between
/// it depends on where the first call lay in its window.
///
/// **A short `ttl` is usually the better window**: `key = user, ttl = "1h"` has one record that is kept for an hour
/// after the call ended, on the store's clock. There is no edge, no second record to look at, and all processes agree.
/// A window is for a result that has to outlive the time in which repetitions count, because somebody looks at its
/// record later.
///
/// - A first call costs one more question to the store. A call that the window before answers costs four requests
///   instead of one.
/// - The edge is as sharp as the clocks of the processes agree: where they differ by a second, two calls that meet within
///   a second around the end of a window can both run.
/// - `ttl` is at least `length`, else the call fails with [`Config`](crate::ErrorKind::Config): a record that is
///   gone is not found in the window before.
/// - A key has one window, of a millisecond or more. A scope has none, and a call in a transaction
///   ([`run_in`](crate::Call::run_in)) neither.
/// - [`Idempotency::record`](crate::Idempotency::record) gives the record of the window in which it is asked.
///
/// ```
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency, key::window, store::MemoryStore};
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
        assert_eq!(bytes[bytes.len() - 17..], [b'w', 0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn a_window_begins_with_its_first_millisecond() {
        let key = Key::of(&window(Duration::from_secs(1)));
        for (millis, number) in [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2)] {
            assert_eq!(key.window_number(Timestamp::from_millis(millis)), number, "at {millis} ms");
        }
    }
}
