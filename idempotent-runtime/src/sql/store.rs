//! The operations of [`Store`](crate::store::Store), composed of the primitives of each SQL store.

use std::sync::Arc;
use std::time::Duration;

use super::census::{Counted, Stride};
use super::change::{Found, Table, change};
use super::fences::Fences;
use super::row::Listed;
use super::stretch::Stretch;
use super::watchers::Watchers;
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::runtime::while_runtime_lives;
use crate::store::{
    Abandon, AdminOutcome, Checkpoint, Claim, ClaimOutcome, Commit, Grant, Operation, Page, Park,
    Record, Release, Remove, Resolve, Scan, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
    transition,
};

/// The number of times that a first claim is sent because another claim was faster, and its record
/// was gone when it was read.
const ATTEMPTS: usize = 100;

/// The outcome of the one statement of a first claim.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, reason = "only PostgreSQL claims in the statement that reads")
)]
pub(crate) enum First {
    /// There was no row: the statement wrote this one.
    Mine(Record),
    /// The record that is there; nothing was written.
    Found(Found),
    /// Another claim was faster, and its row was not visible yet.
    Raced,
}

/// The primitives that an SQL store provides.
pub(crate) trait Rows: Send + Sync + 'static {
    /// A connection for several statements on one row.
    type Table: Table;

    /// A connection that writes.
    fn table(
        &self,
        operation: Operation,
    ) -> impl Future<Output = Result<Self::Table, StoreError>> + Send;

    /// Returns the connection to its pool if it can be used again after `failure`, the error of the
    /// last request on it.
    fn end(
        &self,
        table: Self::Table,
        failure: Option<&StoreError>,
    ) -> impl Future<Output = ()> + Send;

    /// The time that a request may take.
    fn response_timeout(&self) -> Duration;

    fn watchers(&self) -> &Arc<Watchers>;

    /// Reads the row of `key` and the store's time, in one statement.
    fn row(
        &self,
        operation: Operation,
        key: KeyHash,
    ) -> impl Future<Output = Result<Found, StoreError>> + Send;

    /// Writes the row of a first claim if there is none, or returns what is there. One statement
    /// where the dialect has one for that.
    fn first_claim(&self, claim: &Claim) -> impl Future<Output = Result<First, StoreError>> + Send {
        async { self.row(Operation::Claim, claim.key).await.map(First::Found) }
    }

    fn fences(&self) -> &Fences;

    /// Stores the result on the owner's own unfinished record, in one statement; returns false and
    /// changes nothing if that is not there.
    fn commit_own(&self, commit: &Commit) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Lists the records of a stretch that `scan` may include, in the order of the keys, expired ones
    /// and those of another format included, without their bodies. The last row of the stretch is
    /// returned in any case.
    fn page(
        &self,
        scan: &Scan,
        stretch: &Stretch,
    ) -> impl Future<Output = Result<Vec<Listed>, StoreError>> + Send;

    /// Counts the rows of one step after the key `after`.
    fn count(
        &self,
        after: &[u8],
        stride: Stride,
    ) -> impl Future<Output = Result<Vec<Counted>, StoreError>> + Send;

    /// Removes the owner's own unfinished record, in one statement; returns false and changes
    /// nothing if that is not there.
    fn release_own(
        &self,
        release: &Release,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// Waits for an answer from the server for at most `limit`.
///
/// If the runtime in which the request was sent ends, its answer will not arrive: another try on
/// another runtime settles it.
#[expect(
    clippy::disallowed_methods,
    reason = "the patience with a server is real time, whatever clock records have"
)]
pub(crate) async fn in_time<A>(
    operation: Operation,
    limit: Duration,
    request: impl Future<Output = Result<A, StoreError>>,
) -> Result<A, StoreError> {
    let unknown = |detail: String| {
        Err(StoreError::new(StoreErrorKind::Unavailable, operation).with_detail(detail))
    };
    match while_runtime_lives(tokio::time::timeout(limit, request)).await {
        Some(Ok(answer)) => answer,
        Some(Err(_)) => unknown(format!(
            "no answer within {limit:?}; whether the request took effect is not known"
        )),
        None => unknown(String::from("the runtime in which the request was sent has ended")),
    }
}

