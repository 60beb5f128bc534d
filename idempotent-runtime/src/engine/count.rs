//! Counting how often something was begun whose end is not recorded.
//!
//! A transaction that is rolled back takes the count of its attempts along. So they are counted in a
//! record of their own: a claim that every later one takes over, and that is never completed.

use std::time::Duration;

use super::Call;
use super::admission::new_claim;
use super::claim;
use super::retry::Budget;
use super::store_client::ClaimReply;
use super::task_state::TaskState;
use crate::error::{Error, ErrorKind};
use crate::store::{ClaimOutcome, CrashPolicy, Remove};

/// The lease of a count: nothing runs under it.
const LEASE: Duration = Duration::from_millis(1);
/// The number of times that a count is tried while others are counted.
const TRIES: u32 = 100;

/// Forgets what was counted of `call`.
pub(crate) async fn uncount(call: Call) -> Result<(), Error> {
    let call = call.request.checked()?;
    let (engine, key) = (&call.engine, call.key);
    engine.at_home().map_err(|error| error.of_record(Some(&call.operation), &key))?;
    let read = engine.store.read(Budget::of(engine.settings.claim_timeout), key).await;
    let Some(record) = read.map_err(|error| call.store_error(error))? else { return Ok(()) };
    let mut remove = Remove::new(key, record.owner);
    // The lease of the last one may not have ended, and nothing runs under it.
    remove.force = true;
    let removed = engine.store.remove_count(remove).await;
    removed.map(drop).map_err(|error| call.store_error(error))
}

/// Counts one more begin of `call`, and returns the number of all. They are forgotten when none has
/// been counted for the `ttl` of the call.
pub(crate) async fn count(call: Call) -> Result<u32, Error> {
    let task_state = TaskState::current();
    let call = call.request.checked()?;
    let engine = call.engine.clone();
    engine.at_home().map_err(|error| error.of_record(Some(&call.operation), &call.key))?;
    for _ in 0..TRIES {
        // In this order, as for other claims: see `admission::lead`.
        let _busy = engine.keeper.busy();
        if task_state.is_shut_out(&engine) {
            return Err(call.refused(ErrorKind::ShuttingDown));
        }
        let mut claim = new_claim(&call)?;
        (claim.policy, claim.lease, claim.linger) = (CrashPolicy::Retry, LEASE, call.ttl);
        match claim::send(&engine, claim.into(), &task_state).await {
            Ok(ClaimReply { claimed: ClaimOutcome::Granted(grant), .. }) => {
                return Ok(grant.record.attempts);
            }
            Ok(ClaimReply { claimed: ClaimOutcome::Existing(_), .. }) => {
                engine.clock.sleep(LEASE).await;
            }
            Err(error) => return Err(call.store_error(error)),
        }
    }
    Err(call.refused(ErrorKind::InProgress).with_detail("too many are counted at the same time"))
}
