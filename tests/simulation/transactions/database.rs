//! The database of all processes: records and effects that are committed, and transactions in which
//! more of them is staged.
//!
//! It does what a server does, at once. What a client hears of it is in `connection`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idempotency::__private::End;
use idempotency::clock::Clock as _;
use idempotency::key::KeyHash;
use idempotency::record::State;
use idempotency::store::{
    Claim, ClaimOutcome, Commit, CrashPolicy, Record, Token, WriteOutcome, transition,
};
use idempotency_test_support::history::{Request, Rule, Transition};
use tokio::sync::Notify;

use super::mutant::Mutant;
use crate::clock::RunClock;
use crate::log::{Effect, Entry, Log};
use crate::rules::declined;

pub struct Database {
    clock: RunClock,
    log: Arc<Log>,
    mutant: Option<Mutant>,
    tables: Mutex<Tables>,
    /// A transaction is over.
    pub over: Notify,
}

#[derive(Default)]
struct Tables {
    rows: BTreeMap<KeyHash, Row>,
    open: BTreeMap<u64, Session>,
    begun: u64,
    effects: u64,
}

/// What is committed of one key.
#[derive(Default)]
struct Row {
    label: String,
    record: Option<Record>,
    retention: u32,
    /// In this retention.
    effects: u32,
    /// The transaction whose claim is staged: others wait for it.
    locked_by: Option<u64>,
}

/// One open transaction. A call of this simulation makes one for itself.
#[derive(Default)]
struct Session {
    process: String,
    staged: Staged,
    before_claim: Staged,
    before_body: Staged,
}

#[derive(Clone, Default)]
struct Staged {
    key: Option<KeyHash>,
    record: Option<Record>,
    effects: Vec<String>,
}

