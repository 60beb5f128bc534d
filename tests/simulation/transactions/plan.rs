//! What a seed decides before a run with transactions begins.

use std::time::Duration;

use idempotency_test_support::random::Random;

use crate::plan::{Class, DAY, Key, index, millis_below, number};

const SECOND: Duration = Duration::from_secs(1);

/// How many statements, or commits, of a hundred meet which fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub slow: u64,
    /// The connection breaks before a statement.
    pub broken: u64,
    /// A commit does not arrive.
    pub commit_lost: u64,
    /// A commit arrives, perhaps late, and nobody hears of it.
    pub commit_answer_lost: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Disaster {
    Kill,
    Freeze,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub processes: usize,
    pub callers: u64,
    pub calls: u64,
    pub keys: Vec<Key>,
    pub ttl: Duration,
    pub faults: Faults,
    /// When they happen, and to whom.
    pub disasters: Vec<(Duration, Disaster, usize)>,
}

impl Plan {
    pub fn new(random: &mut Random) -> Self {
        let processes = 2 + index(random, 2);
        let key = |number| Key {
            number,
            class: Class::Hold,
            has_fingerprints: false,
            counts_attempts: false,
            window: None,
        };
        let mut share =
            |chance, limit| if random.chance(chance) { 1 + random.below(limit) } else { 0 };
        let faults = Faults {
            slow: share(50, 20),
            broken: share(50, 10),
            commit_lost: share(50, 30),
            commit_answer_lost: share(50, 30),
        };
        let disaster = |random: &mut Random| {
            let kind = if random.chance(60) { Disaster::Kill } else { Disaster::Freeze };
            (millis_below(random, SECOND * 5), kind, index(random, processes))
        };
        Self {
            processes,
            callers: 1 + random.below(2),
            calls: 1 + random.below(3),
            keys: (0..=random.below(2)).map(key).collect(),
            ttl: if random.chance(30) { SECOND * number(random, 1, 10) } else { DAY },
            faults,
            disasters: (0..random.below(3)).map(|_| disaster(random)).collect(),
        }
    }
}

/// What a caller, and the body of its call, will do.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub before: Duration,
    pub after: Duration,
    pub end: End,
    /// The future of the call is dropped so long after its start.
    pub cut_off: Option<Duration>,
    pub afterwards: Afterwards,
    pub patience: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Value,
    /// Its error is stored.
    Declines,
    /// Its error undoes everything.
    Refuses,
    /// Its error leaves the record in doubt.
    Doubts,
    Panics,
}

/// What the user does with the transaction when the call is over, whatever it returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    Commit,
    RollBack,
    Drop,
}

impl Script {
    pub fn new(random: &mut Random) -> Self {
        let pause = |random: &mut Random| {
            let limit = if random.chance(80) { Duration::from_millis(50) } else { SECOND * 3 };
            millis_below(random, limit)
        };
        Self {
            before: pause(random),
            after: pause(random),
            end: match random.below(100) {
                0..8 => End::Declines,
                8..18 => End::Refuses,
                18..24 => End::Doubts,
                24..30 => End::Panics,
                _ => End::Value,
            },
            cut_off: random.chance(10).then(|| pause(random) + pause(random)),
            afterwards: match random.below(100) {
                0..8 => Afterwards::RollBack,
                8..16 => Afterwards::Drop,
                _ => Afterwards::Commit,
            },
            patience: if random.chance(30) {
                Duration::ZERO
            } else {
                millis_below(random, SECOND * 10)
            },
        }
    }

    /// One that ends well, and waits as long as a transaction of others can take.
    pub fn calm() -> Self {
        let (before, after) = (Duration::ZERO, Duration::from_millis(10));
        let (end, cut_off, afterwards) = (End::Value, None, Afterwards::Commit);
        Self { before, after, end, cut_off, afterwards, patience: SECOND * 60 }
    }
}
