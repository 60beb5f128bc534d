//! Calls whose key has a window: they belong to the record of the window before, if there is one.
//!
//! The claim in the own window comes first, the look at the window before second, the look at the
//! clock third, and then the record is told that all of it is done: by a first checkpoint, which
//! has nothing in it. A call that claims before the end of a window is therefore seen by every call
//! that claims after it, and one whose claim was granted after that end starts anew.
//!
//! A record without a checkpoint belongs to a claim that only looks. Its owner may die there:
//! whoever takes it over has to look too, and nothing has happened under it. It cannot be
//! overlooked by reading it, because its owner may be slow and get its checkpoint through, even
//! after it has given it up itself: it is taken over, and given up by who did that. Only then can
//! nobody begin under it any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::admission::{Sought, seek};
use super::followed::Followed;
use super::report::Report;
use super::request::Checked;
use super::retry;
use super::running::Running;
use super::scope::Scope;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::key::{Key, hash_key};
use crate::store::{Checkpoint, Record, State, Token};

/// How often a call starts anew when records come and go under it, before it says that others are
/// at work.
const STARTS: usize = 5;

/// What the names of a call's records in all windows are made of.
#[derive(Clone)]
pub(super) struct Windowed {
    pub(super) scope: Vec<u8>,
    pub(super) key: Key,
}

impl Windowed {
    fn number_now(&self, call: &Checked) -> u64 {
        self.key.window_number(call.engine.clock.now())
    }

    /// The same call in the window with this number.
    fn call_in(&self, call: &Checked, number: u64) -> Result<Arc<Checked>, Error> {
        let settings = &call.engine.settings;
        let key = self.key.in_window(number, settings.max_key_size)?;
        let key = hash_key(&settings.namespace, &self.scope, &call.operation, &key);
        Ok(Arc::new(Checked { key, windowed: None, ..call.clone() }))
    }
}

/// As [`seek`], for a key with a window; also gives the call in the window that it belongs to. All
/// rounds share the one deadline of the call.
pub(super) async fn seek_in_windows(
    call: &Arc<Checked>,
    windowed: &Windowed,
    deadline: Option<Duration>,
    scope: &Scope,
    report: &mut Report,
) -> Result<(Arc<Checked>, Sought), Error> {
    // The owner as which this call has given up a claim that only looked, in the window before.
    let mut given_up = None;
    for _ in 0..STARTS {
        let number = windowed.number_now(call);
        let current = windowed.call_in(call, number)?;
        let mut running = match sought(&current, deadline, scope, report).await? {
            Sought::Running(running) if running.only_looks() => running,
            found => return Ok((current, found)),
        };
        if let Some(before) = number.checked_sub(1) {
            let previous = windowed.call_in(call, before)?;
            let has_record = match has_record(&previous, given_up).await {
                Ok(has_record) => has_record,
                Err(error) => {
                    running.give_back_later();
                    return Err(error);
                }
            };
            if has_record {
                running.give_back().await;
                match sought(&previous, deadline, scope, report).await? {
                    // The record that was there is gone: the call belongs to its own window after
                    // all.
                    Sought::Running(running) if running.only_looks() => {
                        given_up = Some(running.lease.token);
                        running.give_back().await;
                    }
                    found => return Ok((previous, found)),
                }
                continue;
            }
        }
        if windowed.number_now(call) == number {
            match running.has_looked().await {
                Ok(true) => return Ok((current, Sought::Running(running))),
                Ok(false) => {}
                Err(error) => {
                    running.give_back_later();
                    return Err(error);
                }
            }
        }
        running.give_back().await;
    }
    let detail = "the records of its windows come and go faster than they can be looked at";
    Err(call.refused(ErrorKind::InProgress).with_detail(detail))
}

async fn sought(
    call: &Arc<Checked>,
    deadline: Option<Duration>,
    scope: &Scope,
    report: &mut Report,
) -> Result<Sought, Error> {
    report.key = call.key;
    seek(call, deadline, scope, report).await
}

/// Whether there is a record that says something about the call, other than a claim that `given_up`
/// has looked under.
async fn has_record(call: &Checked, given_up: Option<Token>) -> Result<bool, Error> {
    let engine = &call.engine;
    let read =
        retry::until(engine, engine.settings.claim_timeout, || engine.store.clone().read(call.key));
    let record = read
        .await
        .map_err(|error| engine.store_error(error).of_record(Some(&call.operation), &call.key))?;
    Ok(record.is_some_and(|record| {
        let is_own = given_up == Some(record.owner) && is_given_up_unused(&record);
        record.state != State::Released && !is_own
    }))
}

/// Whether somebody has looked under this claim and given it up. Only the owner itself knows that
/// no checkpoint of it is still on its way, after which who comes next would begin without a look.
fn is_given_up_unused(record: &Record) -> bool {
    record.state == State::InProgress
        && record.checkpoints == 0
        && record.lease_until == Timestamp::default()
}

impl Running {
    /// Whether nothing has begun under the claim, neither by this owner nor by one before it.
    fn only_looks(&self) -> bool {
        self.grant.record.checkpoints == 0
    }

    /// Tells the record that the call belongs to its window, so that who takes it over need not
    /// look. False if the claim is not this owner's any more.
    async fn has_looked(&mut self) -> Result<bool, Error> {
        let call = self.call.clone();
        let engine = call.engine.clone();
        let checkpoint = Checkpoint::new(self.lease.key, self.lease.token, 0, Bytes::new());
        let written = Followed::new(&call.engine.keeper, async move {
            let patience = engine.settings.claim_timeout;
            retry::until(&engine, patience, || engine.store.clone().checkpoint(checkpoint.clone()))
                .await
        });
        let written = written.await.map_err(|error| {
            call.engine.store_error(error).of_record(Some(&call.operation), &call.key)
        })?;
        if written.is_done() {
            self.grant.record.checkpoints = 1;
            // Who held the claim before has only looked: there is nothing to ask about.
            self.grant.taken_over = None;
        }
        Ok(written.is_done())
    }
}
