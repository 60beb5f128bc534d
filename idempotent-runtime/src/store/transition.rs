//! The rules of the protocol as functions on one record. A store that locks the record, calls one
//! of these and writes the slot back keeps every rule of [`Store`](super::Store) that is about a
//! single record. The numbers T1–T14 are explained [there](super::Store#states-and-transitions).
//!
//! Each function takes the slot (`None` for no record), the request and the store's time. A slot
//! may hold a record that has expired: every function treats it as expired, even if it has not been
//! removed. Answers carry `now` as [`Record::read_at`].
//!
//! ```
//! use std::time::Duration;
//! use idempotency::clock::Timestamp;
//! use idempotency::key::KeyHash;
//! use idempotency::store::{Claim, ClaimOutcome, Commit, State, Token, WriteOutcome, transition};
//!
//! let (key, token) = (KeyHash::from_bytes([7; 32]), Token::from_bits(1));
//! let now = Timestamp::from_millis(1_000);
//! let mut slot = None;
//!
//! let claimed = transition::claim(&mut slot, &Claim::new(key, token, "payments.charge".into()), now);
//! assert!(matches!(claimed, ClaimOutcome::Granted(_)));
//!
//! let commit = Commit::new(key, token, "receipt 1".into(), Duration::from_secs(60));
//! assert_eq!(transition::complete(&mut slot, &commit, now), WriteOutcome::Applied);
//! assert_eq!(transition::complete(&mut slot, &commit, now), WriteOutcome::AlreadyApplied);
//! assert_eq!(transition::read(&mut slot, now).unwrap().state, State::Completed);
//! assert_eq!(transition::read(&mut slot, now + Duration::from_secs(60)), None);
//! ```

use std::time::Duration;

use bytes::Bytes;

use super::{
    Abandon, AdminOutcome, Checkpoint, Claim, ClaimOutcome, Commit, CrashPolicy, Grant, Park,
    Reason, Record, Release, Remove, Renewal, Resolve, ResolveAnswer, State, Token, WriteOutcome,
};
use crate::clock::{Timestamp, millis};
use crate::fingerprint::Fingerprint;

/// The `lease_until` of a lease that was given up. Not the time at which that happened: a clock
/// that is set back must not revive the lease, and neither must a renewal already in flight.
const GIVEN_UP: Timestamp = Timestamp::from_millis(0);

/// Expires the record (T13): once its retention has ended it becomes a tombstone if it has an
/// `after_expiry`, otherwise it is removed.
///
/// The other functions begin with this, so a store needs it only to remove records that no caller
/// requests.
pub fn expire(slot: &mut Option<Record>, now: Timestamp) {
    if let Some(record) = slot.as_mut().filter(|record| record.expires <= now) {
        let ends = record.expires + record.after_expiry;
        if matches!(record.state, State::Released | State::Tombstone) || ends <= now {
            *slot = None;
        } else {
            bury(record, ends, None);
        }
    }
}

/// The record as it is, tombstones included.
pub fn read(slot: &mut Option<Record>, now: Timestamp) -> Option<Record> {
    expire(slot, now);
    slot.as_ref().map(|record| seen(record, now))
}

/// Takes the claim, or returns the record that stands in the way (T1–T6).
///
/// The fence of a new record is derived from `now`, so consecutive records of one key within a
/// millisecond have the same fence: see [`claim_above`].
pub fn claim(slot: &mut Option<Record>, claim: &Claim, now: Timestamp) -> ClaimOutcome {
    claim_above(slot, claim, now, 0)
}