impl Database {
    pub fn new(clock: RunClock, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        Self { clock, log, mutant, tables: Mutex::default(), over: Notify::new() }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of `key` in the log.
    pub fn label(&self, key: KeyHash, label: &str) {
        label.clone_into(&mut self.tables().rows.entry(key).or_default().label);
    }

    pub fn begin(&self, process: &str) -> u64 {
        let mut tables = self.tables();
        tables.begun += 1;
        let number = tables.begun;
        tables.open.insert(number, Session { process: process.to_owned(), ..Session::default() });
        number
    }

    /// Claims in the transaction; `Ok(None)` while another one holds the key, `Err` if the
    /// transaction is over.
    pub fn claim(&self, number: u64, claim: &Claim) -> Result<Option<ClaimOutcome>, Over> {
        let (now, mut tables) = (self.clock.now(), self.tables());
        let Tables { rows, open, .. } = &mut *tables;
        let (session, row) =
            (open.get_mut(&number).ok_or(Over)?, rows.entry(claim.key).or_default());
        let mut slot = row.record.clone();
        let claimed = transition::claim(&mut slot, claim, now);
        // What needs no write waits for nobody.
        if slot == row.record {
            return Ok(Some(claimed));
        }
        if row.locked_by.is_some_and(|other| other != number) && !self.is(Mutant::ClaimsDoNotWait) {
            return Ok(None);
        }
        row.locked_by = Some(number);
        session.before_claim = session.staged.clone();
        session.staged.key = Some(claim.key);
        session.staged.record = slot;
        session.before_body = session.staged.clone();
        Ok(Some(claimed))
    }

    /// Claims in the transaction, and gives the record its result. `Ok(None)` while another one holds
    /// the key.
    pub fn record_first(
        &self,
        number: u64,
        claim: &Claim,
        result: &Commit,
    ) -> Result<Option<First>, Over> {
        let is_there = self.tables().rows.get(&claim.key).is_some_and(|row| {
            let is_locked = row.locked_by.is_some_and(|other| other != number);
            row.record.is_some() && !is_locked
        });
        if is_there {
            return Ok(Some(First::IsThere));
        }
        let Some(claimed) = self.claim(number, claim)? else { return Ok(None) };
        self.end(number, End::Keep(result.clone()))?;
        Ok(Some(First::Written(Box::new(claimed))))
    }

    /// Undoes the effects in the transaction, and nothing else.
    pub fn undo_effects(&self, number: u64) {
        if let Some(session) = self.tables().open.get_mut(&number) {
            session.staged.effects.clear();
        }
    }

    /// The number of effects of `key` that are committed.
    pub fn effects(&self, key: KeyHash) -> u32 {
        self.tables().rows.get(&key).map_or(0, |row| row.effects)
    }

    /// An effect, in the transaction. The value is what the caller gets for it.
    pub fn effect(&self, number: u64) -> Result<String, Over> {
        let mut tables = self.tables();
        let Tables { rows, open, effects, .. } = &mut *tables;
        let session = open.get_mut(&number).ok_or(Over)?;
        *effects += 1;
        let value = format!("e{effects}");
        if self.is(Mutant::EffectOutside) {
            if let Some(row) = session.staged.key.and_then(|key| rows.get_mut(&key)) {
                row.effects += 1;
            }
        } else {
            session.staged.effects.push(value.clone());
        }
        Ok(value)
    }

    /// Ends the call in the transaction, as its engine says. False if the record is not as the
    /// claim left it.
    pub fn end(&self, number: u64, end: End) -> Result<bool, Over> {
        let (now, mut tables) = (self.clock.now(), self.tables());
        let Tables { rows, open, .. } = &mut *tables;
        let session = open.get_mut(&number).ok_or(Over)?;
        let written = match end {
            End::Undo if self.is(Mutant::EffectNotUndone) => {
                session.staged.record.clone_from(&session.before_claim.record);
                return Ok(true);
            }
            End::Undo => {
                let undone = std::mem::replace(&mut session.staged, session.before_claim.clone());
                if let Some(row) = undone.key.and_then(|key| rows.get_mut(&key)) {
                    row.locked_by = None;
                }
                drop(tables);
                self.over.notify_waiters();
                return Ok(true);
            }
            End::Keep(commit) => transition::complete(&mut session.staged.record, &commit, now),
            End::KeepError(commit) => {
                session.staged = session.before_body.clone();
                transition::complete(&mut session.staged.record, &commit, now)
            }
            End::Hold(park) => {
                session.staged = session.before_body.clone();
                transition::park(&mut session.staged.record, &park, now)
            }
        };
        if self.is(Mutant::RecordOutside)
            && let Some(row) = session.staged.key.and_then(|key| rows.get_mut(&key))
        {
            row.record.clone_from(&session.staged.record);
        }
        Ok(written == WriteOutcome::Applied)
    }

    pub fn commit(&self, number: u64) -> Result<(), Over> {
        let (at, mut tables) = (self.clock.monotonic(), self.tables());
        let Session { process, staged, .. } = tables.open.remove(&number).ok_or(Over)?;
        if let Some((row, record)) =
            staged.key.and_then(|key| Some((tables.rows.get_mut(&key)?, staged.record)))
        {
            let is_anew = row.record.as_ref().is_some_and(|before| {
                before.created != record.as_ref().map_or(before.created, |it| it.created)
            });
            if is_anew {
                row.retention += 1;
                row.effects = 0;
            }
            let before = std::mem::replace(&mut row.record, record);
            self.note(at, process, row, before.filter(|_| !is_anew), &staged.effects);
        }
        self.is_over(&mut tables, number);
        Ok(())
    }

    pub fn roll_back(&self, number: u64) {
        let mut tables = self.tables();
        if tables.open.remove(&number).is_some() {
            self.is_over(&mut tables, number);
        }
    }

    /// What a transaction has changed.
    fn note(
        &self,
        at: Duration,
        process: String,
        row: &mut Row,
        before: Option<Record>,
        effects: &[String],
    ) {
        let after = row.record.clone();
        let (token, attempt) =
            after.as_ref().map_or((Token::from_bits(0), 1), |it| (it.owner, it.attempts));
        let decided = after.as_ref().filter(|it| it.state == State::Failed).and_then(declined);
        for value in effects.iter().cloned().chain(decided) {
            self.log.write(Entry::Effect(Effect {
                at,
                process: process.clone(),
                key: row.label.clone(),
                step: "",
                retention: row.retention,
                token,
                attempt,
                fingerprint: None,
                value,
                provider_key: None,
            }));
        }
        row.effects += u32::try_from(effects.len()).unwrap_or(u32::MAX);
        let request = Request::Claim { token, policy: CrashPolicy::Hold, fingerprint: None };
        let (key, retention) = (row.label.clone(), row.retention);
        let transition = Transition { at, from: process, key, retention, request, before, after };
        self.log.write(Entry::Applied(Box::new(transition)));
    }

    fn is_over(&self, tables: &mut Tables, number: u64) {
        for row in tables.rows.values_mut().filter(|row| row.locked_by == Some(number)) {
            row.locked_by = None;
            self.look(row);
        }
        self.over.notify_waiters();
    }

    /// S6: one effect with a result, none without a record, and one at most with a record that
    /// reads as in doubt.
    fn look(&self, row: &Row) {
        let now = self.clock.now();
        let allowed = match &row.record {
            None => row.effects == 0,
            Some(record) if record.state == State::Completed => row.effects == 1,
            Some(record) if record.state == State::Failed => row.effects == 0,
            Some(record) => {
                row.effects <= 1 && (record.state == State::InDoubt || record.lease_until <= now)
            }
        };
        if !allowed {
            let state = row.record.as_ref().map(|record| record.state);
            let seen =
                format!("{} effects are committed, and the record is {state:?}", row.effects);
            self.log.broken(
                self.clock.monotonic(),
                Rule::EffectWithRecord,
                &row.label,
                row.retention,
                seen,
            );
        }
    }
}

/// The outcome of a first record.
#[derive(Debug)]
pub enum First {
    Written(Box<ClaimOutcome>),
    /// There is a record.
    IsThere,
}

/// The transaction has been rolled back.
#[derive(Clone, Copy, Debug)]
pub struct Over;
