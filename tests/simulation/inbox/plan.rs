//! What a seed decides before a run with messages begins.

use std::time::Duration;

use idempotency::OnCrash;
use idempotency_test_support::random::Random;

use crate::plan::{index, millis_below, number};

/// The order that the broker promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None. A message that is not acked comes again when its time is over.
    Queue,
    /// That of groups: a message is delivered after those before it have ended.
    Groups,
    /// That of partitions: a consumer goes on from the offset that was stored.
    Log,
}

/// What happens to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaster {
    Kill,
    Freeze,
    Partition,
    StoreRestart,
    /// The process is told to end, and another one takes its place.
    Stop,
    /// The broker ends the connection: all that was delivered on it comes again.
    Cut,
    /// The future of the consumer is dropped, and the process begins another.
    Drop,
}

const DISASTERS: [Disaster; 7] = [
    Disaster::Kill,
    Disaster::Freeze,
    Disaster::Partition,
    Disaster::StoreRestart,
    Disaster::Stop,
    Disaster::Cut,
    Disaster::Drop,
];

#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    pub messages: u64,
    pub lanes: u64,
    pub concurrency: usize,
    pub on_crash: OnCrash,
    pub max_attempts: u32,
    /// The time for which the broker leaves a message with its consumer.
    pub patience: Duration,
    /// How long a handler takes before its effect, and after it, at most.
    pub work: Duration,
    /// How many tries of a hundred fail before their effect, and how many panic.
    pub fails: u64,
    pub panics: u64,
    /// How many requests to the broker of a hundred are lost.
    pub lost: u64,
    pub wait: Duration,
    pub drain: Duration,
    pub disasters: Vec<(Duration, Disaster, usize)>,
}

impl Plan {
    pub fn new(random: &mut Random, processes: usize, lease: Duration) -> Self {
        let kind = [Kind::Queue, Kind::Groups, Kind::Log][index(random, 3)];
        let disasters = (0..random.below(5)).map(|_| {
            let disaster = DISASTERS[index(random, DISASTERS.len())];
            (millis_below(random, lease * 4), disaster, index(random, processes))
        });
        let disasters = disasters.collect();
        let mut share = |chance, most| if random.chance(chance) { random.below(most) } else { 0 };
        let (fails, panics, lost) = (share(50, 40), share(30, 15), share(40, 30));
        Self {
            kind,
            messages: 2 + random.below(8),
            lanes: 1 + random.below(3),
            concurrency: 1 + index(random, 4),
            on_crash: if random.chance(60) { OnCrash::Hold } else { OnCrash::Retry },
            max_attempts: number(random, 2, 6),
            patience: Duration::from_secs(1) * number(random, 2, 20),
            work: millis_below(random, lease * 2),
            fails,
            panics,
            lost,
            wait: millis_below(random, lease),
            drain: millis_below(random, lease * 2),
            disasters,
        }
    }

    /// Whether nothing can keep a handler from ending while its message is delivered elsewhere.
    pub fn is_orderly(&self) -> bool {
        let breaks = |disaster: &Disaster| !matches!(disaster, Disaster::StoreRestart);
        !self.disasters.iter().any(|(_, disaster, _)| breaks(disaster))
            && self.panics == 0
            && self.lost == 0
    }
}
