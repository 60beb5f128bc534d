//! Violations of the rules.

use std::fmt;

/// The rules that a history can break. The numbers are those of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// S1: all callers that got a value got the same bytes.
    SameValue,
    /// S2: there is one result, and it is the one that is stored.
    OneResult,
    /// S3: at most as many effects as takeovers and one, and no two in one attempt.
    EffectsWithinTakeovers,
    /// S4: fences grow in the order of ownership.
    FencesGrow,
    /// S5: under the policies hold and verify at most one effect, and no takeover under hold.
    OneEffectUnderHold,
    /// S6: an effect in a transaction is committed or undone together with its record.
    EffectWithRecord,
    /// S7: a caller that believes in its lease is the owner.
    OneOwner,
    /// S8: no result before an effect, and none that no effect had.
    NoResultWithoutEffect,
    /// S8: no caller writes, deletes or renews the record of another owner.
    OwnRecordOnly,
    /// S9: a call with another fingerprint neither ran nor got the result, and one with the same
    /// was not refused.
    FingerprintsKeptApart,
    /// S10: no body starts before its claim was acknowledged, or when most of its lease has passed.
    AcknowledgedBeforeBody,
    /// S11: a claim that failed, or whose outcome is unknown, starts no body.
    FailClosed,
    /// S12: a call that is repeated within the length of its window has its effects in one window.
    OneWindow,
    /// S13: a caller that is told that nothing happened has no effect that is committed, in whichever
    /// of the attempts.
    NoErrorWithEffect,
    /// M1: a message is handled or a dead letter before the broker no longer delivers it.
    NoMessageLost,
    /// M2: messages of a lane have their effects in order.
    LanesInOrder,
    /// L1: every call returns in time.
    CallsReturn,
    /// L2: a dead owner blocks a key for its lease and no longer.
    DeadOwnersMakeRoom,
    /// L3: a waiter notices the end of a call.
    WaitersNotice,
    /// L4: an owner that is alive and renews its lease is not taken over.
    LivingOwnersStay,
    /// L5: expired records are removed.
    ExpiredAreRemoved,
    /// L6: exactly one end is reported for each call that was polled.
    EndsAreReported,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameValue => "S1",
            Self::OneResult => "S2",
            Self::EffectsWithinTakeovers => "S3",
            Self::FencesGrow => "S4",
            Self::OneEffectUnderHold => "S5",
            Self::EffectWithRecord => "S6",
            Self::OneOwner => "S7",
            Self::NoResultWithoutEffect | Self::OwnRecordOnly => "S8",
            Self::FingerprintsKeptApart => "S9",
            Self::AcknowledgedBeforeBody => "S10",
            Self::FailClosed => "S11",
            Self::OneWindow => "S12",
            Self::NoErrorWithEffect => "S13",
            Self::NoMessageLost => "M1",
            Self::LanesInOrder => "M2",
            Self::CallsReturn => "L1",
            Self::DeadOwnersMakeRoom => "L2",
            Self::WaitersNotice => "L3",
            Self::LivingOwnersStay => "L4",
            Self::ExpiredAreRemoved => "L5",
            Self::EndsAreReported => "L6",
        })
    }
}

/// One rule that was broken for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The key.
    pub key: String,
    /// The retention of the key.
    pub retention: u32,
    /// The observation, for people.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} (retention {}): {}", self.rule, self.key, self.retention, self.seen)
    }
}

/// All violations in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the history breaks {} rule(s)", self.0.len())?;
        self.0.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl std::error::Error for Violations {}
