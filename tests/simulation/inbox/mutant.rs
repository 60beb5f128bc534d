//! Mistakes that a consumer, its broker or its store can have on purpose.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A message that another consumer handles is acked on its strength.
    AckedWhileInProgress,
    /// A message is acked as soon as it is delivered.
    AckedBeforeCommit,
    /// The original of a dead letter is acked before the broker has the copy.
    AckedBeforeDeadLetter,
    /// A call that is cut off releases its claim.
    ReleasedOnDrop,
    /// The offset of the last message that is finished is stored.
    OffsetBeyondUnfinished,
    /// Messages of one lane run side by side.
    LanesIgnored,
}
