//! A call whose claim, effect and record are in the user's own transaction.
//!
//! The claim is a row that no other transaction sees before the commit. Another transaction that
//! claims the same key waits in its own insert until this one has ended, and then replays or
//! becomes the owner. There is no lease, and nothing is in doubt: what is not committed has not
//! happened.
//!
//! Two savepoints frame the call: one before the claim, to which an error of the body rolls back,
//! and one after it, for errors that are stored. A row that is committed without a result (the
//! body's future was dropped, and the transaction was committed all the same) reads as in doubt:
//! its lease had expired from the start.

use std::future::ready;
use std::time::Duration;

use super::Answer;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use super::Row;
use super::change::{Found, Table, change};
use super::store::Rows;
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::lock::Mutex;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use crate::store::Grant;
use crate::store::transaction::{
    AnyConnection, ClaimAnswer, End, TransactionFuture, Transactions, over, savepoint_of,
    transactions,
};
use crate::store::{
    Claim, ClaimOutcome, Commit, DynStore, Operation, Record, Store, StoreError, StoreErrorKind,
    Token, WriteOutcome, transition,
};

const OPERATION: Operation = Operation::Transaction;

/// The identity of the database that a table is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The identity that is written once into the `meta` table.
    written: [u8; 16],
    /// The place of the table: it distinguishes a database from one that was copied from it
    /// together with its `meta` table.
    place: String,
    /// The table in that place that the session finds under the store's name: sessions can find
    /// different ones, by their search path or because of temporary tables.
    table: String,
}

impl Identity {
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when `written` is not an identity.
    pub(crate) fn new(
        operation: Operation,
        written: Vec<u8>,
        place: String,
        table: String,
    ) -> Answer<Self> {
        let unfit = "the `meta` table holds no identity of 16 bytes";
        let written = written.try_into();
        let written = written
            .map_err(|_| StoreError::new(StoreErrorKind::Config, operation).with_detail(unfit))?;
        Ok(Self { written, place, table })
    }

    /// The identity that is written in the `meta` table, the place of the table, and the table there.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn parts(&self) -> (&[u8; 16], &str, &str) {
        (&self.written, &self.place, &self.table)
    }

    /// Returns the error for a transaction in which the table is `found` instead of this one.
    fn differs_from(&self, found: &Self) -> StoreError {
        let is_same_database = (self.written, &self.place) == (found.written, &found.place);
        StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(if is_same_database {
            "the transaction finds another table under the name of the store's, by its \
             `search_path` or because of a temporary table: the record would not be where other \
             calls look for it"
        } else {
            "the transaction belongs to another database than the engine's store: the record would \
             not be where other calls look for it"
        })
    }
}

/// The identity of a store's own database, once it is known.
///
/// Every caller that needs it before it is known queries it itself: if one caller queried it for
/// all, the others would wait for a runtime that may stand still.
#[derive(Debug, Default)]
pub(crate) struct OwnIdentity(Mutex<Option<Identity>>);

impl OwnIdentity {
    pub(crate) fn get(&self) -> Option<Identity> {
        self.0.lock().clone()
    }

    pub(crate) fn set(&self, identity: Identity) {
        *self.0.lock() = Some(identity);
    }
}

/// The connection of the user's transaction.
pub(crate) trait Savepoints: Send {
    /// Runs a statement without arguments, like `SAVEPOINT`.
    fn run(&mut self, statement: String) -> impl Future<Output = Answer<()>> + Send;

    /// Sets a savepoint. Rejects a connection that is not in a transaction.
    fn set_savepoint(&mut self, name: &str) -> impl Future<Output = Answer<()>> + Send {
        self.run(format!("SAVEPOINT {name}"))
    }

    /// Undoes what was written since the savepoint was set, and removes it.
    fn undo(&mut self, name: &str) -> impl Future<Output = Answer<()>> + Send {
        async move {
            self.run(format!("ROLLBACK TO SAVEPOINT {name}")).await?;
            self.release(name).await
        }
    }

    /// Removes the savepoint. What was written since stays.
    fn release(&mut self, name: &str) -> impl Future<Output = Answer<()>> + Send {
        self.run(format!("RELEASE SAVEPOINT {name}"))
    }

