//! The place at which the next batch of a purge begins.

use std::future::Future;
use std::time::Duration;

use super::Answer;
use crate::lock::Mutex;
use crate::store::PurgeOutcome;

/// The number of removed records up to which each look begins at the very beginning.
const FEW: u64 = 10_000;
/// After that, one in this many looks does: one an hour, where an engine purges every minute.
const LOOKS: u32 = 60;

/// The place of a row in the index of `purge_at`: that value, and the key where the server orders
/// rows of the same time by key.
pub(crate) type Place = (i64, [u8; 32]);

/// The progress of one store's purges in the order of `purge_at`.
///
/// Removed rows stay in the index while a transaction is open that began before: the server may
/// still need them for it. A purge that starts from the beginning scans all of them, each time. So
/// a batch begins where the previous one ended, and so does the first batch of the next look.
///
/// This skips rows that are written behind the mark later: by a transaction that was open for
/// longer than the record was to live, by an operator, by hand. Such rows have expired, and only
/// take space. Now and then a look begins at the beginning and finds them. Rows that another
/// transaction had locked are known, and the next look begins with them.
#[derive(Debug, Default)]
pub(crate) struct PurgeMark(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The row after which the next batch begins. `None` is the beginning, here and below.
    next: Option<Place>,
    /// The last row that any batch has reached.
    reached: Option<Place>,
    /// The first row that this look had to leave.
    left: Option<Place>,
    removed: u64,
    looks: u32,
}

/// The outcome of one batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch {
    pub(crate) removed: usize,
    pub(crate) put_off: usize,
    /// The last row that it reached.
    pub(crate) last: Option<Place>,
    /// The first row, from where the batch began, that is due and still there.
    pub(crate) oldest: Option<Place>,
    /// True if it took fewer rows than it was allowed to: there are no more after it.
    pub(crate) is_last: bool,
}

impl PurgeMark {
    pub(crate) fn next(&self) -> Option<Place> {
        self.with(|state| state.next)
    }

    /// Records the end of a batch. Returns the `purge_at` of the first row that this look has left,
    /// as far as is known.
    pub(crate) fn ended(&self, batch: &Batch) -> Option<i64> {
        self.with(|state| state.ended(batch))
    }

    /// Returns true if `batch`, which began at `begin`, has reached the end, and there may be rows
    /// before `begin`.
    pub(crate) fn is_to_begin_anew(&self, begin: Option<Place>, batch: &Batch) -> bool {
        begin.is_some() && batch.is_last && self.next().is_none()
    }

    /// Records that all rows up to `place` were checked, before the outcome of their batch is
    /// known.
    #[cfg(feature = "mysql")]
    pub(crate) fn reached(&self, place: Option<Place>) {
        self.with(|state| state.reached = state.reached.max(place));
    }

    /// Records that a batch has failed, perhaps because it had to scan too much: the next one
    /// starts after the rows that were reached.
    pub(crate) fn failed(&self) {
        self.with(|state| state.next = state.next.max(state.reached));
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock())
    }
}

/// Removes due records, at most `limit`, by calls of `batch`. It receives the place at which to
/// start and the maximum number of records, and returns the server's time with the outcome.
///
/// # Errors
/// Those of the first batch. If the batch after it fails, which begins at the beginning once more,
/// the result of the first one is returned: the next look finds the rest.
pub(crate) async fn purge_from_mark<B>(
    mark: &PurgeMark,
    limit: usize,
    batch: impl Fn(Option<Place>, usize) -> B + Send + Sync,
) -> Answer<PurgeOutcome>
where
    B: Future<Output = Answer<(i64, Batch)>> + Send,
{
    let mut purged = PurgeOutcome::default();
    let mut is_first = true;
    loop {
        let begin = mark.next();
        let (now, batch) = match batch(begin, limit - purged.removed - purged.put_off).await {
            Ok(done) => done,
            Err(error) => {
                mark.failed();
                if is_first {
                    return Err(error);
                }
                tracing::warn!(%error, "expired records before the last ones are not removed: the next look begins there");
                return Ok(purged);
            }
        };
        let oldest = mark.ended(&batch);
        purged.removed += batch.removed;
        purged.put_off += batch.put_off;
        purged.lag = oldest
            .map(|oldest| Duration::from_millis(u64::try_from(now - oldest).unwrap_or_default()));
        if !mark.is_to_begin_anew(begin, &batch) {
            return Ok(purged);
        }
        is_first = false;
    }
}

