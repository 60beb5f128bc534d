//! What was not allowed.

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
    /// S5: under the policy hold at most one effect.
    OneEffectUnderHold,
    /// S8: no result before an effect, and none that no effect had.
    NoResultWithoutEffect,
    /// S9: a call with another fingerprint neither ran nor got the result, and one with the same was not refused.
    FingerprintsKeptApart,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameValue => "S1",
            Self::OneResult => "S2",
            Self::EffectsWithinTakeovers => "S3",
            Self::OneEffectUnderHold => "S5",
            Self::NoResultWithoutEffect => "S8",
            Self::FingerprintsKeptApart => "S9",
        })
    }
}

/// One rule that was broken for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The key.
    pub key: String,
    /// The retention of the key.
    pub retention: u32,
    /// What was seen, for people.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} (retention {}): {}", self.rule, self.key, self.retention, self.seen)
    }
}

/// All that was not allowed in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the history breaks {} rule(s)", self.0.len())?;
        self.0.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl std::error::Error for Violations {}
