//! How an attempt ends: what is written about it, decided in one place from what is known.
//!
//! A pure function. Its callers find out what is known and carry the settlement out: the end of a
//! body (`finish::finish`), its drop or panic (`Drop` of `owner::Owner`), a result that could not be
//! stored (`finish::not_stored`), and a shutdown (`shutdown`).
//!
//! What is left to the next call is looked at again when it is written (`unknown_outcome::leave`):
//! by then, the lease may have expired.

use crate::store::Reason;

/// How far the attempt came. A verification that ends by itself counts as `Begun` here: `Asking` is
/// for one that is cut off. Nothing but a cut ends an attempt that is `Granted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The claim is held, and nothing has begun under it.
    Granted,
    /// The outside world is being asked about an earlier attempt. This one has no effect of its
    /// own.
    Asking,
    /// The body has begun, and may have had an effect.
    Begun,
}

/// What ended the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There is a result.
    Answered,
    /// The body returned an error that counts as a result.
    StoredError,
    /// The body returned an error that says that nothing happened.
    Failed,
    /// The body says that it did not begin anything.
    NotBegun,
    /// The body returned an error that may hide an effect.
    Held,
    /// The body has no result, and does not know its effect.
    GivenUp,
    /// The outside world gave no answer, or the caller may not ask it.
    Unanswered(Reason),
    /// The attempt was not finished, for this reason.
    Cut(Reason),
}

/// What the recorded steps of the attempt say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steps {
    /// Nothing beyond what the body returned.
    Silent,
    /// Something has happened, whatever the body's error says.
    HadEffects,
    /// An earlier attempt has recorded a step for which this body did not ask: its result leaves
    /// that step out.
    LeftOut,
    /// This attempt was refused a step, or the record of one was not confirmed: an error of the body
    /// may say no more than that.
    CutShort,
}

/// What is written about the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// The result is stored.
    Commit,
    /// The claim is released: the next call runs the body.
    Release,
    /// The claim is released as if it had never been granted.
    ReleaseUnused,
    /// The record is put in doubt because its owner says so. If the store does not accept that, the
    /// background goes on sending it.
    Hold,
    /// The record is put in doubt until the outside world may be asked again.
    AskAgain(Reason),
    /// The record is left to the next call, which continues by the policy, or in doubt where that
    /// allows no other.
    Leave(Reason, Left),
}

/// What the next call finds of an attempt that was not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// A claim that it takes over.
    ToTheNextCall,
    /// A record in doubt.
    InDoubt,
}

/// Decides what is written about an attempt.
///
/// `may_be_taken_over`: the policy lets the next call run, and the owner has not excluded that.
pub(super) const fn settle(
    progress: Progress,
    cause: Cause,
    may_be_taken_over: bool,
    steps: Steps,
) -> Settlement {
    let left = if may_be_taken_over { Left::ToTheNextCall } else { Left::InDoubt };
    match (progress, cause) {
        (_, Cause::Unanswered(reason)) => Settlement::AskAgain(reason),
        (Progress::Granted, _) | (_, Cause::NotBegun) => Settlement::ReleaseUnused,
        (Progress::Asking, Cause::Cut(_)) => Settlement::AskAgain(Reason::Unverified),
        (Progress::Begun, Cause::Cut(reason)) => Settlement::Leave(reason, left),
        (_, Cause::Answered) => match steps {
            Steps::LeftOut => Settlement::Leave(Reason::NotStored, left),
            // A result is the call's, however the body came to it.
            Steps::Silent | Steps::HadEffects | Steps::CutShort => Settlement::Commit,
        },
        (_, Cause::StoredError) => match steps {
            Steps::LeftOut => Settlement::Leave(Reason::NotStored, left),
            // Stored, it would end the call for good, although the next attempt can go on.
            Steps::CutShort => Settlement::Leave(Reason::Error, left),
            Steps::Silent | Steps::HadEffects => Settlement::Commit,
        },
        (_, Cause::Failed) => match steps {
            Steps::Silent => Settlement::Release,
            Steps::HadEffects | Steps::LeftOut | Steps::CutShort => {
                Settlement::Leave(Reason::Error, left)
            }
        },
        (_, Cause::Held) => Settlement::Hold,
        (_, Cause::GivenUp) => Settlement::Leave(Reason::Error, left),
    }
}

#[cfg(test)]
mod tests {
    use super::Cause::{Answered, Cut, Failed, GivenUp, Held, NotBegun, StoredError, Unanswered};
    use super::Left::{InDoubt, ToTheNextCall};
    use super::Progress::{Asking, Begun, Granted};
    use super::Settlement::{AskAgain, Commit, Hold, Leave, Release, ReleaseUnused};
    use super::Steps::{CutShort, HadEffects, LeftOut, Silent};
    use super::{Cause, Left, Progress, Settlement, Steps, settle};
    use crate::store::{CrashPolicy, Reason};