/// Takes the claim like [`claim`], with a fence larger than `last_fence`: that of the last claim
/// which the store granted, to this key or to any. A store that remembers it keeps fences in order
/// even if its clock has not advanced since, or was set back.
pub fn claim_above(
    slot: &mut Option<Record>,
    claim: &Claim,
    now: Timestamp,
    last_fence: u64,
) -> ClaimOutcome {
    // An expired record counts too: the clock may have been set back since.
    let last_fence = slot.as_ref().map_or(last_fence, |record| record.fence.max(last_fence));
    expire(slot, now);
    let record = match slot {
        Some(record) if record.state != State::Released => record,
        _ => return ClaimOutcome::Granted(Grant::new(first_claim(slot, claim, now, last_fence))),
    };
    if record.state == State::InProgress && record.owner == claim.token {
        return ClaimOutcome::Granted(Grant::new(seen(record, now)));
    }
    let policy = record.policy.max(claim.policy);
    let lease_over = record.lease_until <= now;
    // A caller without a verification callback cannot take over a record that requires one.
    let can_ask = policy != CrashPolicy::Verify || claim.policy == CrashPolicy::Verify;
    let contradicts = Fingerprint::contradicts(record.fingerprint, claim.fingerprint);
    let may_take_over = lease_over
        && !contradicts
        && match record.state {
            State::InProgress => policy.allows_takeover() && can_ask,
            // A re-sent claim of the owner that left the record in doubt must not win: no caller
            // waits for its answer any more.
            State::InDoubt => {
                policy == CrashPolicy::Verify && can_ask && record.owner != claim.token
            }
            _ => false,
        };
    if may_take_over {
        take_over(record, claim, policy, now);
        return ClaimOutcome::Granted(Grant::new(seen(record, now)));
    }
    // Another request does not decide that this one may not run again.
    let policy = if contradicts { record.policy } else { policy };
    if record.state == State::InProgress && lease_over && policy == CrashPolicy::Hold {
        record.state = State::InDoubt;
        record.reason = record.reason.or(Some(Reason::Crashed));
    }
    ClaimOutcome::Existing(seen(record, now))
}

/// Prolongs the lease (T7), unless it was given up.
pub fn renew(slot: &mut Option<Record>, renewal: &Renewal, now: Timestamp) -> WriteOutcome {
    match owned(slot, renewal.token, now) {
        Ok(record) if record.state == State::InProgress && record.lease_until > GIVEN_UP => {
            lease(record, renewal.lease, now);
            WriteOutcome::Applied
        }
        Ok(_) => WriteOutcome::Lost,
        Err(written) => written,
    }
}

/// Stores the result (T8, T9).
pub fn complete(slot: &mut Option<Record>, commit: &Commit, now: Timestamp) -> WriteOutcome {
    if !commit.state.is_answer() {
        return WriteOutcome::Lost;
    }
    expire(slot, now);
    let (record, written) = match (slot.as_mut(), &commit.adopt) {
        (None, Some(adoption)) if now < adoption.ends => {
            let mut record = record_of(&adoption.claim, now);
            record.owner = commit.token;
            record.fence = adoption.fence;
            record.attempts = adoption.attempts;
            record.created = adoption.created;
            (slot.insert(record), WriteOutcome::Adopted)
        }
        _ => match owned(slot, commit.token, now) {
            Ok(record) if is_unfinished(record) => (record, WriteOutcome::Applied),
            Ok(record) if record.state.is_answer() => return WriteOutcome::AlreadyApplied,
            Ok(_) => return WriteOutcome::Lost,
            Err(written) => return written,
        },
    };
    record.reason = commit.reason;
    answer(record, commit.state, &commit.body, commit.schema, now + commit.ttl);
    written
}

/// Releases the claim (T10). A record that was taken over stays, for the next caller.
pub fn release(slot: &mut Option<Record>, release: &Release, now: Timestamp) -> WriteOutcome {
    match owned(slot, release.token, now) {
        Ok(record) if is_unfinished(record) => {
            // Only once: a repeated release finds the lease given up.
            if release.unused && record.lease_until > GIVEN_UP {
                record.attempts = record.attempts.saturating_sub(1);
            }
            if record.taken_over.is_some() {
                // The owner speaks only for itself: what its predecessor did is as unknown as
                // before.
                record.lease_until = GIVEN_UP;
                record.reason = record.reason.or(Some(Reason::Crashed));
            } else if release.keep_attempts || release.unused && record.attempts > 0 {
                record.state = State::Released;
                record.reason = None;
                record.lease_until = GIVEN_UP;
                record.checkpoints = 0;
                record.body = Bytes::new();
            } else {
                *slot = None;
            }
            WriteOutcome::Applied
        }
        Ok(record) if record.state == State::Released => WriteOutcome::AlreadyApplied,
        Ok(_) => WriteOutcome::Lost,
        Err(written) => written,
    }
}

