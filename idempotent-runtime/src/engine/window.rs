//! Calls whose key has a window: they belong to the record of the previous window, if there is one.
//!
//! The order of the four steps matters: claim the record of the current window, check the previous
//! window, check the clock, and then mark the record as checked, with a first, empty checkpoint. So
//! a call that claims before the end of a window is seen by every call that claims after that end,
//! and a call whose claim was granted after that end starts again.
//!
//! A record without a checkpoint belongs to a claim that is still checking. Nothing has happened
//! under it. If its owner dies there, the caller that takes it over has to check too. Another call
//! cannot ignore such a record after merely reading it: its owner may be slow and get its
//! checkpoint through, even after it has given the record up. So the other call takes the record
//! over, and gives it up itself. Only then can no owner begin under it any more.

use std::sync::Arc;

use bytes::Bytes;

use super::admission::{Deadlines, Met, Sought, at_hand, seek_in_store};
use super::followed::Followed;
use super::owner::Owner;
use super::report::Report;
use super::request::CheckedCall;
use super::retry::Budget;
use super::task_state::TaskState;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::key::{Key, hash_key};
use crate::store::{Checkpoint, Record, State, Token};

/// The number of times that a call starts again when records come and go under it, before it
/// reports that others are at work.
const STARTS: usize = 5;

/// The parts of which the names of a call's records in all windows are made.
#[derive(Clone)]
pub(super) struct Windowed {
    pub(super) scope: Vec<u8>,
    pub(super) key: Key,
}

impl Windowed {
    fn number_now(&self, call: &CheckedCall) -> u64 {
        self.key.window_number(call.engine.clock.now())
    }

    /// Returns the same call in the window with this number.
    fn call_in(&self, call: &CheckedCall, number: u64) -> Result<Arc<CheckedCall>, Error> {
        let settings = &call.engine.settings;
        let key = self.key.in_window(number, settings.max_key_size)?;
        let key = hash_key(&settings.namespace, &self.scope, &call.operation, &key);
        Ok(Arc::new(CheckedCall { key, windowed: None, ..call.clone() }))
    }
}

