//! Stores: where claims and results live.
//!
//! A store is a set of atomic operations on one record per key. Each method of [`Store`] lists the
//! rules that it must keep under "To be correct".
//!
//! # A store of your own
//!
//! A store that can lock one record does not need to implement the rules itself: it reads the
//! record, lets [`transition`] change it, and writes it back before any other caller sees it.
//! [`envelope`] converts the record to bytes and back. The store below keeps them in a map. Where
//! the lock is a transaction or a compare-and-swap, `change` is the only function that differs.
//!
//! ```
#![doc = include_str!("custom_store.rs")]
//! ```
//!
//! Then test it: `idempotency::testing::conformance!` (feature `testing`) generates one test for
//! each rule. A store that decides inside its server, in SQL or in a script, implements the rules a
//! second time, and the suite checks that the two agree. Many cases use two handles on the same
//! records, as two processes have them: a rule that holds only because of a lock or a cache within
//! one process does not hold between processes. The suite itself is tested with a list of broken
//! stores, `tests/conformance/broken` in the repository.

#[cfg(feature = "__external")]
pub(crate) mod bounds;
mod capability;
#[cfg(feature = "__sql")]
pub(crate) mod cas;
pub(crate) mod census;
pub(crate) mod codes;
mod cursor;
mod dynamic;
pub mod envelope;
mod error;
mod facets;
mod loan;
mod operation;
mod record;
mod request;
pub(crate) mod texts;
pub mod transaction;
pub mod transition;

use std::future::Future;

#[cfg(feature = "memory")]
pub use crate::memory::{MemoryStore, MemoryStoreBuilder};
#[cfg(feature = "mysql")]
pub use crate::mysql::{MySqlAddress, MySqlStore, MySqlStoreBuilder};
#[cfg(feature = "postgres")]
pub use crate::postgres::{PostgresAddress, PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "redis")]
pub use crate::redis::{RedisAddress, RedisStore, RedisStoreBuilder};
#[cfg(feature = "sqlite")]
pub use crate::sqlite::{SqliteStore, SqliteStoreBuilder};
pub use capability::{Capabilities, StoreClock};
pub use census::{Census, CensusBudget, CensusGroup};
pub use cursor::{Cursor, ParseCursorError};
pub use dynamic::DynStore;
pub use error::{StoreError, StoreErrorKind};
pub use facets::{ChangeFeed, ChangeListener, Facets, LocalResults, Moment};
pub use operation::Operation;
pub use record::{CrashPolicy, Reason, Record, State, Token};
pub use request::{
    Abandon, AdminOutcome, Adoption, Checkpoint, Claim, ClaimOutcome, Commit, Grant, Only, Page,
    Park, PurgeOutcome, Release, Remove, Renewal, Resolve, ResolveAnswer, Scan, Watch,
    WriteOutcome,
};

#[doc(hidden)]
pub use loan::Loan;
pub use transaction::SqlTransaction;

pub use crate::registry::{connect, register_scheme};

use crate::key::KeyHash;