    /// Returns true if `error` says that there is no such savepoint, or no transaction in which one
    /// could be.
    fn is_gone(error: &StoreError) -> bool;
}

/// A table on the connection of the user's transaction.
pub(crate) trait Transactional: Table {
    type Connection: Savepoints;

    /// Returns the connection.
    fn connection(&mut self) -> &mut Self::Connection;

    /// Bounds the time to wait for locks of others by `patience`, and then reads which database the
    /// table is in and the record of `key`. Where an error breaks the transaction, `savepoint` is
    /// set before all that.
    fn look(
        &mut self,
        savepoint: &str,
        key: KeyHash,
        patience: Duration,
    ) -> impl Future<Output = Answer<(Identity, Found)>> + Send;

    /// Sets `savepoint`, if [`look`](Self::look) has not set it: something is about to be written.
    fn set_out(&mut self, savepoint: &str) -> impl Future<Output = Answer<()>> + Send;

    /// Completes a claim that is written: restores the lock waits from before [`look`](Self::look),
    /// and sets the savepoint of the body. Returns the claim's fence, which may have been raised.
    fn settle(
        &mut self,
        savepoint: &str,
        claimed: &Record,
    ) -> impl Future<Output = Answer<u64>> + Send;

    /// Undoes everything since [`look`](Self::look): nothing is claimed.
    fn leave(&mut self, savepoint: &str) -> impl Future<Output = Answer<()>> + Send;

    /// Returns `Ok` if `error`, after which the transaction was [left](Self::leave), only says that
    /// another transaction has held the key for longer than the bound. Otherwise returns the error
    /// for the caller.
    fn has_outwaited(&mut self, error: StoreError) -> impl Future<Output = Answer<()>> + Send;

    /// Returns true if the transaction may lock others out of the row of the key until it ends,
    /// although nothing is claimed.
    fn keeps_lock(&self) -> bool {
        false
    }

    /// Returns true if `error` says that others have the lock of the row or the file.
    fn is_locked_out(error: &StoreError) -> bool;

    /// Stores the result on the owner's own unfinished record; returns false if that is not there.
    fn commit_own(&mut self, commit: &Commit) -> impl Future<Output = Answer<bool>> + Send;
}

/// See [`TransactionConnection::begin`](crate::store::transaction::TransactionConnection::begin).
async fn begin<S: TransactionStore>(
    table: &mut S::OpenTable<'_>,
    store: &S,
    claim: &Claim,
    patience: Duration,
) -> Answer<ClaimAnswer> {
    let expected = store.identity().await?;
    let savepoint = savepoint_of(claim.token);
    match claim_row(table, store, claim, patience, &savepoint, expected).await {
        Ok((ClaimOutcome::Granted(mut grant), _)) => {
            match table.settle(&savepoint, &grant.record).await {
                Ok(fence) => grant.record.fence = fence,
                Err(error) => {
                    // A claim that is left behind would be in doubt if the caller commits.
                    let _ = table.leave(&savepoint).await;
                    return Err(error);
                }
            }
            store.fences().granted(grant.record.fence);
            Ok(ClaimAnswer {
                claimed: Some(ClaimOutcome::Granted(grant)),
                has_waited: false,
                keeps_lock: false,
            })
        }
        Ok((held, has_waited)) => {
            table.leave(&savepoint).await?;
            Ok(ClaimAnswer { claimed: Some(held), has_waited, keeps_lock: table.keeps_lock() })
        }
        Err(error) => {
            // A transaction that cannot be undone is broken: that is an error, not an answer.
            if table.leave(&savepoint).await.is_err() {
                return Err(error);
            }
            table.has_outwaited(error).await?;
            Ok(ClaimAnswer { claimed: None, has_waited: true, keeps_lock: false })
        }
    }
}