/// Ends the caller's own lease and leaves the record to the next caller (T11).
pub fn abandon(slot: &mut Option<Record>, abandon: &Abandon, now: Timestamp) -> WriteOutcome {
    match owned(slot, abandon.token, now) {
        Ok(record) if record.state == State::InProgress && record.policy.allows_takeover() => {
            record.lease_until = GIVEN_UP;
            record.reason = Some(abandon.reason);
            WriteOutcome::Applied
        }
        Ok(_) => WriteOutcome::Lost,
        Err(written) => written,
    }
}

/// Marks the record as in doubt (T6, T6b).
pub fn park(slot: &mut Option<Record>, park: &Park, now: Timestamp) -> WriteOutcome {
    match owned(slot, park.token, now) {
        // An observer knew only that the lease had expired; the owner's own reason is better.
        Ok(record)
            if record.state == State::InDoubt
                && !park.only_orphaned
                && record.reason == Some(Reason::Crashed)
                && park.reason != Reason::Crashed =>
        {
            record.reason = Some(park.reason);
            WriteOutcome::Applied
        }
        Ok(record) if record.state == State::InDoubt => WriteOutcome::AlreadyApplied,
        Ok(record)
            if record.state == State::InProgress
                && (!park.only_orphaned || record.lease_until <= now) =>
        {
            record.state = State::InDoubt;
            // An observer knows only that the lease has expired; a reason that the owner wrote is
            // better.
            let known = record.reason.filter(|_| park.only_orphaned);
            record.reason = known.or(Some(park.reason));
            record.lease_until = now + park.ask_again_after;
            WriteOutcome::Applied
        }
        Ok(_) => WriteOutcome::Lost,
        Err(written) => written,
    }
}

/// Replaces the checkpoint.
pub fn checkpoint(
    slot: &mut Option<Record>,
    checkpoint: &Checkpoint,
    now: Timestamp,
) -> WriteOutcome {
    match owned(slot, checkpoint.token, now) {
        Ok(record) if record.state == State::InProgress => {
            let Some(next) = checkpoint.sequence.checked_add(1) else { return WriteOutcome::Lost };
            if checkpoint.sequence == record.checkpoints {
                record.checkpoints = next;
                record.body = checkpoint.body.clone();
                if checkpoint.nothing_began {
                    record.taken_over = None;
                }
                WriteOutcome::Applied
            } else if next == record.checkpoints && checkpoint.body == record.body {
                WriteOutcome::AlreadyApplied
            } else {
                WriteOutcome::Lost
            }
        }
        Ok(_) => WriteOutcome::Lost,
        Err(written) => written,
    }
}

/// The fence of the owner's claim.
pub fn fence(slot: &mut Option<Record>, token: Token, now: Timestamp) -> Option<u64> {
    let record = owned(slot, token, now).ok()?;
    (record.state == State::InProgress).then_some(record.fence)
}

/// Settles an in-doubt record on an operator's behalf (T12), or corrects such an answer (T12b).
pub fn resolve(slot: &mut Option<Record>, resolve: &Resolve, now: Timestamp) -> AdminOutcome {
    let Some(record) = present(slot, now) else { return AdminOutcome::Absent };
    if record.state == State::InProgress && record.lease_until > now {
        return AdminOutcome::Running;
    }
    // An operator may correct an operator's answer, but not to "it did not happen": callers may
    // have received it.
    let is_correction = record.state.is_answer()
        && record.reason == Some(Reason::Resolved)
        && resolve.answer != ResolveAnswer::NotExecuted;
    if (record.state != State::InDoubt && !is_correction) || record.owner != resolve.observed {
        let again = record.owner == resolve.token && record.reason == Some(Reason::Resolved);
        return if again { AdminOutcome::Applied } else { AdminOutcome::Conflict };
    }
    match &resolve.answer {
        ResolveAnswer::NotExecuted => *slot = None,
        ResolveAnswer::Finished { state, body, schema, ttl } if state.is_answer() => {
            record.owner = resolve.token;
            record.fence = record.fence.saturating_add(1);
            record.reason = Some(Reason::Resolved);
            answer(record, *state, body, *schema, now + *ttl);
        }
        ResolveAnswer::Finished { .. } => return AdminOutcome::Conflict,
    }
    AdminOutcome::Applied
}

