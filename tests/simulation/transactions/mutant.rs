//! Mistakes that a run with transactions can have on purpose.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The result is stored beside the transaction.
    RecordOutside,
    /// The effect happens beside the transaction.
    EffectOutside,
    /// A claim does not wait for another transaction.
    ClaimsDoNotWait,
    /// A body that returned an error leaves its effect in the transaction, and only its claim is
    /// undone.
    EffectNotUndone,
    /// Who hears no answer to a commit tells the result all the same.
    UnknownCommitsTold,
    /// What a handler wrote that fails is undone, and the record that was written before it is not.
    FailuresRecorded,
    /// A worker whose commit nobody knows of goes on as if it had not happened.
    LostCommitsForgotten,
}
