//! Stores: where claims and results live.
//!
//! A store is a set of atomic operations on one record per key. The rules that it must keep are at
//! each method of [`Store`] under "To be correct".
//!
//! # A store of your own
//!
//! A store that can lock one record needs no rule of its own: it reads the record, lets
//! [`transition`] change it and writes it back before anybody else sees it. [`envelope`] makes the
//! record into bytes. This one keeps them in a map; where the lock is a transaction or a
//! compare-and-swap, `change` is the only function that differs.
//!
//! ```
//! # use idempotent_runtime as idempotency;
#![doc = include_str!("custom_store.rs")]
//! ```
//!
//! Then prove it: `idempotency::testing::conformance!` (feature `testing`) makes one test for each rule.
//! A store that decides inside its server, in SQL or in a script, writes the rules down once more, and the suite
//! tells whether they are the same. Much of it needs two handles on the same records, as two processes have them: what
//! holds because of a lock or a cache of one process holds for nobody else. That the suite notices is tested with a list of
//! broken stores, `tests/conformance/broken` in the repository.

#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) mod bounds;
mod capability;
pub(crate) mod codes;
mod dynamic;
pub mod envelope;
mod error;
mod facets;
mod record;
mod request;
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
pub use dynamic::DynStore;
pub use error::{StoreError, StoreErrorKind};
pub use facets::{ChangeFeed, ChangeListener, Facets, LocalResults, Moment};
pub use record::{CrashPolicy, Reason, Record, State, Token};
pub use request::{
    Abandon, Adoption, Changed, Checkpoint, Claim, Claimed, Commit, Grant, Page, Park, Purged,
    Release, Remove, Renewal, Resolve, ResolveAnswer, Scan, Watch, Written,
};

pub use transaction::SqlTransaction;

use crate::key::KeyHash;