/// Returns true if the connection can be used again after `result`.
#[cfg(feature = "sqlite")]
pub(crate) fn is_answered<A>(result: &Result<A, StoreError>) -> bool {
    is_settled(result.as_ref().err())
}

/// Returns true unless `failure` leaves the outcome of the request unknown.
pub(crate) fn is_settled(failure: Option<&StoreError>) -> bool {
    failure.is_none_or(|failure| !failure.is_outcome_unknown())
}

/// Decides on what was found, and leases a connection only if something has to be written.
async fn change_row<A>(
    rows: &impl Rows,
    operation: Operation,
    found: Found,
    key: KeyHash,
    retention: Option<Duration>,
    mut transition: impl FnMut(&mut Option<Record>, Timestamp) -> A + Send,
) -> Result<A, StoreError> {
    if let Some(answer) = without_change(&found, &mut transition) {
        return Ok(answer);
    }
    // Boxed: several kilobytes, and most requests write nothing.
    Box::pin(write_row(rows, operation, found, key, retention, transition)).await
}

/// Returns the answer of a decision that changes nothing. In a function of its own: what it clones
/// would otherwise be a part of the future of every request.
fn without_change<A>(
    found: &Found,
    transition: &mut impl FnMut(&mut Option<Record>, Timestamp) -> A,
) -> Option<A> {
    let before = found.stored.as_ref().map(|stored| &stored.record);
    let mut slot = before.cloned();
    let answer = transition(&mut slot, found.now);
    (slot.as_ref() == before).then_some(answer)
}

/// Leases a connection, decides on what was found, and writes the decision.
async fn write_row<A>(
    rows: &impl Rows,
    operation: Operation,
    found: Found,
    key: KeyHash,
    retention: Option<Duration>,
    transition: impl FnMut(&mut Option<Record>, Timestamp) -> A + Send,
) -> Result<A, StoreError> {
    let mut table = rows.table(operation).await?;
    let changing = change(&mut table, operation, key, Some(found), retention, transition);
    let result = in_time(operation, rows.response_timeout(), changing).await;
    rows.end(table, result.as_ref().err()).await;
    result
}

/// Reads the row and decides on it.
async fn read_and_change<A>(
    rows: &impl Rows,
    operation: Operation,
    key: KeyHash,
    transition: impl FnMut(&mut Option<Record>, Timestamp) -> A + Send,
) -> Result<A, StoreError> {
    let found = rows.row(operation, key).await?;
    let answer = change_row(rows, operation, found, key, None, transition).await?;
    rows.watchers().changed(&key);
    Ok(answer)
}

pub(crate) async fn claim(rows: &impl Rows, claim: Claim) -> Result<ClaimOutcome, StoreError> {
    for _ in 0..ATTEMPTS {
        match rows.first_claim(&claim).await? {
            First::Mine(record) => {
                rows.fences().granted(record.fence);
                return Ok(ClaimOutcome::Granted(Grant::new(record)));
            }
            First::Found(found) => {
                let decide =
                    |slot: &mut Option<Record>, now| rows.fences().claim(slot, &claim, now);
                return change_row(
                    rows,
                    Operation::Claim,
                    found,
                    claim.key,
                    Some(claim.ttl),
                    decide,
                )
                .await;
            }
            First::Raced => {}
        }
    }
    Err(StoreError::new(StoreErrorKind::Refused, Operation::Claim)
        .with_detail("others claimed and released the key meanwhile"))
}

pub(crate) async fn complete(rows: &impl Rows, commit: Commit) -> Result<WriteOutcome, StoreError> {
    if commit.state.is_answer() && rows.commit_own(&commit).await? {
        rows.watchers().changed(&commit.key);
        return Ok(WriteOutcome::Applied);
    }
    let decide = |slot: &mut Option<Record>, now| transition::complete(slot, &commit, now);
    read_and_change(rows, Operation::Complete, commit.key, decide).await
}

