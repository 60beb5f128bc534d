//! The attempts at one transaction that is run again, and what is known of the commits among them
//! whose answers were lost.

use std::error::Error as StdError;
use std::ops::ControlFlow;
use std::time::Duration;

use super::lent::Calls;
use crate::error::{Error, ErrorKind};
use crate::key::KeyHash;
use crate::outcome::CallError;

/// The end of one attempt.
#[derive(Debug)]
pub enum Attempt<T, E> {
    /// The caller gets this result.
    Done(Result<T, E>),
    /// Nothing was committed.
    Again(E),
    /// It is unknown whether it was committed; only these records can show it.
    Unknown {
        /// The records that were in the transaction.
        records: Vec<KeyHash>,
        /// The error of the commit.
        error: Error,
    },
}

/// The attempts so far.
#[derive(Debug)]
pub struct Attempts<P> {
    pauses: P,
    lost: Vec<LostCommit>,
}

/// A commit whose answer was lost, and whose outcome is still unknown.
#[derive(Debug)]
struct LostCommit {
    records: Vec<KeyHash>,
    error: Error,
}

impl<P: Iterator<Item = Duration>> Attempts<P> {
    /// Creates the attempts, with the pause before each but the first.
    pub fn new(pauses: P) -> Self {
        Self { pauses, lost: Vec::new() }
    }

    /// Takes the end of an attempt in whose transaction `calls` were made. Returns the pause before
    /// the next attempt, or the result for the caller.
    pub fn after<T, E>(
        &mut self,
        attempt: Attempt<T, E>,
        calls: &Calls,
    ) -> ControlFlow<Result<T, E>, Duration>
    where
        E: CallError + StdError + 'static,
    {
        // A record that a lost commit has written is there now, or it was not there before this
        // attempt: either settles it. While the transaction of that commit is still open, the claim
        // of the same key waits for it, and the database does not answer. Each lost commit is
        // settled by its own records only: the attempts may call different keys.
        self.lost.retain(|lost| !calls.tell_of(&lost.records));
        let failed = match attempt {
            Attempt::Done(Err(error)) => return ControlFlow::Break(Err(self.last_word(error))),
            Attempt::Done(result) => return ControlFlow::Break(result),
            Attempt::Again(failed) => failed,
            Attempt::Unknown { records, error } => {
                let failed = error.clone().into();
                self.lost.push(LostCommit { records, error });
                failed
            }
        };
        match self.pauses.next() {
            Some(pause) => {
                tracing::debug!(error = %failed, ?pause, "a transaction is run again");
                ControlFlow::Continue(pause)
            }
            None => ControlFlow::Break(Err(self.last_word(failed))),
        }
    }

    /// Returns the error for the caller when the last attempt ended with `error`. That error is
    /// about the last attempt only: as long as the outcome of an earlier commit is unknown, it does
    /// not mean that nothing has happened.
    fn last_word<E: CallError + StdError + 'static>(&self, error: E) -> E {
        let Some(lost) = self.lost.first() else { return error };
        let detail = format!(
            "the answer to the commit was lost, and the attempts to learn what became of it ended with: {error}"
        );
        // The last attempt may have left something behind too that the same calls do not find.
        let unknown = if Error::find(&error).is_some_and(Error::has_repeated_effects) {
            unknown_by_effect(detail)
        } else {
            unknown_by_key(detail)
        };
        unknown.with_source(lost.error.clone()).into()
    }
}

const UNKNOWN: &str = "the body ran, and it is not known whether its transaction was committed";
const FIND_BY_KEY: &str =
    "do not run it under another key; make the same calls again to learn the outcome";
const FIND_BY_EFFECT: &str = "look for what it wrote before running it again";

/// Builds the error for a body that ran when only the records of its calls can show whether its
/// transaction was committed.
pub fn unknown_by_key(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::NotStored).with_text(UNKNOWN, FIND_BY_KEY).with_detail(detail)
}

/// Builds the same error without such records. A retry may write the same again.
pub(crate) fn unknown_by_effect(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::NotStored)
        .with_text(UNKNOWN, FIND_BY_EFFECT)
        .with_detail(detail)
        .would_repeat()
}
