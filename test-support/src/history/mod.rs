//! Checks that the results of callers and the effects are allowed.
//!
//! A test records every call with its outcome, and every run of a body as an effect. The effect is
//! recorded inside the body and before it returns, whether it returns a result or an error. In the
//! end the test records what the store keeps. [`check`] then checks all records of one key and one
//! retention together:
//!
//! | rule | |
//! |---|---|
//! | S1 | all callers that got a value got the same bytes |
//! | S2 | there is one result: no value beside a stored error, no two stored errors, and it is the one that is stored |
//! | S3 | there are at most as many effects as takeovers and one, and no two in one attempt |
//! | S5 | under the policy hold there is at most one effect |
//! | S8 | no caller got a result before an effect happened, or one that no effect had |
//! | S9 | a call with another fingerprint neither ran nor got the result, and one with the same was not refused |
//!
//! Where a test sees each change of a record, before and after, [`check_transitions`] checks it
//! against the rules about changes: S2, S4, S5, S8 and S9. The other [`Rule`]s need insight into
//! processes; tests that have it report violations by the same names.
//!
//! Worker processes record into an [`EventLog`], which survives when they are killed.

mod event;
mod log;
mod rules;
mod transitions;
mod violation;

pub use event::{Call, Effect, Event, OpenCall, Outcome, Stored};
pub use log::EventLog;
pub use rules::{Policy, check};
pub use transitions::{Request, Transition, check_transitions};
pub use violation::{Rule, Violation, Violations};