pub(crate) async fn release(
    rows: &impl Rows,
    release: Release,
) -> Result<WriteOutcome, StoreError> {
    // The remaining attempts cannot be decided in one statement.
    if !release.keep_attempts && !release.unused && rows.release_own(&release).await? {
        rows.watchers().changed(&release.key);
        return Ok(WriteOutcome::Applied);
    }
    read_and_change(rows, Operation::Release, release.key, |slot, now| {
        transition::release(slot, &release, now)
    })
    .await
}

pub(crate) async fn abandon(
    rows: &impl Rows,
    abandon: Abandon,
) -> Result<WriteOutcome, StoreError> {
    read_and_change(rows, Operation::Abandon, abandon.key, |slot, now| {
        transition::abandon(slot, &abandon, now)
    })
    .await
}

pub(crate) async fn park(rows: &impl Rows, park: Park) -> Result<WriteOutcome, StoreError> {
    read_and_change(rows, Operation::Park, park.key, |slot, now| transition::park(slot, &park, now))
        .await
}

pub(crate) async fn checkpoint(
    rows: &impl Rows,
    checkpoint: Checkpoint,
) -> Result<WriteOutcome, StoreError> {
    let decide = |slot: &mut Option<Record>, now| transition::checkpoint(slot, &checkpoint, now);
    let found = rows.row(Operation::Checkpoint, checkpoint.key).await?;
    change_row(rows, Operation::Checkpoint, found, checkpoint.key, None, decide).await
}

pub(crate) async fn fence(
    rows: &impl Rows,
    key: KeyHash,
    token: Token,
) -> Result<Option<u64>, StoreError> {
    let found = rows.row(Operation::Fence, key).await?;
    let mut slot = found.stored.map(|stored| stored.record);
    Ok(transition::fence(&mut slot, token, found.now))
}

pub(crate) async fn read(
    rows: &impl Rows,
    operation: Operation,
    key: KeyHash,
) -> Result<Option<Record>, StoreError> {
    let found = rows.row(operation, key).await?;
    let mut slot = found.stored.map(|stored| stored.record);
    Ok(transition::read(&mut slot, found.now))
}

pub(crate) async fn watch(rows: &impl Rows, key: KeyHash) -> Result<Watch, StoreError> {
    let record = read(rows, Operation::Watch, key).await?;
    Ok(rows.watchers().watch(key, record))
}

pub(crate) async fn resolve(
    rows: &impl Rows,
    resolve: Resolve,
) -> Result<AdminOutcome, StoreError> {
    read_and_change(rows, Operation::Resolve, resolve.key, |slot, now| {
        transition::resolve(slot, &resolve, now)
    })
    .await
}

pub(crate) async fn remove(rows: &impl Rows, remove: Remove) -> Result<AdminOutcome, StoreError> {
    read_and_change(rows, Operation::Remove, remove.key, |slot, now| {
        transition::remove(slot, &remove, now)
    })
    .await
}

/// Lists the records of one stretch of the table in the store named `store`.
pub(crate) async fn scan(
    rows: &impl Rows,
    store: &'static str,
    scan: Scan,
) -> Result<Page, StoreError> {
    let stretch = Stretch::of(store, &scan)?;
    let listed = rows.page(&scan, &stretch).await?;
    let next = stretch.next(store, &listed);
    let (mut records, mut unreadable) = (Vec::new(), Vec::new());
    for Listed { key, found, .. } in listed {
        let key = <[u8; 32]>::try_from(key).map(KeyHash::from_bytes);
        match (key, found) {
            (Ok(_), Ok(Found { now, stored })) => {
                let mut slot = stored.map(|stored| stored.record);
                let record = transition::read(&mut slot, now);
                records.extend(record.filter(|record| scan.includes(record)));
            }
            // The last row of a stretch is there whether or not it is asked for.
            (Ok(key), Err(_)) if scan.begins_with.is_some_and(|prefix| !prefix.includes(&key)) => {}
            (Ok(key), Err(error)) => {
                tracing::warn!(%key, %error, "a record cannot be read, and is not listed");
                unreadable.push(key);
            }
            (Err(key), _) => {
                let bytes = key.len();
                tracing::warn!(bytes, "a row whose key is not 32 bytes is not listed");
            }
        }
    }
    Ok(Page::new(records, next).with_unreadable(unreadable))
}