    const PROGRESS: [Progress; 3] = [Granted, Asking, Begun];
    const STEPS: [Steps; 4] = [Silent, HadEffects, LeftOut, CutShort];
    const REASONS: [Reason; 5] =
        [Reason::Dropped, Reason::Panicked, Reason::LeaseLost, Reason::NotStored, Reason::ShutDown];
    const POLICIES: [CrashPolicy; 4] =
        [CrashPolicy::Hold, CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify];

    fn causes() -> Vec<Cause> {
        let cut = REASONS.into_iter().map(Cut);
        let unanswered = [Reason::Unverified, Reason::Crashed].map(Unanswered);
        [Answered, StoredError, Failed, NotBegun, Held, GivenUp]
            .into_iter()
            .chain(unanswered)
            .chain(cut)
            .collect()
    }

    /// What is written of a body that has begun, by its cause and what its steps say.
    const BEGUN: [(Cause, Steps, Settlement); 24] = {
        // Where the policy lets the next call run; `settlement` exchanges it where it does not.
        const NEXT: Left = ToTheNextCall;
        [
            (Answered, Silent, Commit),
            (Answered, HadEffects, Commit),
            (Answered, LeftOut, Leave(Reason::NotStored, NEXT)),
            (Answered, CutShort, Commit),
            (StoredError, Silent, Commit),
            (StoredError, HadEffects, Commit),
            (StoredError, LeftOut, Leave(Reason::NotStored, NEXT)),
            (StoredError, CutShort, Leave(Reason::Error, NEXT)),
            (Failed, Silent, Release),
            (Failed, HadEffects, Leave(Reason::Error, NEXT)),
            (Failed, LeftOut, Leave(Reason::Error, NEXT)),
            (Failed, CutShort, Leave(Reason::Error, NEXT)),
            (Held, Silent, Hold),
            (Held, HadEffects, Hold),
            (Held, LeftOut, Hold),
            (Held, CutShort, Hold),
            (GivenUp, Silent, Leave(Reason::Error, NEXT)),
            (GivenUp, HadEffects, Leave(Reason::Error, NEXT)),
            (GivenUp, LeftOut, Leave(Reason::Error, NEXT)),
            (GivenUp, CutShort, Leave(Reason::Error, NEXT)),
            (NotBegun, Silent, ReleaseUnused),
            (NotBegun, HadEffects, ReleaseUnused),
            (NotBegun, LeftOut, ReleaseUnused),
            (NotBegun, CutShort, ReleaseUnused),
        ]
    };

    fn settlement(of: Settlement, may_be_taken_over: bool) -> Settlement {
        match of {
            Leave(reason, ToTheNextCall) if !may_be_taken_over => Leave(reason, InDoubt),
            other => other,
        }
    }

    #[test]
    fn each_cause_is_settled_by_progress_policy_and_steps() {
        for policy in POLICIES {
            // The owner of a record that is held excludes a takeover whatever the policy.
            for is_held in [false, true] {
                let next = policy.allows_takeover() && !is_held;
                for (progress, cause, steps) in PROGRESS
                    .into_iter()
                    .flat_map(|progress| causes().into_iter().map(move |cause| (progress, cause)))
                    .flat_map(|(progress, cause)| STEPS.map(|steps| (progress, cause, steps)))
                {
                    let expected = match (progress, cause) {
                        (_, Unanswered(reason)) => AskAgain(reason),
                        (Granted, _) => ReleaseUnused,
                        (Asking, Cut(_)) => AskAgain(Reason::Unverified),
                        (Begun, Cut(reason)) => settlement(Leave(reason, ToTheNextCall), next),
                        _ => {
                            let row = BEGUN.iter().find(|row| (row.0, row.1) == (cause, steps));
                            settlement(row.expect("each pair has a row").2, next)
                        }
                    };
                    let found = settle(progress, cause, next, steps);
                    assert_eq!(
                        found, expected,
                        "{progress:?} {cause:?} {policy:?} {is_held} {steps:?}"
                    );
                }
            }
        }
    }

    /// The rules that matter most, said of every row rather than row by row.
    #[test]
    fn no_attempt_that_may_have_had_an_effect_is_forgotten() {
        for cause in causes() {
            for (steps, next) in STEPS.into_iter().flat_map(|steps| [(steps, true), (steps, false)])
            {
                let settlement = settle(Begun, cause, next, steps);
                let forgets = matches!(settlement, Release | ReleaseUnused);
                let says_so = cause == NotBegun || cause == Failed && steps == Silent;
                assert_eq!(forgets, says_so, "{cause:?} {steps:?}");
                let runs_again = matches!(settlement, Leave(_, ToTheNextCall));
                assert!(next || !runs_again, "{cause:?} {steps:?}: the policy does not allow it");
            }
        }
    }

    #[test]
    fn no_error_of_an_attempt_that_was_refused_a_step_is_final() {
        for (cause, next) in causes().into_iter().flat_map(|cause| [(cause, true), (cause, false)])
        {
            let is_final = settle(Begun, cause, next, CutShort) == Commit;
            assert_eq!(is_final, cause == Answered, "{cause:?}");
        }
    }
}