/// Writes the claim, or returns the record that is there, and whether the claim waited for it.
async fn claim_row<S: TransactionStore>(
    table: &mut S::OpenTable<'_>,
    store: &S,
    claim: &Claim,
    patience: Duration,
    savepoint: &str,
    expected: Identity,
) -> Answer<(ClaimOutcome, bool)> {
    let (identity, found) = table.look(savepoint, claim.key, patience).await?;
    if identity != expected {
        // The database may have moved, or the table been created again: another server may have
        // taken the place of the store's since its identity was read.
        let own = store.own_identity().await?;
        if identity != own {
            return Err(own.differs_from(&identity));
        }
    }
    let decide = |slot: &mut Option<Record>, now: Timestamp| store.fences().claim(slot, claim, now);
    let before = found.stored.as_ref().map(|stored| &stored.record);
    let mut slot = before.cloned();
    let first = decide(&mut slot, found.now);
    if slot.as_ref() == before {
        return Ok((first, false));
    }
    table.set_out(savepoint).await?;
    let claimed = change(table, OPERATION, claim.key, Some(found), Some(claim.ttl), decide).await?;
    // The read did not show the record: its transaction was committed after the read, and the write
    // waited for it.
    let has_waited =
        matches!((first, &claimed), (ClaimOutcome::Granted(_), ClaimOutcome::Existing(_)));
    Ok((claimed, has_waited))
}

/// See [`TransactionConnection::end`](crate::store::transaction::TransactionConnection::end).
async fn end<T: Transactional>(table: &mut T, token: Token, end: End) -> Answer<bool> {
    ended(table, token, end).await.map_err(over_if_gone::<T::Connection>)
}

fn over_if_gone<C: Savepoints>(error: StoreError) -> StoreError {
    if C::is_gone(&error) { over(error) } else { error }
}

async fn ended<T: Transactional>(table: &mut T, token: Token, end: End) -> Answer<bool> {
    let savepoint = savepoint_of(token);
    let kept = match end {
        End::Undo => {
            table.connection().undo(&savepoint).await?;
            return Ok(true);
        }
        End::Keep(commit) => match table.commit_own(&commit).await {
            // No other transaction can lock a transaction out of its own claim. So this one may
            // have ended, and another owns the row now. Rolling back to the savepoint shows which:
            // it fails if the savepoint is gone.
            Err(error) if T::is_locked_out(&error) => {
                table.connection().undo(&savepoint).await?;
                return Err(error);
            }
            kept => kept?,
        },
        End::KeepError(commit) => {
            table.connection().run(format!("ROLLBACK TO SAVEPOINT {savepoint}_body")).await?;
            table.commit_own(&commit).await?
        }
        End::Hold(park) => {
            table.connection().run(format!("ROLLBACK TO SAVEPOINT {savepoint}_body")).await?;
            let parked = change(table, OPERATION, park.key, None, None, |slot, now| {
                prolong(slot, park.token, now);
                transition::park(slot, &park, now)
            })
            .await?;
            parked == WriteOutcome::Applied
        }
    };
    table.connection().release(&savepoint).await?;
    Ok(kept)
}

/// Extends the owner's record to as long from `now` as it was kept from its claim: nothing has
/// renewed it while the body ran.
fn prolong(slot: &mut Option<Record>, owner: Token, now: Timestamp) {
    if let Some(record) = slot.as_mut().filter(|record| record.owner == owner) {
        record.expires = record.expires.max(now + record.linger);
    }
}

/// A store whose records can be kept in the user's transactions.
pub(crate) trait TransactionStore: Store + Rows {
    type Connection: Send + 'static;
    type OpenTable<'a>: Transactional;

    /// Returns the store's table on a connection of the user.
    fn table_on<'a>(&'a self, connection: &'a mut Self::Connection) -> Self::OpenTable<'a>;

    /// The identity of the store's own database, once it is known.
    fn known_identity(&self) -> &OwnIdentity;

    /// Queries it and keeps it.
    fn own_identity(&self) -> impl Future<Output = Answer<Identity>> + Send;

    /// Returns the identity of the store's own database.
    fn identity(&self) -> impl Future<Output = Answer<Identity>> + Send {
        async {
            match self.known_identity().get() {
                Some(known) => Ok(known),
                None => self.own_identity().await,
            }
        }
    }

    /// Writes the record of a first claim with its result, in fewer statements than `begin` and
    /// `end`. See [`Transactions::record_first`].
    fn record_first(
        &self,
        connection: &mut Self::Connection,
        claim: &Claim,
        result: &Commit,
        patience: Duration,
    ) -> impl Future<Output = Answer<Option<ClaimAnswer>>> + Send {
        let _ = (connection, claim, result, patience);
        ready(Ok(None))
    }
}