/// Implements [`Store`](crate::store::Store) for a type that is [`Rows`] and has `renew_rows` and
/// `purge_rows`.
macro_rules! store_of_rows {
    ($store:ty, $name:literal, $capabilities:expr) => {
        impl $crate::store::Store for $store {
            fn name(&self) -> &'static str {
                $name
            }

            fn capabilities(&self) -> $crate::store::Capabilities {
                $capabilities
            }

            fn facets(&self) -> $crate::store::Facets<'_> {
                $crate::store::Facets::none().with_transactions(Some(self))
            }

            async fn claim(
                &self,
                claim: $crate::store::Claim,
            ) -> $crate::sql::Answer<$crate::store::ClaimOutcome> {
                $crate::sql::store::claim(self, claim).await
            }

            async fn renew(
                &self,
                renewals: Vec<$crate::store::Renewal>,
            ) -> $crate::sql::Answer<Vec<$crate::store::WriteOutcome>> {
                self.renew_rows(&renewals).await
            }

            async fn complete(
                &self,
                commit: $crate::store::Commit,
            ) -> $crate::sql::Answer<$crate::store::WriteOutcome> {
                $crate::sql::store::complete(self, commit).await
            }

            async fn release(
                &self,
                release: $crate::store::Release,
            ) -> $crate::sql::Answer<$crate::store::WriteOutcome> {
                $crate::sql::store::release(self, release).await
            }

            async fn abandon(
                &self,
                abandon: $crate::store::Abandon,
            ) -> $crate::sql::Answer<$crate::store::WriteOutcome> {
                $crate::sql::store::abandon(self, abandon).await
            }

            async fn park(
                &self,
                park: $crate::store::Park,
            ) -> $crate::sql::Answer<$crate::store::WriteOutcome> {
                $crate::sql::store::park(self, park).await
            }

            async fn checkpoint(
                &self,
                checkpoint: $crate::store::Checkpoint,
            ) -> $crate::sql::Answer<$crate::store::WriteOutcome> {
                $crate::sql::store::checkpoint(self, checkpoint).await
            }

            async fn fence(
                &self,
                key: $crate::key::KeyHash,
                token: $crate::store::Token,
            ) -> $crate::sql::Answer<Option<u64>> {
                $crate::sql::store::fence(self, key, token).await
            }

            async fn read(
                &self,
                key: $crate::key::KeyHash,
            ) -> $crate::sql::Answer<Option<$crate::store::Record>> {
                $crate::sql::store::read(self, Operation::Read, key).await
            }

            async fn watch(
                &self,
                key: $crate::key::KeyHash,
            ) -> $crate::sql::Answer<$crate::store::Watch> {
                $crate::sql::store::watch(self, key).await
            }

            async fn resolve(
                &self,
                resolve: $crate::store::Resolve,
            ) -> $crate::sql::Answer<$crate::store::AdminOutcome> {
                $crate::sql::store::resolve(self, resolve).await
            }

            async fn remove(
                &self,
                remove: $crate::store::Remove,
            ) -> $crate::sql::Answer<$crate::store::AdminOutcome> {
                $crate::sql::store::remove(self, remove).await
            }

            async fn scan(
                &self,
                scan: $crate::store::Scan,
            ) -> $crate::sql::Answer<$crate::store::Page> {
                $crate::sql::store::scan(self, $name, scan).await
            }

            async fn census(
                &self,
                budget: $crate::store::CensusBudget,
            ) -> $crate::sql::Answer<$crate::store::Census> {
                $crate::sql::census::census(self, budget).await
            }

            async fn purge(
                &self,
                limit: usize,
            ) -> $crate::sql::Answer<$crate::store::PurgeOutcome> {
                self.purge_rows(limit).await
            }
        }
    };
}
pub(crate) use store_of_rows;
