//! A call whose claim, effect and record are in the user's own transaction.
//!
//! The claim is a row that nobody else sees before the commit. Another transaction that claims the same key waits in its
//! own insert until this one is over, and then replays or becomes the owner. There is no lease, and nothing is in doubt:
//! what is not committed has not happened.
//!
//! Two savepoints frame the call: one before the claim, to which an error of the body rolls back, and one after it, for
//! errors that are stored. A row that is committed without a result (the body's future was dropped, and the transaction
//! committed all the same) reads as in doubt: its lease was over from the start.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Answer;
use super::change::{Found, Table, change};
use super::fences::Fences;
use super::store::Rows;
use crate::clock::Timestamp;
use crate::store::transaction::{End, Kept};
use crate::store::{
    Claim, Claimed, Commit, DynStore, Record, Store, StoreError, StoreErrorKind, Token, Written, find, transition,
};

const OPERATION: &str = "claim in a transaction";

/// Which database a table is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Written once into the `meta` table.
    written: [u8; 16],
    /// Where the table is: it tells a database from one that was copied from it with all that is written there.
    place: String,
}

impl Identity {
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when what is written is no identity.
    pub(crate) fn new(operation: &'static str, written: Vec<u8>, place: String) -> Answer<Self> {
        let unfit = "the `meta` table holds no identity of 16 bytes";
        let written = written.try_into();
        let written = written.map_err(|_| StoreError::new(StoreErrorKind::Config, operation).with_detail(unfit))?;
        Ok(Self { written, place })
    }
}

/// The identity of a store's own database, once it was asked for.
///
/// Everybody who needs it before it is known asks for it: of one who asks for all, the others would wait for a runtime that
/// stands still meanwhile.
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

/// A table on the connection of the user's transaction.
pub(crate) trait Transactional: Table {
    /// Whether also a read can wait for a lock of others.
    const READS_WAIT: bool = false;

    /// The identity of the database in which the table is.
    fn identity(&mut self) -> impl Future<Output = Answer<Identity>> + Send;

    /// Runs a statement without arguments, like `SAVEPOINT`.
    fn run(&mut self, statement: String) -> impl Future<Output = Answer<()>> + Send;

    /// Sets a savepoint.
    fn set_savepoint(&mut self, name: &str) -> impl Future<Output = Answer<()>> + Send {
        self.run(format!("SAVEPOINT {name}"))
    }

    /// From now on the transaction waits for locks of others for `patience` at most.
    fn bound_waits(&mut self, patience: Duration) -> impl Future<Output = Answer<()>> + Send;

    /// Waits are bounded as they were before [`bound_waits`](Self::bound_waits).
    fn restore_waits(&mut self) -> impl Future<Output = Answer<()>> + Send;

    /// Whether `error` says that a wait was longer than its bound.
    fn is_out_of_patience(error: &StoreError) -> bool;

    /// Stores the result on the owner's own unfinished record; false if it is not there.
    fn commit_own(&mut self, commit: &Commit) -> impl Future<Output = Answer<bool>> + Send;
}

/// See [`Keep::begin`](crate::store::transaction::Keep::begin).
async fn begin<S: TransactionStore>(
    table: &mut S::OpenTable<'_>,
    store: &S,
    claim: &Claim,
    patience: Duration,
) -> Answer<Option<Claimed>> {
    let expected = match store.known_identity().get() {
        Some(known) => known,
        None => store.own_identity().await?,
    };
    let found = table.identity().await?;
    // Another server may have taken the place of the store's since, where the same database is found elsewhere.
    if found != expected && found != store.own_identity().await? {
        return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(
            "the transaction is one of another database than the engine's store: the record would not be where other \
             calls look for it",
        ));
    }
    if !S::OpenTable::READS_WAIT {
        return claim_row(table, store.fences(), claim, Some(patience)).await;
    }
    table.bound_waits(patience).await?;
    let claimed = claim_row(table, store.fences(), claim, None).await;
    let restored = table.restore_waits().await;
    claimed.and_then(|claimed| restored.map(|()| claimed))
}