/// A place that keeps records. All operations on one key are linearizable.
///
/// Implementers write `async fn`. There are no default methods: each operation is atomic in the
/// store, and a default made of several would not be.
///
/// An error of kind [`Unavailable`](StoreErrorKind::Unavailable) means that the outcome is unknown:
/// the engine repeats the operation with the same token until it knows. All other kinds promise
/// that nothing was applied.
///
/// # States and transitions
///
/// The lists "To be correct" name the state of a record by a letter, and changes of it by a number.
/// "This token" is the token of the request.
///
/// | | state | |
/// |---|---|---|
/// | P | [`State::InProgress`] | a caller owns the claim; the lease says until when |
/// | X | [`State::InDoubt`] | the body started, and it is unknown whether it finished |
/// | C, F | [`State::Completed`], [`State::Failed`] | the result, or an error that counts as one |
/// | R | [`State::Released`] | claimable; keeps the number of attempts |
/// | G | [`State::Tombstone`] | the record is gone and must not come back for a while |
///
/// | | transition | operation |
/// |---|---|---|
/// | T1 | first claim: no record, an expired one or R → P | [`claim`](Self::claim) |
/// | T2 | replay: C and F stay | `claim` |
/// | T3 | busy: P whose lease runs stays | `claim` |
/// | T4 | repeated claim: P with the caller's token stays | `claim` |
/// | T5, T5b | takeover: P whose lease has expired (T5) or X under verify (T5b) → P | `claim` |
/// | T6, T6b | P → X: lease expired (T6), or by the owner (T6b) | `claim`, [`park`](Self::park) |
/// | T7 | renewal: P stays | [`renew`](Self::renew) |
/// | T8 | commit: P and X → C, F | [`complete`](Self::complete) |
/// | T9 | adoption: no record → C, F; it vanished while its owner's lease ran | `complete` |
/// | T10 | release: P and X → no record, R | [`release`](Self::release) |
/// | T11 | abandonment: P stays, its lease ends | [`abandon`](Self::abandon) |
/// | T12 | resolution: X → C, F, no record | [`resolve`](Self::resolve) |
/// | T12b | correction: C and F with the reason resolved → C, F | `resolve` |
/// | T13 | expiry: any state → no record, G | every operation, [`purge`](Self::purge) |
/// | T14 | removal: any state → no record, G | [`remove`](Self::remove) |
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an idempotency store",
    note = "implement `idempotency::store::Store`, or use one of the stores in `idempotency::store`"
)]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// The store's name in errors and metrics: `"memory"`, `"redis"`.
    fn name(&self) -> &'static str;

    /// The capabilities of the store.
    fn capabilities(&self) -> Capabilities;

    /// The abilities of the store beyond these operations, or [`Facets::none`]. A store that wraps
    /// another one decides which of its abilities hold for both.
    fn facets(&self) -> Facets<'_>;

    /// Takes the claim, or returns the record that stands in the way (T1–T6).
    ///
    /// To be correct, decided in one atomic step on the store's time:
    /// - No record, an expired one or [`State::Released`]: the caller owns a new record, with the
    ///   operation, namespace, holder and trace of its claim, byte for byte. From `Released` it
    ///   keeps `created`, and counts `attempts` and the fence up. An expired record with
    ///   `after_expiry` is a tombstone for that long.
    /// - In progress with the caller's token: the caller owns it and nothing changes (T4), even if
    ///   the lease has expired. The answer again names the state from which the claim was taken
    ///   over.
    /// - In progress, lease expired, and the stricter of the record's and the caller's policy
    ///   [allows takeover](CrashPolicy::allows_takeover): the caller owns it (T5). The fence and
    ///   the attempts are counted up. The stricter policy and the caller's schema version, lease,
    ///   linger, `after_expiry`, holder and trace are written, however long those of the owner
    ///   before are; the checkpoint is kept. Operation, namespace and fingerprint stay, the reason
    ///   is cleared, `taken_over` is the state before, and the expiry does not shrink. Not if the
    ///   fingerprints [contradict](crate::key::Fingerprint::contradicts) each other: they differ in
    ///   version or bits, or only one of the two exists. And not if the stricter policy is verify
    ///   and the caller's is another one: such a caller has no way to verify.
    /// - In progress, lease expired, and the stricter policy is hold: the record is put in doubt
    ///   with [`Reason::Crashed`] unless it has a reason (T6), and returned as existing. If the
    ///   fingerprints contradict each other, the record's own policy counts: another request does
    ///   not decide that this one may not run again.
    /// - In doubt, `lease_until` has passed, the caller's policy is verify and the record's is not
    ///   stricter, the fingerprints do not contradict, and the record's token is not the caller's:
    ///   as T5 (T5b). With the same token, it is a repeated claim of the owner that left the record
    ///   in doubt, and no caller waits for its answer any more.
    /// - Everything else: nothing changes, and the record is returned as existing.
    /// - `linger` is written on the record. The expiry of an unfinished record depends on that
    ///   value alone.
    /// - `schema` is written on the record.
    /// - [`ClaimOutcome::Granted`] is returned to one token at a time.
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<ClaimOutcome, StoreError>> + Send;

    /// Prolongs leases (T7), all in one round trip where the store can. Returns one answer for each
    /// renewal, in order.
    ///
    /// The engine calls this from a thread of its own with its own Tokio runtime. A store with
    /// connections opens one for renewals there, so that a blocked executor of the user does not
    /// lose its leases.
    ///
    /// To be correct:
    /// - One answer for each renewal, in order. A renewal that fails must not cost the others their
    ///   leases: a record that is locked is [`WriteOutcome::Unanswered`], one that cannot be read
    ///   is [`WriteOutcome::Lost`].
    /// - Only P with this token: `lease_until` becomes now + lease, even if the lease had expired.
    ///   Otherwise [`WriteOutcome::Lost`] or [`WriteOutcome::Gone`].
    /// - A lease that was given up ([`abandon`](Self::abandon), [`release`](Self::release)) is not
    ///   prolonged: [`WriteOutcome::Lost`].
    /// - The expiry grows to at least the end of the lease plus the record's linger, and never
    ///   shrinks.
    fn renew(
        &self,
        renewals: Vec<Renewal>,
    ) -> impl Future<Output = Result<Vec<WriteOutcome>, StoreError>> + Send;

    /// Stores the result (T8, T9).
    ///
    /// To be correct:
    /// - P and X with this token become the commit's state with its body; the expiry is at least
    ///   now + `ttl`. It does not matter whether the lease has expired.
    /// - C and F with this token: [`WriteOutcome::AlreadyApplied`], nothing changes.
    /// - A commit whose state is not an answer changes nothing: [`WriteOutcome::Lost`].
    /// - No record and no tombstone: with `adopt`, and before it [ends](Adoption::ends), the record
    ///   is written again ([`WriteOutcome::Adopted`]), otherwise [`WriteOutcome::Gone`].
    /// - A tombstone: [`WriteOutcome::Gone`], even with `adopt`. Everything else:
    ///   [`WriteOutcome::Lost`].
    /// - A limit on the store's size never rejects a result: the effect has happened.
    fn complete(
        &self,
        commit: Commit,
    ) -> impl Future<Output = Result<WriteOutcome, StoreError>> + Send;

    /// Releases a claim (T10).
    ///
    /// To be correct:
    /// - P and X with this token: the record is removed, or becomes [`State::Released`] with its
    ///   attempts if `keep_attempts` is set.
    /// - A record that was taken over stays as it is, because the previous owner may have had an
    ///   effect. Only its lease ends, as after [`abandon`](Self::abandon), and the reason becomes
    ///   [`Reason::Crashed`] if there is none.
    /// - With `unused`, the claim is taken off the attempts, once: not if the lease was given up
    ///   before. If any attempts remain, the record stays as [`State::Released`] with them;
    ///   otherwise it is removed.
    /// - No record or a tombstone: [`WriteOutcome::Gone`]. R with this token:
    ///   [`WriteOutcome::AlreadyApplied`]. Everything else: [`WriteOutcome::Lost`].
    /// - A claim that arrives a second time, after its release, owns a new record, which a second
    ///   release removes.
    fn release(
        &self,
        release: Release,
    ) -> impl Future<Output = Result<WriteOutcome, StoreError>> + Send;

    /// Ends the caller's own lease (T11): the next claim decides by policy at once.
    ///
    /// To be correct:
    /// - Only P with this token, and only where the record's policy allows takeover: the lease has
    ///   expired from then on, even on a clock that is set back later, and the reason is written.
    /// - Under the policy hold, and for everything else: [`WriteOutcome::Lost`] or
    ///   [`WriteOutcome::Gone`], nothing changes.
    fn abandon(
        &self,
        abandon: Abandon,
    ) -> impl Future<Output = Result<WriteOutcome, StoreError>> + Send;

    /// Marks the record as in doubt (T6, T6b).
    ///
    /// To be correct:
    /// - P with this token becomes X with the reason; with `only_orphaned` only if its lease has
    ///   expired. `lease_until` becomes now + `ask_again_after`. The checkpoint stays. With
    ///   `only_orphaned`, a reason that the owner left stays too.
    /// - X with this token: [`WriteOutcome::AlreadyApplied`], with one exception: where an observer
    ///   could only say [`Reason::Crashed`], the owner's own reason replaces it
    ///   ([`WriteOutcome::Applied`]).
    /// - Everything else: [`WriteOutcome::Lost`] or [`WriteOutcome::Gone`].
    fn park(&self, park: Park) -> impl Future<Output = Result<WriteOutcome, StoreError>> + Send;

    /// Replaces the checkpoint.
    ///
    /// To be correct:
    /// - Only P with this token. If `sequence` equals the record's `checkpoints`, the body is
    ///   replaced and the count grows by one.
    /// - `sequence` one less and the same body: [`WriteOutcome::AlreadyApplied`]. Any other
    ///   sequence: [`WriteOutcome::Lost`].
    /// - A checkpoint that is accepted with `nothing_began` also clears [`Record::taken_over`], so that
    ///   a release removes the record.
    /// - Lease and expiry stay.
    fn checkpoint(
        &self,
        checkpoint: Checkpoint,
    ) -> impl Future<Output = Result<WriteOutcome, StoreError>> + Send;

    /// The fence of the owner's claim, or `None` if the claim no longer belongs to the token.
    ///
    /// To be correct:
    /// - Only P with this token.
    /// - The fence of one claim is the same each time it is queried. It is larger than those of all
    ///   earlier claims of the record whose fence was queried, and of the key's earlier records
    ///   that are gone. A store may allocate it at the first query, from its clock. A store whose
    ///   clock can stand still between two claims, or be set back, remembers the largest fence of
    ///   the records that are gone, see [`transition::claim_above`].
    fn fence(
        &self,
        key: KeyHash,
        token: Token,
    ) -> impl Future<Output = Result<Option<u64>, StoreError>> + Send;

    /// The record as it is, tombstones included, or `None` if there is none or it has expired.
    ///
    /// To be correct: reads from where claims are decided, never from a replica.
    fn read(&self, key: KeyHash)
    -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Reads the record after registering for its changes.
    ///
    /// To be correct:
    /// - No change of state or owner and no abandoned lease after the read goes unnoticed: the
    ///   watch resolves then, or by itself after a bounded time. The same holds for the record's
    ///   expiry.
    /// - A lost connection to the store resolves it.
    fn watch(&self, key: KeyHash) -> impl Future<Output = Result<Watch, StoreError>> + Send;

    /// Settles an in-doubt record on an operator's behalf (T12), or corrects such an answer (T12b).
    ///
    /// To be correct:
    /// - Only X with the observed token. The new token replaces it and the fence grows by one, so
    ///   that a late owner's commit, release and park are [`WriteOutcome::Lost`]. The reason is
    ///   [`Reason::Resolved`].
    /// - [`ResolveAnswer::NotExecuted`] removes the record.
    /// - C and F with the reason [`Reason::Resolved`] and the observed token are an earlier answer
    ///   of this kind: another [`ResolveAnswer::Finished`] replaces it in the same way.
    ///   [`ResolveAnswer::NotExecuted`] does not, and an owner's result is never replaced.
    /// - P whose lease runs: [`AdminOutcome::Running`]. No record or a tombstone:
    ///   [`AdminOutcome::Absent`]. The same answer again (its token is on the record):
    ///   [`AdminOutcome::Applied`], nothing changes. Everything else: [`AdminOutcome::Conflict`].
    ///   That includes P whose lease has expired, which must be [put in doubt](Self::park) first.
    fn resolve(
        &self,
        resolve: Resolve,
    ) -> impl Future<Output = Result<AdminOutcome, StoreError>> + Send;

    /// Removes a record (T14).
    ///
    /// To be correct:
    /// - Only with the observed token. P whose lease runs is [`AdminOutcome::Running`] unless
    ///   forced.
    /// - Leaves a tombstone if requested. If the owner runs, one stays for at least the rest of its
    ///   lease, so that the owner's commit does not bring the record back.
    /// - The tombstone of a removal has [`Reason::Resolved`], that of an expiry has no reason. Its
    ///   `lease_until` is the end of the lease of the owner that ran, otherwise zero.
    /// - A tombstone is removed like a record. One whose `lease_until` is in the future stands for
    ///   an owner that runs: [`AdminOutcome::Running`] unless forced, and then it stays for the
    ///   rest of that lease.
    fn remove(
        &self,
        remove: Remove,
    ) -> impl Future<Output = Result<AdminOutcome, StoreError>> + Send;

    /// Lists records that have not expired, and the tombstones of those that have: one page, from
    /// [`Scan::after`] on.
    ///
    /// To be correct:
    /// - Over all pages, each record that the scan [includes](Scan::includes) and that is there all
    ///   the time, without its body, at most [`Scan::limit`] on a page: in the order of the keys
    ///   and once if [`Capabilities::lists_in_order`] is true, otherwise at least once.
    /// - A page costs what its request says, not what is in the store: a store examines a bounded
    ///   number of records, and returns the place that it has reached as [`Page::next`]. A page may
    ///   have fewer records than the limit, even none; the list ends where there is no `next`.
    /// - A `next` leads on, also through records that are not listed.
    /// - A cursor of another store, and one that cannot be read, are an error of the kind
    ///   [`Unsupported`](StoreErrorKind::Unsupported).
    /// - A record that cannot be read is named in [`Page::unreadable`], and does not keep any other
    ///   from being listed; neither does anything else in its place.
    fn scan(&self, scan: Scan) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Counts records by namespace, operation and state, in one pass over the store, for as long as
    /// the budget allows.
    ///
    /// To be correct:
    /// - Counts each record that a [scan](Self::scan) without filters lists, as it lists it: judged
    ///   on the store's time, an expired record is a tombstone or not counted. In doubt is what
    ///   [`Only::InDoubt`] says. A record that is there all the time is counted once; where
    ///   [`Capabilities::lists_in_order`] is false, at least once.
    /// - Once the time of the budget is over, it begins no further step, and returns what it has
    ///   counted with [`Census::complete`] false. That is not an error, also where it has counted
    ///   nothing.
    /// - A step that fails with a [transient](StoreError::is_transient) error ends the census in the
    ///   same way if one before it has succeeded. It is an error where nothing was counted.
    /// - Ten thousand records are more than one step.
    /// - A step takes a bounded time, also on the server: a census that was given up leaves nothing
    ///   behind that works or waits. No step keeps writers waiting for longer than other requests.
    /// - A record that cannot be read is counted in [`Census::unreadable`], and costs no other its
    ///   place.
    fn census(
        &self,
        budget: CensusBudget,
    ) -> impl Future<Output = Result<Census, StoreError>> + Send;

    /// Removes at most `limit` expired records. Does nothing in stores whose server expires records
    /// itself.
    ///
    /// To be correct: never removes a record that is P or X before its expiry, and leaves the
    /// tombstones that `after_expiry` requires. Where [`Capabilities::needs_purging`] is true,
    /// repeated purges remove everything of which nothing is left, and each reports its part.
    fn purge(&self, limit: usize) -> impl Future<Output = Result<PurgeOutcome, StoreError>> + Send;
}