/// Removes the record, or its tombstone (T14).
pub fn remove(slot: &mut Option<Record>, remove: &Remove, now: Timestamp) -> AdminOutcome {
    expire(slot, now);
    let Some(record) = slot.as_mut() else { return AdminOutcome::Absent };
    if record.owner != remove.observed {
        return AdminOutcome::Conflict;
    }
    let lease_left = match record.state {
        // The tombstone of a running record keeps the record's owner from bringing it back.
        State::InProgress | State::Tombstone => record.lease_until.saturating_duration_since(now),
        _ => Duration::ZERO,
    };
    if !lease_left.is_zero() && !remove.force {
        return AdminOutcome::Running;
    }
    let ends = now + remove.tombstone.max(lease_left);
    if ends > now {
        bury(record, ends, Some(Reason::Resolved));
        if !lease_left.is_zero() {
            record.lease_until = now + lease_left;
        }
    } else {
        *slot = None;
    }
    AdminOutcome::Applied
}

fn seen(record: &Record, now: Timestamp) -> Record {
    let mut record = record.clone();
    record.read_at = now;
    record
}

fn is_unfinished(record: &Record) -> bool {
    matches!(record.state, State::InProgress | State::InDoubt)
}

/// The record, if it has not expired and is not a tombstone.
fn present(slot: &mut Option<Record>, now: Timestamp) -> Option<&mut Record> {
    expire(slot, now);
    slot.as_mut().filter(|record| record.state != State::Tombstone)
}

/// The record, if `token` owns it.
fn owned(
    slot: &mut Option<Record>,
    token: Token,
    now: Timestamp,
) -> Result<&mut Record, WriteOutcome> {
    let record = present(slot, now).ok_or(WriteOutcome::Gone)?;
    if record.owner == token { Ok(record) } else { Err(WriteOutcome::Lost) }
}

fn record_of(claim: &Claim, now: Timestamp) -> Record {
    let mut record = Record::new(claim.key, claim.token, claim.operation.clone());
    record.fingerprint = claim.fingerprint;
    record.policy = claim.policy;
    record.schema = claim.schema;
    record.created = now;
    record.namespace = claim.namespace.clone();
    origin(&mut record, claim);
    retention(&mut record, claim);
    record
}

/// A fence larger than the previous one, and than those of earlier records of this key that are
/// gone: a resource that has seen those must not reject the next owner.
fn next_fence(before: u64, now: Timestamp) -> u64 {
    now.as_millis().saturating_mul(1000).max(before.saturating_add(1))
}

fn first_claim(
    slot: &mut Option<Record>,
    claim: &Claim,
    now: Timestamp,
    last_fence: u64,
) -> Record {
    let mut record = record_of(claim, now);
    record.fence = next_fence(last_fence, now);
    if let Some(released) = slot.take() {
        record.created = released.created;
        record.attempts = released.attempts.saturating_add(1);
    }
    lease(&mut record, claim.lease, now);
    seen(slot.insert(record), now)
}

fn take_over(record: &mut Record, claim: &Claim, policy: CrashPolicy, now: Timestamp) {
    record.taken_over = Some(record.state);
    record.state = State::InProgress;
    record.owner = claim.token;
    record.fence = next_fence(record.fence, now);
    record.attempts = record.attempts.saturating_add(1);
    record.policy = policy;
    record.schema = claim.schema;
    record.reason = None;
    origin(record, claim);
    retention(record, claim);
    lease(record, claim.lease, now);
}

/// Notes where the owner is to be found: its process, and the trace of the call that it makes.
fn origin(record: &mut Record, claim: &Claim) {
    record.holder = claim.holder.clone();
    record.trace.clone_from(&claim.trace);
}

fn retention(record: &mut Record, claim: &Claim) {
    record.linger = Duration::from_millis(millis(claim.linger));
    record.after_expiry = Duration::from_millis(millis(claim.after_expiry));
}

/// Starts the lease now, and keeps the record for its linger beyond that.
fn lease(record: &mut Record, lease: Duration, now: Timestamp) {
    record.lease_until = now + lease;
    record.expires = record.expires.max(record.lease_until + record.linger);
}

fn answer(record: &mut Record, state: State, body: &Bytes, schema: u32, expires: Timestamp) {
    record.state = state;
    record.body = body.clone();
    record.schema = schema;
    record.expires = expires;
}

fn bury(record: &mut Record, ends: Timestamp, reason: Option<Reason>) {
    record.state = State::Tombstone;
    record.reason = reason;
    record.expires = ends;
    record.lease_until = GIVEN_UP;
    record.body = Bytes::new();
}
