//! Counts of the records of a store, for operators.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::codes::state_code;
use super::request::Only;
use super::{Record, State};
use crate::clock::Timestamp;
use crate::key::KeyHash;

/// The bounds of a [census](super::Store::census).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CensusBudget {
    /// The time after which the store begins no further step, counted on a monotonic clock. A step
    /// that has begun may take as long as any request. Zero allows no step.
    pub time: Duration,
}

impl CensusBudget {
    /// A census that stops after `time`.
    pub const fn of(time: Duration) -> Self {
        Self { time }
    }
}

/// The numbers of records in a store. Returned by [`Store::census`](super::Store::census).
///
/// A census counts what a list would show: each record as it is at the moment when the store comes
/// to it. It is not one moment for all of them: a record that is created, removed or changed
/// meanwhile may be counted as it was or as it is, or not at all.
///
/// A store of your own begins with [`new`](Self::new), adds its records one by one, and says where
/// it [stopped](Self::stopped_before):
///
/// ```
/// use idempotency::key::KeyHash;
/// use idempotency::store::{Census, Record, State, Token};
///
/// let mut census = Census::new();
/// let key = KeyHash::from_bytes([7; 32]);
/// census.add(&Record::new(key, Token::from_bits(1), "payments.charge".into()));
/// let group = census.groups().next().unwrap();
/// assert_eq!((&*group.operation, group.state, group.count), ("payments.charge", State::InProgress, 1));
/// assert!(census.complete);
///
/// let stopped = census.stopped_before(KeyHash::from_bytes([0x9c; 32]));
/// assert_eq!((stopped.complete, stopped.percent), (false, Some(61)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    groups: BTreeMap<Place, CensusGroup>,
    /// The number of values in the places of records that cannot be read: records of a newer
    /// release, or values written by other software. They are in no group.
    pub unreadable: u64,
    /// True if the store came to all of its records. False if its time was over before, or if it
    /// failed on the way: what it had counted until then is returned, and no error.
    pub complete: bool,
    /// The part of the store that was seen, in percent: 100 if it is [`complete`](Self::complete),
    /// otherwise at most 99. `None` if the store does not know it. An estimate, and because keys are
    /// hashes a good one.
    pub percent: Option<u8>,
    /// The store's time when it last came to a record; zero if it came to none.
    pub at: Timestamp,
}

/// The order of the groups.
type Place = (Arc<str>, Arc<str>, u8, bool);

/// Records of one namespace and operation that are in the same state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CensusGroup {
    /// The namespace of the records.
    pub namespace: Arc<str>,
    /// The operation of the records.
    pub operation: Arc<str>,
    /// The state of the records. A record that has expired is a [`State::Tombstone`] if one follows,
    /// and otherwise not counted, whether or not it is still in the store.
    pub state: State,
    /// True if the records are in doubt, as [`Only::InDoubt`] judges it: also those in progress
    /// whose owner is gone and that no caller has noticed yet.
    pub in_doubt: bool,
    /// The number of records.
    pub count: u64,
    /// The sum of the sizes of their bodies, as stored: results, stored errors and checkpoints.
    pub bytes: u64,
    /// The time of the first claim of the oldest of them, in the store's time.
    pub oldest: Timestamp,
}

impl CensusGroup {
    /// The group that consists of `record`.
    pub fn of(record: &Record) -> Self {
        Self {
            namespace: record.namespace.clone(),
            operation: record.operation.clone(),
            state: record.state,
            in_doubt: Only::InDoubt.includes(record),
            count: 1,
            bytes: record.body.len() as u64,
            oldest: record.created,
        }
    }

    fn place(&self) -> Place {
        let state = state_code(self.state);
        (self.namespace.clone(), self.operation.clone(), state, self.in_doubt)
    }
}

impl Census {
    /// The complete census of an empty store.
    pub const fn new() -> Self {
        Self {
            groups: BTreeMap::new(),
            unreadable: 0,
            complete: true,
            percent: Some(100),
            at: Timestamp::from_millis(0),
        }
    }

    /// Counts `record`, as the store [reads](super::Store::read) it now.
    pub fn add(&mut self, record: &Record) {
        self.at = self.at.max(record.read_at);
        self.add_group(CensusGroup::of(record));
    }

    /// Counts the records of `group`, in a store whose server has counted them. The store also sets
    /// [`at`](Self::at).
    pub fn add_group(&mut self, group: CensusGroup) {
        let CensusGroup { count, bytes, oldest, .. } = group;
        self.groups
            .entry(group.place())
            .and_modify(|whole| {
                whole.count = whole.count.saturating_add(count);
                whole.bytes = whole.bytes.saturating_add(bytes);
                whole.oldest = whole.oldest.min(oldest);
            })
            .or_insert(group);
    }

    /// Notes that the time of a store that looks at its records in the order of their keys was over
    /// before it came to `next`. Keys are hashes, so the place says how many of them it has seen.
    #[must_use]
    pub fn stopped_before(self, next: KeyHash) -> Self {
        self.stopped(Some(percent_before(next.as_bytes())))
    }

    /// Notes that the time of the store was over, or that it failed, when it had seen about
    /// `percent` of its records, if it knows.
    #[must_use]
    pub fn stopped(self, percent: Option<u8>) -> Self {
        Self { complete: false, percent: percent.map(|percent| percent.min(99)), ..self }
    }