/// Like [`seek`], for a key with a window. Also returns the call in the window that it belongs to.
/// All rounds share the deadlines of the call.
pub(super) async fn seek_in_windows(
    call: &Arc<CheckedCall>,
    windowed: &Windowed,
    deadlines: Deadlines,
    task_state: &TaskState,
    report: &mut Report,
    met: &mut Met,
) -> Result<(Arc<CheckedCall>, Sought), Error> {
    // The token under which this call has given up a claim that was only checking, in the previous
    // window.
    let mut given_up = None;
    for _ in 0..STARTS {
        let number = windowed.number_now(call);
        let current = windowed.call_in(call, number)?;
        let mut owner = match seek_in_window(&current, deadlines, task_state, report, met).await {
            Ok(Sought::Owner(owner)) if owner.is_still_choosing_window() => owner,
            Ok(found) => return Ok((current, found)),
            // The claim that this call does not wait for may belong to one that only checks, because
            // the call has an answer in the previous window.
            Err(error)
                if error.kind() == ErrorKind::InProgress
                    && call.patience().is_none()
                    && !met.has_chosen_window =>
            {
                let Some(before) = number.checked_sub(1) else { return Err(error) };
                let previous = windowed.call_in(call, before)?;
                if !matches!(has_record(&previous, given_up).await, Ok(true)) {
                    return Err(error);
                }
                met.another = true;
                match seek_in_previous(&previous, deadlines, task_state, report, met).await? {
                    Previous::Found(found) => return Ok((previous, found)),
                    Previous::GivenUp(token) => given_up = Some(token),
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(before) = number.checked_sub(1) {
            let previous = windowed.call_in(call, before)?;
            let has_record = match has_record(&previous, given_up).await {
                Ok(has_record) => has_record,
                Err(error) => {
                    owner.give_back_later();
                    return Err(error);
                }
            };
            if has_record {
                met.another = true;
                owner.give_back().await;
                match seek_in_previous(&previous, deadlines, task_state, report, met).await? {
                    Previous::Found(found) => return Ok((previous, found)),
                    Previous::GivenUp(token) => given_up = Some(token),
                }
                continue;
            }
        }
        if windowed.number_now(call) == number {
            match owner.mark_looked().await {
                Ok(true) => return Ok((current, Sought::Owner(owner))),
                Ok(false) => {}
                Err(error) => {
                    owner.give_back_later();
                    return Err(error);
                }
            }
        }
        owner.give_back().await;
    }
    let detail = "the records of its windows appear and disappear faster than they can be read";
    Err(call.refused(ErrorKind::InProgress).with_detail(detail))
}

/// What a call finds in its previous window, where there was a record.
enum Previous {
    Found(Sought),
    /// The record that was there is gone: the call belongs to its own window after all. Its claim
    /// with this token is given up.
    GivenUp(Token),
}

async fn seek_in_previous(
    call: &Arc<CheckedCall>,
    deadlines: Deadlines,
    task_state: &TaskState,
    report: &mut Report,
    met: &mut Met,
) -> Result<Previous, Error> {
    match seek_in_window(call, deadlines, task_state, report, met).await? {
        Sought::Owner(owner) if owner.is_still_choosing_window() => {
            let token = owner.lease.token;
            owner.give_back().await;
            Ok(Previous::GivenUp(token))
        }
        found => Ok(Previous::Found(found)),
    }
}

/// Finds an answer or acquires a claim in one window.
async fn seek_in_window(
    call: &Arc<CheckedCall>,
    deadlines: Deadlines,
    task_state: &TaskState,
    report: &mut Report,
    met: &mut Met,
) -> Result<Sought, Error> {
    report.key = call.key;
    match at_hand(call, task_state)? {
        Some((record, source)) => Ok(Sought::Found(record, source)),
        None => seek_in_store(call, deadlines, task_state, report, met).await,
    }
}

/// Returns true if there is a record that concerns the call, other than a claim that was only
/// checking and was given up as `given_up`.
async fn has_record(call: &CheckedCall, given_up: Option<Token>) -> Result<bool, Error> {
    let engine = &call.engine;
    let budget = Budget::of(engine.settings.claim_timeout);
    let read = engine.store.read(budget, call.key).await;
    let record = read.map_err(|error| call.store_error(error))?;
    Ok(record.is_some_and(|record| {
        let is_own = given_up == Some(record.owner) && is_given_up_unused(&record);
        record.state != State::Released && !is_own
    }))
}

/// Returns true if this claim was only checking and was given up. Only its owner knows that none of
/// its checkpoints is still on its way. After such a checkpoint, the next owner would begin without
/// checking.
fn is_given_up_unused(record: &Record) -> bool {
    record.state == State::InProgress
        && record.checkpoints == 0
        && record.lease_until == Timestamp::default()
}

impl Owner {
    /// Returns true if nothing has begun under the claim, neither by this owner nor by one before
    /// it.
    fn is_still_choosing_window(&self) -> bool {
        self.grant.record.checkpoints == 0
    }

    /// Marks on the record that the call belongs to its window, so that a caller that takes it over
    /// need not check. Returns false if this owner no longer holds the claim.
    async fn mark_looked(&mut self) -> Result<bool, Error> {
        let call = self.call.clone();
        let engine = call.engine.clone();
        let mut checkpoint = Checkpoint::new(self.lease.key, self.lease.token, 0, Bytes::new());
        // The former owner of the claim was only checking: there is nothing to verify.
        checkpoint.nothing_began = true;
        let written = Followed::new(&call.engine.keeper, async move {
            engine.store.checkpoint(Budget::of(engine.settings.claim_timeout), checkpoint).await
        });
        let written = written.await.map_err(|error| call.store_error(error))?;
        if written.is_done() {
            self.grant.record.checkpoints = 1;
            self.grant.record.taken_over = None;
            self.grant.taken_over = None;
        }
        Ok(written.is_done())
    }
}