/// A place that keeps records. All operations on one key are linearizable.
///
/// Implementers write `async fn`. There are no default methods: each operation is atomic in the
/// store, and a default made of several would not be.
///
/// Every error of kind [`Unavailable`](StoreErrorKind::Unavailable) is an unknown outcome: the
/// engine repeats the operation with the same token until it knows. All other kinds promise that
/// nothing was applied.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an idempotency store",
    note = "implement `idempotency::store::Store`, or use one of the stores in `idempotency::store`"
)]
pub trait Store: Send + Sync + 'static {
    /// The store's name in errors and metrics: `"memory"`, `"redis"`.
    fn name(&self) -> &'static str;

    /// What the store can do.
    fn capabilities(&self) -> Capabilities;

    /// What the store can do beyond these operations: [`Facets::none`], or what it has of its own.
    /// A store that wraps another one decides which of that one's abilities hold for it.
    fn facets(&self) -> Facets<'_>;

    /// Takes the claim, or says what stands in the way (T1–T6).
    ///
    /// To be correct, decided in one atomic step on the store's time:
    /// - No record, an expired one or [`State::Released`]: the caller owns a new record. `Released`
    ///   keeps `created` and the fence, and counts `attempts` and the fence up. An expired record
    ///   with `after_expiry` is a tombstone for that long.
    /// - In progress with the caller's token: the caller owns it, nothing changes (T4), also when
    ///   the lease is over. The answer tells again from which state the claim was taken over.
    /// - In progress, lease over, and the stricter of the record's and the caller's policy [allows
    ///   takeover](CrashPolicy::allows_takeover): the caller owns it, with the fence and the
    ///   attempts counted up, the stricter policy, the caller's schema version, lease, linger,
    ///   `after_expiry` and trace, and the checkpoint kept (T5). The fingerprint stays, the reason
    ///   is forgotten, `taken_over` tells the state before, and the expiry does not shrink. Not if
    ///   the fingerprints [contradict](crate::Fingerprint::contradicts) each other: they differ in
    ///   version or bits, or only one of the two is there. And not if the stricter policy is verify
    ///   and the caller's is another one: it has no question to ask.
    /// - In progress, lease over, and the stricter policy is hold: the record is parked with
    ///   [`Reason::Crashed`] unless it has a reason (T6), and returned as held.
    /// - In doubt, `lease_until` has passed, the caller's policy is verify and the record's no
    ///   stricter, fingerprints do not contradict, and the record's token is not the caller's: as
    ///   T5 (T5b). A repeated claim of the owner that left the record in doubt would own it for
    ///   nobody.
    /// - Everything else: nothing changes, the record is returned as held.
    /// - `linger` is written on the record; whether an unfinished record is over is judged by that
    ///   figure alone.
    /// - `schema` is written on the record.
    /// - An answer [`Claimed::Mine`] is given to one token at a time.
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Claimed, StoreError>> + Send;

    /// Prolongs leases (T7), all in one round trip where the store can. One answer for each
    /// renewal, in order.
    ///
    /// The engine calls this from a thread of its own with its own Tokio runtime. A store with
    /// connections opens one for renewals there, so that a blocked executor of the user does not
    /// lose its leases.
    ///
    /// To be correct:
    /// - One answer for each, in their order. What keeps one from being renewed must not cost the
    ///   others their leases: a record that is locked is [`Written::Unanswered`], one that cannot
    ///   be read is [`Written::Lost`].
    /// - Only P with this token: `lease_until` becomes now + lease, also when the lease was over.
    ///   Otherwise [`Written::Lost`] or [`Written::Gone`].
    /// - A lease that was given up ([`abandon`](Self::abandon), [`release`](Self::release)) is not
    ///   prolonged: [`Written::Lost`].
    /// - The expiry grows to at least the end of the lease plus the record's linger, and never
    ///   shrinks.
    fn renew(
        &self,
        renewals: Vec<Renewal>,
    ) -> impl Future<Output = Result<Vec<Written>, StoreError>> + Send;

    /// Stores the result (T8, T9).
    ///
    /// To be correct:
    /// - P and X with this token become the commit's state with its body; the expiry is at least
    ///   now + `ttl`. Whether the lease is over does not matter.
    /// - C and F with this token: [`Written::AlreadyApplied`], nothing changes.
    /// - A commit of a state that is no answer changes nothing: [`Written::Lost`].
    /// - No record and no tombstone: with `adopt`, and before it [ends](Adoption::ends), the record
    ///   is written anew ([`Written::Adopted`]), else [`Written::Gone`].
    /// - A tombstone: [`Written::Gone`], also with `adopt`. Everything else: [`Written::Lost`].
    /// - A limit on the store's size never refuses a result: the effect has happened.
    fn complete(&self, commit: Commit) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Gives a claim back (T10).
    ///
    /// To be correct:
    /// - P and X with this token: the record is gone, or [`State::Released`] with its attempts
    ///   where `keep_attempts` is set.
    /// - A record that was taken over stays as it is, because the owner before may have had an
    ///   effect: only its lease is over, as after [`abandon`](Self::abandon), and the reason is
    ///   [`Reason::Crashed`] where there is none.
    /// - With `unused`, the claim is taken off the attempts, once: not where the lease was given up
    ///   before. What is left of them stays on a record that is [`State::Released`]; where nothing
    ///   is left, the record is gone.
    /// - No record or a tombstone: [`Written::Gone`]. R with this token:
    ///   [`Written::AlreadyApplied`]. Everything else: [`Written::Lost`].
    /// - A claim that arrives a second time, after its release, owns a new record, which a second
    ///   release removes.
    fn release(&self, release: Release)
    -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Ends the own lease (T11): the next claim decides by policy at once.
    ///
    /// To be correct:
    /// - Only P with this token, and only where the record's policy allows takeover: the lease is
    ///   over, also on a clock that is set back later, and the reason is written.
    /// - Under the policy hold, and for everything else: [`Written::Lost`] or [`Written::Gone`],
    ///   nothing changes.
    fn abandon(&self, abandon: Abandon)
    -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Makes the record in doubt (T6, T6b).
    ///
    /// To be correct:
    /// - P with this token becomes X with the reason; with `only_orphaned` only if its lease is
    ///   over. `lease_until` becomes now + `ask_again_after`. The checkpoint stays. With
    ///   `only_orphaned` so does a reason that the owner left.
    /// - X with this token: [`Written::AlreadyApplied`], but for one thing: where an observer could
    ///   only say [`Reason::Crashed`], the owner's own reason takes its place
    ///   ([`Written::Applied`]).
    /// - Everything else: [`Written::Lost`] or [`Written::Gone`].
    fn park(&self, park: Park) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Replaces the checkpoint.
    ///
    /// To be correct:
    /// - Only P with this token. `sequence` equal to the record's `checkpoints`: the body is
    ///   replaced, the count grows by one.
    /// - `sequence` one less and the body the same: [`Written::AlreadyApplied`]. Any other
    ///   sequence: [`Written::Lost`].
    /// - Lease and expiry stay.
    fn checkpoint(
        &self,
        checkpoint: Checkpoint,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// The fence of the owner's claim, `None` if the claim is not the token's any more.
    ///
    /// To be correct:
    /// - Only P with this token.
    /// - The same figure for one claim however often it is asked; larger than that of every earlier
    ///   claim of the record for which it was asked, and of the key's records that are gone
    ///   meanwhile. A store may allocate it at the first question, from its clock; one whose clock
    ///   stands still between two claims, or is set back, remembers the largest fence of the
    ///   records that are gone, see [`transition::claim_above`].
    fn fence(
        &self,
        key: KeyHash,
        token: Token,
    ) -> impl Future<Output = Result<Option<u64>, StoreError>> + Send;

    /// The record as it is, tombstones included; `None` when there is none or it has expired.
    ///
    /// To be correct: reads from where claims are decided, never from a replica.
    fn read(&self, key: KeyHash)
    -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Reads the record after registering for its changes.
    ///
    /// To be correct:
    /// - No change of state or owner and no abandoned lease after the read goes unnoticed: the
    ///   watch resolves then, or after a bounded time by itself. The same for the record's expiry.
    /// - A lost connection to the store resolves it.
    fn watch(&self, key: KeyHash) -> impl Future<Output = Result<Watch, StoreError>> + Send;

    /// Answers for an owner that cannot, or corrects such an answer (T12).
    ///
    /// To be correct:
    /// - Only X on which the observed token stands. The new token takes its place and the fence
    ///   grows by one, so that the late owner's commit, release and park are [`Written::Lost`]. The
    ///   reason is [`Reason::Resolved`].
    /// - [`ResolveAnswer::NotExecuted`] removes the record.
    /// - C and F with the reason [`Reason::Resolved`] on which the observed token stands are an
    ///   earlier answer of this kind: another [`ResolveAnswer::Finished`] takes its place in the
    ///   same way. [`ResolveAnswer::NotExecuted`] does not, and no owner's result is ever replaced.
    /// - P whose lease runs: [`Changed::Running`]. No record or a tombstone: [`Changed::Absent`].
    ///   The same answer again (its token stands on the record): [`Changed::Applied`], nothing
    ///   changes. Everything else, also P whose lease is over, which is [parked](Self::park) first:
    ///   [`Changed::Conflict`].
    fn resolve(&self, resolve: Resolve)
    -> impl Future<Output = Result<Changed, StoreError>> + Send;

    /// Removes a record (T14).
    ///
    /// To be correct:
    /// - Only with the observed token. P whose lease runs is [`Changed::Running`] unless forced.
    /// - Leaves a tombstone where asked for; where the owner runs, one stays for at least the rest
    ///   of its lease, so that the owner's commit does not bring the record back.
    /// - The tombstone of a removal has [`Reason::Resolved`], that of an expiry has no reason. Its
    ///   `lease_until` is the end of the lease of the owner that ran, else zero.
    /// - A tombstone is removed as a record is. One whose `lease_until` is to come stands for an
    ///   owner that runs: [`Changed::Running`] unless forced, and then it stays for the rest of
    ///   that lease.
    fn remove(&self, remove: Remove) -> impl Future<Output = Result<Changed, StoreError>> + Send;

    /// Lists records that have not expired, tombstones included.
    ///
    /// To be correct: in the order of the keys, each record that [is asked for](Scan::includes)
    /// once, without its body. A record that cannot be read is named in [`Page::unreadable`], and
    /// keeps no other from being listed.
    fn scan(&self, scan: Scan) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Removes at most `limit` expired records. Stores whose server expires records itself do
    /// nothing.
    ///
    /// To be correct: never takes a record that is P or X before its expiry, and leaves the
    /// tombstones that `after_expiry` asks for.
    fn purge(&self, limit: usize) -> impl Future<Output = Result<Purged, StoreError>> + Send;
}