    /// Returns the groups that have records, ordered by namespace, operation and state.
    pub fn groups(&self) -> impl Iterator<Item = &CensusGroup> {
        self.groups.values()
    }

    /// Returns the number of records that were counted, without those that cannot be read.
    pub fn count(&self) -> u64 {
        self.groups().fold(0, |sum, group| sum.saturating_add(group.count))
    }

    /// Returns the number of records in doubt.
    pub fn in_doubt(&self) -> u64 {
        self.doubts().fold(0, |sum, group| sum.saturating_add(group.count))
    }

    /// Returns the time of the first claim of the oldest record in doubt, in the store's time. Its
    /// age is the time from then to [`at`](Self::at).
    pub fn oldest_in_doubt(&self) -> Option<Timestamp> {
        self.doubts().map(|group| group.oldest).min()
    }

    fn doubts(&self) -> impl Iterator<Item = &CensusGroup> {
        self.groups().filter(|group| group.in_doubt)
    }

    /// Leaves out the groups of other namespaces.
    pub(crate) fn of_namespace(mut self, namespace: &str) -> Self {
        self.groups.retain(|_, group| &*group.namespace == namespace);
        self
    }
}

impl Default for Census {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the part of all keys that are below `key`, in percent. Keys are hashes, and as such
/// evenly distributed.
pub(crate) fn percent_before(key: &[u8]) -> u8 {
    let mut beginning = [0; 8];
    for (to, from) in beginning.iter_mut().zip(key) {
        *to = *from;
    }
    percent_of(u64::from_be_bytes(beginning))
}

/// Returns the part of the way from zero to the end of the range that `place` is at, in percent.
pub(crate) fn percent_of(place: u64) -> u8 {
    u8::try_from((u128::from(place) * 100) >> 64).unwrap_or(99)
}

#[cfg(test)]
mod tests {
    use super::{Census, CensusGroup, percent_before};
    use crate::clock::Timestamp;
    use crate::key::KeyHash;
    use crate::store::{CrashPolicy, Record, State, Token};

    fn record(operation: &str, state: State, created: u64) -> Record {
        let key = KeyHash::from_bytes([7; 32]);
        let mut record = Record::new(key, Token::from_bits(1), operation.into());
        (record.state, record.created) = (state, Timestamp::from_millis(created));
        record.read_at = Timestamp::from_millis(100);
        record
    }

    #[test]
    fn records_are_counted_by_operation_state_and_doubt() {
        let mut census = Census::new();
        for created in [30, 20, 40] {
            census.add(&record("pay", State::Completed, created));
        }
        census.add(&record("mail", State::Completed, 1));
        // The lease has expired: under `hold` it is in doubt, and under another policy it is not.
        census.add(&record("pay", State::InProgress, 10));
        let mut retried = record("pay", State::InProgress, 5);
        retried.policy = CrashPolicy::Retry;
        census.add(&retried);
        let groups: Vec<_> = census
            .groups()
            .map(|it| (&*it.operation, it.state, it.in_doubt, it.count, it.oldest.as_millis()))
            .collect();
        let expected = [
            ("mail", State::Completed, false, 1, 1),
            ("pay", State::InProgress, false, 1, 5),
            ("pay", State::InProgress, true, 1, 10),
            ("pay", State::Completed, false, 3, 20),
        ];
        assert_eq!(groups, expected);
        assert_eq!((census.count(), census.in_doubt()), (6, 1));
        assert_eq!(census.oldest_in_doubt(), Some(Timestamp::from_millis(10)));
        assert_eq!(census.at, Timestamp::from_millis(100));
    }

    #[test]
    fn a_group_that_was_counted_elsewhere_is_added_to_its_like() {
        let mut census = Census::new();
        census.add(&record("pay", State::Completed, 30));
        let group = CensusGroup {
            count: 7,
            bytes: u64::MAX,
            ..CensusGroup::of(&record("pay", State::Completed, 2))
        };
        census.add_group(group.clone());
        census.add_group(group);
        let whole = census.groups().next().unwrap();
        assert_eq!((whole.count, whole.bytes, whole.oldest.as_millis()), (15, u64::MAX, 2));
    }

    #[test]
    fn a_place_among_the_keys_is_a_part_of_them() {
        for (key, percent) in [
            (&[][..], 0),
            (&[0x02], 0),
            (&[0x03], 1),
            (&[0x80; 32], 50),
            (&[0x9c; 32], 61),
            (&[0xff; 33], 99),
        ] {
            assert_eq!(percent_before(key), percent, "{key:x?}");
        }
        let census = Census::new().stopped(Some(100));
        assert_eq!((census.complete, census.percent), (false, Some(99)));
        assert_eq!(Census::new().stopped(None).percent, None);
    }

    #[test]
    fn a_census_of_one_namespace_has_no_group_of_another() {
        let mut census = Census::new();
        let mut other = record("pay", State::InDoubt, 30);
        other.namespace = "shop".into();
        census.add(&other);
        census.add(&record("pay", State::InDoubt, 60));
        assert_eq!(census.oldest_in_doubt(), Some(Timestamp::from_millis(30)));
        let census = census.of_namespace("");
        assert_eq!(census.count(), 1);
        assert_eq!(census.oldest_in_doubt(), Some(Timestamp::from_millis(60)));
    }
}
