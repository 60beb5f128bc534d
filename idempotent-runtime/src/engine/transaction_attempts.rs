//! The attempts at one transaction that is run again, and what is known of the commits among them
//! whose answers were lost.

use std::error::Error as StdError;
use std::ops::ControlFlow;
use std::time::Duration;

use super::transaction_calls::Calls;
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
    /// Nothing was committed, and nothing will be when it is run again. The body had succeeded, or
    /// had not begun, and does not know of this.
    Failed(E),
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
        //
        // A commit that did happen is settled only by the attempt whose body speaks for it: one
        // that was answered with its effect, and whose result the caller gets. If that attempt
        // fails after its body, a later one may call another key, fail, and know nothing of it.
        let body_speaks = matches!(attempt, Attempt::Done(_));
        self.lost.retain(|lost| {
            let is_settled =
                calls.tell_of(&lost.records) && (body_speaks || calls.found_none_of(&lost.records));
            !is_settled
        });
        let failed = match attempt {
            Attempt::Done(Err(error)) | Attempt::Failed(error) => {
                return ControlFlow::Break(Err(self.last_word(error)));
            }
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

#[cfg(all(test, feature = "memory"))]
mod tests {
    use std::ops::ControlFlow;
    use std::time::Duration;

    use super::{Attempt, Attempts, unknown_by_key};
    use crate::engine::Calls;
    use crate::key::KeyHash;
    use crate::store::MemoryStore;
    use crate::{Error, ErrorKind, Idempotency};

    const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

    /// The calls of an attempt that looked for the record.
    fn looked(is_there: bool) -> Calls {
        let calls = Calls::default();
        calls.answered(KEY, &Idempotency::new(MemoryStore::new()).inner.store);
        if is_there {
            calls.found(KEY);
        } else {
            calls.absent(KEY);
        }
        calls
    }

    /// The kind that the caller gets of an error of its own in the third attempt, after the commit
    /// of the first one was lost, and `second` was the end of the second one.
    fn told(second: Attempt<(), Error>, calls: &Calls) -> ErrorKind {
        let mut attempts = Attempts::new(std::iter::repeat_n(Duration::ZERO, 3));
        let lost = Attempt::Unknown { records: vec![KEY], error: unknown_by_key("lost") };
        let own = || Error::config("declined");
        assert!(attempts.after::<(), Error>(lost, &Calls::default()).is_continue());
        if let ControlFlow::Break(ended) = attempts.after(second, calls) {
            return ended.unwrap_err().kind();
        }
        match attempts.after::<(), Error>(Attempt::Done(Err(own())), &Calls::default()) {
            ControlFlow::Break(Err(error)) => error.kind(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_commit_that_happened_is_settled_only_where_a_body_speaks_that_knows_of_it() {
        let again = || Attempt::Again(Error::config("a deadlock"));
        assert_eq!(told(again(), &looked(false)), ErrorKind::Config, "it did not happen");
        assert_eq!(told(again(), &looked(true)), ErrorKind::NotStored, "its answer got no further");
        let own = || Attempt::Done(Err(Error::config("declined")));
        assert_eq!(told(own(), &looked(true)), ErrorKind::Config, "the body was answered");
        assert_eq!(told(own(), &Calls::default()), ErrorKind::NotStored, "it has not looked");
        let refused = Attempt::Failed(Error::config("the database refused the commit"));
        assert_eq!(told(refused, &looked(true)), ErrorKind::NotStored, "the body does not know");
    }
}