/// Writes the claim, or tells what is there; `None` if the row is somebody else's for too long. `patience` is that of the
/// writes, where waits are not bounded yet.
async fn claim_row<T: Transactional>(
    table: &mut T,
    fences: &Fences,
    claim: &Claim,
    patience: Option<Duration>,
) -> Answer<Option<Claimed>> {
    let decide = |slot: &mut Option<Record>, now: Timestamp| fences.claim(slot, claim, now);
    let savepoint = savepoint(claim.token);
    let found = match table.read(OPERATION, claim.key).await {
        Err(error) if T::READS_WAIT && T::is_out_of_patience(&error) => {
            // A server can be told to undo the whole transaction then.
            let is_whole = table.set_savepoint(&savepoint).await.is_ok() && undo(table, &savepoint).await.is_ok();
            return if is_whole { Ok(None) } else { Err(error) };
        }
        found => found?,
    };
    if let Some(claimed) = unchanged(&found, decide) {
        return Ok(Some(claimed));
    }
    table.set_savepoint(&savepoint).await?;
    if let Some(patience) = patience {
        table.bound_waits(patience).await?;
    }
    let changed = change(table, OPERATION, claim.key, Some(found), Some(claim.ttl), decide).await;
    let undone = if changed.is_err() { undo(table, &savepoint).await } else { Ok(()) };
    // Also after an error: not everywhere does a savepoint bring the bound back.
    let restored = if patience.is_some() { table.restore_waits().await } else { Ok(()) };
    match changed {
        Ok(claimed) => {
            restored?;
            let next = match &claimed {
                Claimed::Mine(_) => format!("SAVEPOINT {savepoint}_body"),
                Claimed::Held(_) => format!("RELEASE SAVEPOINT {savepoint}"),
            };
            table.run(next).await?;
            Ok(Some(claimed))
        }
        Err(error) if T::is_out_of_patience(&error) && undone.is_ok() && restored.is_ok() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The answer to a claim that needs no write.
fn unchanged(found: &Found, decide: impl FnOnce(&mut Option<Record>, Timestamp) -> Claimed) -> Option<Claimed> {
    let before = found.stored.as_ref().map(|stored| &stored.record);
    let mut slot = before.cloned();
    let claimed = decide(&mut slot, found.now);
    (slot.as_ref() == before).then_some(claimed)
}

/// See [`Keep::end`](crate::store::transaction::Keep::end).
async fn end(table: &mut impl Transactional, token: Token, end: End) -> Answer<bool> {
    let savepoint = savepoint(token);
    let kept = match end {
        End::Undo => {
            undo(table, &savepoint).await?;
            return Ok(true);
        }
        End::Keep(commit) => table.commit_own(&commit).await?,
        End::KeepError(commit) => {
            table.run(format!("ROLLBACK TO SAVEPOINT {savepoint}_body")).await?;
            table.commit_own(&commit).await?
        }
        End::Hold(park) => {
            table.run(format!("ROLLBACK TO SAVEPOINT {savepoint}_body")).await?;
            let parked =
                change(table, OPERATION, park.key, None, None, |slot, now| transition::park(slot, &park, now)).await?;
            parked == Written::Applied
        }
    };
    table.run(format!("RELEASE SAVEPOINT {savepoint}")).await?;
    Ok(kept)
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
) -> Kept<'a, Option<Claimed>> {
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
    Box::pin(async move { end(&mut store_of::<S>(store)?.table_on(connection), token, ending).await })
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

async fn undo(table: &mut impl Transactional, savepoint: &str) -> Answer<()> {
    table.run(format!("ROLLBACK TO SAVEPOINT {savepoint}")).await?;
    table.run(format!("RELEASE SAVEPOINT {savepoint}")).await
}

/// A name of its own for each call: calls can be nested in one transaction, and MySQL replaces a savepoint by a later
/// one of the same name.
fn savepoint(token: Token) -> String {
    format!("idempotency_{:016x}", token.bits() >> 64)
}
