//! What a seed decides before a run begins: who takes part, under which rules, and what goes wrong.

use std::time::Duration;

use idempotency_test_support::random::Random;

/// Under which policy the callers of a key call, and what its body does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Hold,
    Retry,
    /// Some callers say hold, some retry.
    Mixed,
    /// The provider recognises the key that all attempts derive.
    VerifyByKey,
    /// The question is answered when all earlier attempts are over.
    VerifyWhenOver,
    Resume,
    /// The second of two steps runs at most once.
    ResumeOnce,
    /// The effect is a step in a task of its own, for which a body that refuses does not wait.
    /// Under hold.
    InTask,
    /// The same under resume.
    InTaskResume,
}

impl Class {
    const ALL: [Self; 7] = [
        Self::Hold,
        Self::Retry,
        Self::Mixed,
        Self::VerifyByKey,
        Self::VerifyWhenOver,
        Self::Resume,
        Self::ResumeOnce,
    ];

    /// Those that came later: see [`Plan::of`].
    const LATER: [Self; 2] = [Self::InTask, Self::InTaskResume];

    pub fn has_steps(self) -> bool {
        matches!(self, Self::Resume | Self::ResumeOnce)
    }
}

/// One key that is called.
#[derive(Clone, Debug)]
pub struct Key {
    pub number: u64,
    pub class: Class,
    /// Whether some callers repeat another request than others.
    pub has_fingerprints: bool,
    pub counts_attempts: bool,
    /// How long the window of time is that is a part of the key.
    pub window: Option<Duration>,
}

/// How many requests of a hundred meet which fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lost_request: u64,
    pub lost_answer: u64,
    pub late: u64,
    pub duplicate: u64,
    pub slow: u64,
}

/// What happens to processes and to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaster {
    /// A process is gone in the middle of whatever it does, and another one takes its place.
    Kill,
    /// A process stands still.
    Freeze,
    /// A process stands still with its machine.
    Suspend,
    /// A process cannot reach the store.
    Partition,
    /// The store is away for a while, with all requests that are on their way.
    StoreRestart,
    /// A process is told to end.
    Shutdown,
}

const DISASTERS: [Disaster; 5] = [
    Disaster::Kill,
    Disaster::Freeze,
    Disaster::Partition,
    Disaster::StoreRestart,
    Disaster::Shutdown,
];

#[derive(Clone, Debug)]
pub struct Plan {
    pub processes: usize,
    /// How many callers each process has, and how often each of them calls.
    pub callers: u64,
    pub calls: u64,
    pub keys: Vec<Key>,
    pub lease: Duration,
    pub claim_timeout: Duration,
    pub commit_timeout: Duration,
    pub background_commit: Duration,
    pub max_run: Duration,
    pub ttl: Duration,
    pub after_expiry: Option<Duration>,
    pub in_doubt_retention: Option<Duration>,
    pub faults: Faults,
    pub disasters: Vec<Disaster>,
    pub has_operator: bool,
    pub settle: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
pub const DAY: Duration = Duration::from_secs(86_400);

impl Plan {
    /// The plan of `seed`, whose run goes on with `random`. What came later than the seeds that are
    /// kept is in every fourth seed, and decided by itself: those that are kept go on to show what
    /// they have shown.
    pub fn of(seed: u64, random: &mut Random) -> Self {
        let mut plan = Self::new(random);
        if seed % 4 == 2 {
            plan.has_more(&mut Random::new(!seed));
        }
        plan
    }

    fn has_more(&mut self, random: &mut Random) {
        for key in &mut self.keys {
            if random.chance(40) {
                key.class = Class::LATER[index(random, Class::LATER.len())];
            }
        }
        if random.chance(50) {
            // Somebody answers for who is away, and answers to claims come while it is.
            self.disasters.extend([Disaster::Suspend; 3]);
            self.faults.slow = self.faults.slow.max(30);
            self.claim_timeout = self.claim_timeout.max(self.lease / 2);
            self.has_operator = true;
            for key in &mut self.keys {
                if random.chance(50) {
                    key.class = Class::Hold;
                }
            }
        }
        for key in &mut self.keys {
            if random.chance(40) {
                // A result is kept for as long as its window at least.
                key.window = Some((self.lease * number(random, 2, 5)).min(self.ttl));
                // Who dies between its claim and its look is what windows are about.
                self.faults.slow = self.faults.slow.max(15);
                self.disasters.push(Disaster::Kill);
            }
        }
    }

    /// Each run has some of the troubles and not the others: all of them together would hide what
    /// few of them do.
    fn new(random: &mut Random) -> Self {
        let lease = SECOND * number(random, 2, 6);
        let keys = (0..=random.below(2)).map(|number| Key {
            number,
            class: Class::ALL[index(random, Class::ALL.len())],
            has_fingerprints: random.chance(20),
            counts_attempts: random.chance(20),
            window: None,
        });
        let keys = keys.collect();
        let mut share = |chance| if random.chance(chance) { 1 + random.below(20) } else { 0 };
        let faults = Faults {
            lost_request: share(50),
            lost_answer: share(50),
            late: share(40),
            duplicate: share(40),
            slow: share(50),
        };
        let disasters =
            (0..random.below(5)).map(|_| DISASTERS[index(random, DISASTERS.len())]).collect();
        let expires = random.chance(30);
        Self {
            processes: 2 + index(random, 2),
            callers: 1 + random.below(3),
            calls: 1 + random.below(3),
            keys,
            lease,
            claim_timeout: Duration::from_millis(500 + random.below(1_500)),
            commit_timeout: SECOND * number(random, 1, 5),
            background_commit: SECOND * number(random, 5, 40),
            max_run: lease * if random.chance(20) { 6 } else { 20 },
            ttl: if expires { lease + SECOND * number(random, 2, 20) } else { DAY },
            after_expiry: (expires && random.chance(30)).then(|| SECOND * number(random, 5, 30)),
            in_doubt_retention: (expires && random.chance(50))
                .then(|| SECOND * number(random, 5, 60)),
            faults,
            disasters,
            has_operator: random.chance(40),
            settle: Duration::from_millis(random.below(1_500)),
        }
    }

    pub fn expires(&self) -> bool {
        self.ttl < DAY
    }
}

/// From `least` up to `most`.
pub fn number(random: &mut Random, least: u32, most: u32) -> u32 {
    least + u32::try_from(random.below(u64::from(most - least) + 1)).unwrap_or_default()
}

pub fn index(random: &mut Random, length: usize) -> usize {
    usize::try_from(random.below(length as u64)).unwrap_or_default()
}

/// Up to `limit`, to the millisecond: Tokio's clock knows nothing smaller.
pub fn millis_below(random: &mut Random, limit: Duration) -> Duration {
    Duration::from_millis(random.below(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)))
}