/// Returns the grant of a first claim at time zero, and the row of its record with its result. The
/// database adds its time. `None` if the two do not belong together.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) fn first_row(claim: &Claim, result: &Commit) -> Option<(Grant, Row)> {
    let (zero, mut slot) = (Timestamp::default(), None);
    let ClaimOutcome::Granted(grant) = transition::claim(&mut slot, claim, zero) else {
        return None;
    };
    let written = transition::complete(&mut slot, result, zero);
    let record = slot.filter(|_| written == WriteOutcome::Applied)?;
    Some((grant, Row::new(&record, 0, None, None)))
}

/// Returns the answer to a first claim whose row the database has written at `created`.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) fn first_grant(mut grant: Grant, created: Timestamp, fence: u64) -> ClaimAnswer {
    let record = &mut grant.record;
    (record.created, record.read_at, record.fence) = (created, created, fence);
    (record.lease_until, record.expires) = (created, created + record.linger);
    ClaimAnswer::new(Some(ClaimOutcome::Granted(grant)), false)
}

impl<S: TransactionStore> Transactions for S {
    fn begin<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer> {
        Box::pin(async move {
            let connection = connection.downcast::<S::Connection>(self.name())?;
            begin(&mut self.table_on(connection), self, claim, patience).await
        })
    }

    fn record_first<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        result: &'a Commit,
        patience: Duration,
    ) -> TransactionFuture<'a, Option<ClaimAnswer>> {
        Box::pin(async move {
            let connection = connection.downcast::<S::Connection>(self.name())?;
            TransactionStore::record_first(self, connection, claim, result, patience).await
        })
    }

    fn end<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        token: Token,
        ending: End,
    ) -> TransactionFuture<'a, bool> {
        Box::pin(async move {
            let connection = connection.downcast::<S::Connection>(self.name())?;
            end(&mut self.table_on(connection), token, ending).await
        })
    }
}

/// Gives `connection` to the store's [`Transactions::begin`].
pub(crate) fn begin_on<'a>(
    connection: AnyConnection<'a>,
    store: &'a dyn DynStore,
    claim: &'a Claim,
    patience: Duration,
) -> TransactionFuture<'a, ClaimAnswer> {
    match transactions(store, connection.database()) {
        Ok(transactions) => transactions.begin(connection, claim, patience),
        Err(error) => Box::pin(ready(Err(error))),
    }
}

/// Gives `connection` to the store's [`Transactions::record_first`].
pub(crate) fn record_first_on<'a>(
    connection: AnyConnection<'a>,
    store: &'a dyn DynStore,
    claim: &'a Claim,
    result: &'a Commit,
    patience: Duration,
) -> TransactionFuture<'a, Option<ClaimAnswer>> {
    match transactions(store, connection.database()) {
        Ok(transactions) => transactions.record_first(connection, claim, result, patience),
        Err(error) => Box::pin(ready(Err(error))),
    }
}

/// Gives `connection` to the store's [`Transactions::end`].
pub(crate) fn end_on<'a>(
    connection: AnyConnection<'a>,
    store: &'a dyn DynStore,
    token: Token,
    ending: End,
) -> TransactionFuture<'a, bool> {
    match transactions(store, connection.database()) {
        Ok(transactions) => transactions.end(connection, token, ending),
        Err(error) => Box::pin(ready(Err(error))),
    }
}

/// [`TransactionConnection::set_savepoint`](crate::store::transaction::TransactionConnection::set_savepoint).
pub(crate) fn set_savepoint_on<'a>(
    connection: &'a mut impl Savepoints,
    name: &'a str,
) -> TransactionFuture<'a, ()> {
    Box::pin(connection.set_savepoint(name))
}

/// [`TransactionConnection::end_savepoint`](crate::store::transaction::TransactionConnection::end_savepoint).
pub(crate) fn end_savepoint_on<'a, C: Savepoints>(
    connection: &'a mut C,
    name: &'a str,
    undoes: bool,
) -> TransactionFuture<'a, ()> {
    Box::pin(async move {
        let ended =
            if undoes { connection.undo(name).await } else { connection.release(name).await };
        ended.map_err(over_if_gone::<C>)
    })
}
