//! Calls whose key has a window: they belong to the record of the window before, if there is one.
//!
//! The claim in the own window comes first, the look at the window before second, and the look at the clock third. A
//! call that claims before the end of a window is therefore seen by every call that claims after it, and one whose claim
//! was granted after that end starts anew.

use std::sync::Arc;

use super::admission::{Sought, seek};
use super::call::Checked;
use super::report::Report;
use super::retry;
use super::running::Running;
use super::scope::Scope;
use crate::error::{Error, ErrorKind};
use crate::key::{Key, hash_key};
use crate::store::State;

/// How often a call starts anew when records come and go under it, before it says that others are at work.
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

/// As [`seek`], for a key with a window; also gives the call in the window that it belongs to.
pub(super) async fn seek_in_windows(
    call: &Arc<Checked>,
    windowed: &Windowed,
    scope: &Scope,
    report: &mut Report,
) -> Result<(Arc<Checked>, Sought), Error> {
    for _ in 0..STARTS {
        let number = windowed.number_now(call);
        let current = windowed.call_in(call, number)?;
        let running = match sought(&current, scope, report).await? {
            Sought::Running(running) if running.is_first() => running,
            found => return Ok((current, found)),
        };
        if let Some(before) = number.checked_sub(1) {
            let previous = windowed.call_in(call, before)?;
            let has_record = match has_record(&previous).await {
                Ok(has_record) => has_record,
                Err(error) => {
                    running.give_back().await;
                    return Err(error);
                }
            };
            if has_record {
                running.give_back().await;
                match sought(&previous, scope, report).await? {
                    // The record that was there is gone: the call belongs to its own window after all.
                    Sought::Running(running) if running.is_first() => running.give_back().await,
                    found => return Ok((previous, found)),
                }
                continue;
            }
        }
        if windowed.number_now(call) == number {
            return Ok((current, Sought::Running(running)));
        }
        running.give_back().await;
    }
    let detail = "the records of its windows come and go faster than they can be looked at";
    Err(call.refused(ErrorKind::InProgress).with_detail(detail))
}

async fn sought(call: &Arc<Checked>, scope: &Scope, report: &mut Report) -> Result<Sought, Error> {
    report.key = call.key;
    seek(call, scope, report).await
}

/// Whether there is a record that says something about the call.
async fn has_record(call: &Checked) -> Result<bool, Error> {
    let engine = &call.engine;
    let read = retry::until(engine, engine.settings.claim_timeout, || engine.store.clone().read(call.key));
    let record = read.await.map_err(|error| engine.store_error(error).of_record(Some(&call.operation), &call.key))?;
    Ok(record.is_some_and(|record| record.state != State::Released))
}

impl Running {
    /// Whether no attempt before this one may have left an effect.
    fn is_first(&self) -> bool {
        self.grant.taken_over.is_none()
    }
}
