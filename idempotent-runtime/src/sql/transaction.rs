//! A call whose claim, effect and record are in the user's own transaction.
//!
//! The claim is a row that nobody else sees before the commit. Another transaction that claims the
//! same key waits in its own insert until this one is over, and then replays or becomes the owner.
//! There is no lease, and nothing is in doubt: what is not committed has not happened.
//!
//! Two savepoints frame the call: one before the claim, to which an error of the body rolls back,
//! and one after it, for errors that are stored. A row that is committed without a result (the
//! body's future was dropped, and the transaction committed all the same) reads as in doubt: its
//! lease was over from the start.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Answer;
use super::change::{Found, Table, change};
use super::store::Rows;
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::transaction::{End, Kept, Taken, over, savepoint_of};
use crate::store::{
    Claim, Claimed, Commit, DynStore, Record, Store, StoreError, StoreErrorKind, Token, Written,
    find, transition,
};

const OPERATION: &str = "claim in a transaction";

/// Which database a table is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Written once into the `meta` table.
    written: [u8; 16],
    /// Where the table is: it tells a database from one that was copied from it with all that is
    /// written there.
    place: String,
}

impl Identity {
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when what is written is no identity.
    pub(crate) fn new(operation: &'static str, written: Vec<u8>, place: String) -> Answer<Self> {
        let unfit = "the `meta` table holds no identity of 16 bytes";
        let written = written.try_into();
        let written = written
            .map_err(|_| StoreError::new(StoreErrorKind::Config, operation).with_detail(unfit))?;
        Ok(Self { written, place })
    }
}

/// The identity of a store's own database, once it was asked for.
///
/// Everybody who needs it before it is known asks for it: of one who asks for all, the others would
/// wait for a runtime that stands still meanwhile.
#[derive(Debug, Default)]
pub(crate) struct OwnIdentity(Mutex<Option<Identity>>);

impl OwnIdentity {
    pub(crate) fn get(&self) -> Option<Identity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, identity: Identity) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity);
    }
}

/// The connection of the user's transaction.
pub(crate) trait Savepoints: Send {
    /// Runs a statement without arguments, like `SAVEPOINT`.
    fn run(&mut self, statement: String) -> impl Future<Output = Answer<()>> + Send;

    /// Sets a savepoint. A connection in no transaction is refused.
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

    /// Whether `error` says that there is no such savepoint, or no transaction in which one could
    /// be.
    fn is_gone(error: &StoreError) -> bool;
}

/// A table on the connection of the user's transaction.
pub(crate) trait Transactional: Table {
    type Connection: Savepoints;

    /// The connection.
    fn connection(&mut self) -> &mut Self::Connection;

    /// Bounds how long locks of others are waited for by `patience`, and reads then: which database
    /// the table is in, and what it has of `key`. Where an error breaks the transaction,
    /// `savepoint` is set before all that.
    fn look(
        &mut self,
        savepoint: &str,
        key: KeyHash,
        patience: Duration,
    ) -> impl Future<Output = Answer<(Identity, Found)>> + Send;

    /// Sets `savepoint`, if that was not done by [`look`](Self::look): something is to be written.
    fn set_out(&mut self, savepoint: &str) -> impl Future<Output = Answer<()>> + Send;

    /// The claim is written: locks are waited for as before [`look`](Self::look), and the savepoint
    /// of the body is set. Returns the claim's fence, which may have been raised.
    fn settle(
        &mut self,
        savepoint: &str,
        claimed: &Record,
    ) -> impl Future<Output = Answer<u64>> + Send;

    /// Undoes everything since [`look`](Self::look): nothing is claimed.
    fn leave(&mut self, savepoint: &str) -> impl Future<Output = Answer<()>> + Send;

    /// Whether `error`, after which the transaction was [left](Self::leave), only says that another
    /// transaction has held the key for longer than the bound. If not, what the caller is told.
    fn has_outwaited(&mut self, error: StoreError) -> impl Future<Output = Answer<()>> + Send;

    /// Whether the transaction may keep others from the row of the key until it is over, although
    /// nothing is claimed.
    fn keeps_lock(&self) -> bool {
        false
    }

    /// Whether `error` says that others have the lock of the row or the file.
    fn is_locked_out(error: &StoreError) -> bool;

    /// Stores the result on the owner's own unfinished record; false if it is not there.
    fn commit_own(&mut self, commit: &Commit) -> impl Future<Output = Answer<bool>> + Send;
}

