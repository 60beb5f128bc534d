//! Mistakes that a run can have on purpose, to see that they are noticed. Those of the protocol
//! itself are in the model; these are of what surrounds the engine.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Some processes get another result than is stored.
    ReplaysAltered,
    /// A commit replaces the answer of another owner.
    AnswersOverwritten,
    /// A claim of a call that is completed is granted.
    CompletedCallsGranted,
    /// All fences are one.
    FencesStandStill,
    /// The store forgets that the policy is hold.
    HoldForgotten,
    /// The question after a crash is answered while an earlier attempt may still be at work.
    AskedWhileOwnerLives,
    /// The store lets a claim live half as long as it was asked to.
    LeasesHalved,
    /// A commit is taken from everybody.
    CommitsUnguarded,
    /// The store forgets what a retry must repeat.
    FingerprintsForgotten,
    /// The link gives a process the answer to the claim of another.
    AnswersMixedUp,
    /// The link makes a grant of a claim that was lost.
    GrantsInvented,
    /// A process stands still for ever, and nobody says so.
    ProcessHangs,
    /// Claims keep the lease of a dead owner alive.
    DeadOwnersRenewed,
    /// Waiters see the record as it was when the first of them looked.
    WatchesStale,
    /// Renewals are acknowledged and not made.
    RenewalsForgotten,
    /// Nobody removes expired records.
    PurgesLost,
    /// A claim that arrives again gets back what its owner has left in doubt.
    DoubtsTakenBack,
    /// A body's error releases the claim while a step of it runs in a task.
    RunningStepsForgotten,
    /// A body that is dropped or panics releases its claim.
    DropsReleased,
    /// Owners count their leases on a clock that stops while the machine is suspended.
    ClocksStop,
    /// Who takes a claim over that only looked does not look itself.
    TakeoversUnlooked,
}