impl State {
    fn ended(&mut self, batch: &Batch) -> Option<i64> {
        self.removed += batch.removed as u64;
        self.reached = self.reached.max(batch.last);
        let is_left = |place: &Place| Some(*place) < self.reached;
        self.left = self.left.into_iter().chain(batch.oldest.filter(is_left)).min();
        let oldest = self.left.into_iter().chain(batch.oldest).min();
        if batch.is_last {
            self.end_look();
        } else {
            // Other callers may purge with the same store at the same time, and may have got
            // further.
            self.next = self.next.max(batch.last);
        }
        oldest.map(|(purge_at, _)| purge_at)
    }

    fn end_look(&mut self) {
        self.looks = (self.looks + 1) % LOOKS;
        // The place just before it.
        let left = self.left.take().map(|(purge_at, _)| (purge_at, [0; 32]));
        let is_new_beginning = self.removed <= FEW || self.looks == 0;
        self.next =
            if is_new_beginning { None } else { left.into_iter().chain(self.reached).min() };
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, FEW, LOOKS, Place, PurgeMark};

    fn place(purge_at: i64) -> Place {
        (purge_at, [7; 32])
    }

    /// A batch that reached the row of `last` and removed `removed`.
    fn batch(last: i64, removed: u64) -> Batch {
        let removed = usize::try_from(removed).expect("a number of rows");
        Batch { removed, last: Some(place(last)), ..Batch::default() }
    }

    fn last_batch() -> Batch {
        Batch { is_last: true, ..Batch::default() }
    }

    #[test]
    fn a_batch_begins_where_the_one_before_has_ended() {
        let mark = PurgeMark::default();
        assert_eq!(mark.next(), None);
        mark.ended(&batch(5, 3));
        assert_eq!(mark.next(), Some(place(5)));
        mark.ended(&batch(4, 3));
        assert_eq!(mark.next(), Some(place(5)), "another one was slower");
    }

    #[test]
    fn a_look_begins_anew_while_few_were_removed_and_rarely_after_that() {
        let mark = PurgeMark::default();
        mark.ended(&batch(5, FEW));
        let begin = mark.next();
        mark.ended(&last_batch());
        assert_eq!(mark.next(), None);
        assert!(mark.is_to_begin_anew(begin, &last_batch()));
        assert!(!mark.is_to_begin_anew(None, &last_batch()));
        mark.ended(&batch(9, 1));
        let mut anew = 0;
        for _ in 0..3 * LOOKS {
            mark.ended(&last_batch());
            anew += u32::from(mark.next().is_none());
        }
        assert_eq!(anew, 3);
    }

    #[test]
    fn what_was_left_is_told_until_the_look_ends_and_the_next_one_begins_there() {
        let mark = PurgeMark::default();
        mark.ended(&batch(5, FEW + 1));
        assert_eq!(
            mark.ended(&Batch { oldest: Some(place(6)), ..batch(9, 1) }),
            Some(6),
            "locked by somebody"
        );
        assert_eq!(mark.ended(&Batch { oldest: Some(place(30)), ..batch(20, 1) }), Some(6));
        assert_eq!(mark.next(), Some(place(20)));
        assert_eq!(mark.ended(&last_batch()), Some(6));
        assert_eq!(mark.next(), Some((6, [0; 32])));
        assert_eq!(mark.ended(&last_batch()), None);
        assert_eq!(mark.next(), Some(place(20)));
    }

    #[test]
    fn what_takes_too_long_is_not_tried_again_at_once() {
        let mark = PurgeMark::default();
        mark.failed();
        assert_eq!(mark.next(), None);
        mark.ended(&batch(5, 1));
        mark.ended(&last_batch());
        assert_eq!(mark.next(), None);
        mark.failed();
        assert_eq!(mark.next(), Some(place(5)));
    }
}