/// See [`Keep::begin`](crate::store::transaction::Keep::begin).
async fn begin<S: TransactionStore>(
    table: &mut S::OpenTable<'_>,
    store: &S,
    claim: &Claim,
    patience: Duration,
) -> Answer<Taken> {
    let expected = match store.known_identity().get() {
        Some(known) => known,
        None => store.own_identity().await?,
    };
    let savepoint = savepoint_of(claim.token);
    match claim_row(table, store, claim, patience, &savepoint, expected).await {
        Ok((Claimed::Mine(mut grant), _)) => {
            match table.settle(&savepoint, &grant.record).await {
                Ok(fence) => grant.record.fence = fence,
                Err(error) => {
                    // A claim that is left behind would be in doubt if the caller commits.
                    let _ = table.leave(&savepoint).await;
                    return Err(error);
                }
            }
            store.fences().granted(grant.record.fence);
            Ok(Taken { claimed: Some(Claimed::Mine(grant)), has_waited: false, keeps_lock: false })
        }
        Ok((held, has_waited)) => {
            table.leave(&savepoint).await?;
            Ok(Taken { claimed: Some(held), has_waited, keeps_lock: table.keeps_lock() })
        }
        Err(error) => {
            // What cannot be undone is broken, and no answer.
            if table.leave(&savepoint).await.is_err() {
                return Err(error);
            }
            table.has_outwaited(error).await?;
            Ok(Taken { claimed: None, has_waited: true, keeps_lock: false })
        }
    }
}

/// Writes the claim, or tells what is there, and whether that was waited for.
async fn claim_row<S: TransactionStore>(
    table: &mut S::OpenTable<'_>,
    store: &S,
    claim: &Claim,
    patience: Duration,
    savepoint: &str,
    expected: Identity,
) -> Answer<(Claimed, bool)> {
    let (identity, found) = table.look(savepoint, claim.key, patience).await?;
    // Another server may have taken the place of the store's since, where the same database is
    // found elsewhere.
    if identity != expected && identity != store.own_identity().await? {
        return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(
            "the transaction is one of another database than the engine's store: the record would not be where other \
             calls look for it",
        ));
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
    // The read did not show it: its transaction was committed after that, and the write waited for
    // it.
    let has_waited = matches!((first, &claimed), (Claimed::Mine(_), Claimed::Held(_)));
    Ok((claimed, has_waited))
}

/// See [`Keep::end`](crate::store::transaction::Keep::end).
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
            // Nobody keeps a transaction from its own claim: this one may be no more, and others
            // have what was its own. The savepoint tells.
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
            parked == Written::Applied
        }
    };
    table.connection().release(&savepoint).await?;
    Ok(kept)
}

/// Keeps the owner's record for as long from `now` on as from its claim: nothing has renewed it
/// while the body ran.
fn prolong(slot: &mut Option<Record>, owner: Token, now: Timestamp) {
    if let Some(record) = slot.as_mut().filter(|record| record.owner == owner) {
        record.expires = record.expires.max(now + Duration::from_millis(record.linger));
    }
}

/// A store whose records can be kept in transactions of the user's.
pub(crate) trait TransactionStore: Store + Rows {
    /// What people call its database.
    const DATABASE: &'static str;

    type Connection: Send;
    type OpenTable<'a>: Transactional;

    /// The store's table on a connection of the user's.
    fn table_on<'a>(&'a self, connection: &'a mut Self::Connection) -> Self::OpenTable<'a>;

    /// The identity of the store's own database, once it was asked for.
    fn known_identity(&self) -> &OwnIdentity;

    /// Asks for it, and keeps it.
    fn own_identity(&self) -> impl Future<Output = Answer<Identity>> + Send;
}

/// [`Keep::begin`](crate::store::transaction::Keep::begin) on a connection of `S`'s database.
pub(crate) fn begin_on<'a, S: TransactionStore>(
    connection: &'a mut S::Connection,
    store: &'a dyn DynStore,
    claim: &'a Claim,
    patience: Duration,
) -> Kept<'a, Taken> {
    Box::pin(async move {
        let store = store_of::<S>(store)?;
        begin(&mut store.table_on(connection), store, claim, patience).await
    })
}

/// [`Keep::end`](crate::store::transaction::Keep::end) on a connection of `S`'s database.
pub(crate) fn end_on<'a, S: TransactionStore>(
    connection: &'a mut S::Connection,
    store: &'a dyn DynStore,
    token: Token,
    ending: End,
) -> Kept<'a, bool> {
    Box::pin(
        async move { end(&mut store_of::<S>(store)?.table_on(connection), token, ending).await },
    )
}

fn store_of<S: TransactionStore>(store: &dyn DynStore) -> Answer<&S> {
    find::<S>(store).ok_or_else(|| {
        StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(format!(
            "the transaction is one of {} and the engine's store is `{}`: record and effect would not be in one database",
            S::DATABASE,
            store.name()
        ))
    })
}

/// [`Keep::set_savepoint`](crate::store::transaction::Keep::set_savepoint).
pub(crate) fn set_savepoint_on<'a>(
    connection: &'a mut impl Savepoints,
    name: &'a str,
) -> Kept<'a, ()> {
    Box::pin(connection.set_savepoint(name))
}

/// [`Keep::end_savepoint`](crate::store::transaction::Keep::end_savepoint).
pub(crate) fn end_savepoint_on<'a, C: Savepoints>(
    connection: &'a mut C,
    name: &'a str,
    undoes: bool,
) -> Kept<'a, ()> {
    Box::pin(async move {
        let ended =
            if undoes { connection.undo(name).await } else { connection.release(name).await };
        ended.map_err(over_if_gone::<C>)
    })
}
