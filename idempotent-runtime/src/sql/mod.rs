//! Code that the SQL stores share: a record as a row, changes guarded by the row's revision,
//! waiting by polling.
//!
//! The rules of the protocol are not implemented again in SQL. A store reads the row together with
//! the server's time, lets [`transition`](crate::store::transition) decide, and writes the row back
//! only if it has not changed since: every row has a revision, which each write increments. A write
//! that finds another revision changes nothing, and the decision is made again on the current row.
//! A decision made on the server's time stays right until the row changes: an expired lease does
//! not become valid again without a write.
//!
//! The frequent transitions (first claim, replay, commit, renewal, release) are one statement each.
//! They write what `transition` would write, and change nothing where it could decide otherwise;
//! then the slow path follows.

mod abandoned;
pub(crate) mod census;
mod change;
mod conditions;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod demoted;
mod edge_call;
mod fences;
pub(crate) mod filter;
mod in_transaction;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod lease;
mod name;
mod passing;
mod pools;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod purge_mark;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod renewal;
mod row;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod starved;
pub(crate) mod store;
pub(crate) mod stretch;
pub(crate) mod transaction;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) mod unconnected;
mod watchers;

pub(crate) use abandoned::Abandoned;
pub(crate) use change::{Found, Guard, Table};
pub(crate) use conditions::{FORGOTTEN, IN_PROGRESS, UNFINISHED};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use demoted::Demotions;
pub(crate) use fences::Fences;
#[cfg(feature = "postgres")]
pub(crate) use in_transaction::NotCommitted;
pub use in_transaction::{OpenTransaction, Standing, TransactionDatabase, in_transaction};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use lease::Lease;
pub(crate) use name::TableName;
#[cfg(feature = "postgres")]
pub(crate) use passing::Unanswered;
pub(crate) use pools::{Acquired, Pools};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use purge_mark::{Batch, Place, PurgeMark, purge_from_mark};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use renewal::not_renewed;
#[cfg(feature = "postgres")]
pub(crate) use row::Value;
#[cfg(feature = "mysql")]
pub(crate) use row::bind_values;
pub(crate) use row::{
    AnswerRow, COLUMNS, FORMAT, Listed, Row, found, integer, listed, reason_code, state_code,
};
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(crate) use row::{bind, bind_all};
#[cfg(feature = "postgres")]
pub(crate) use store::First;
#[cfg(feature = "sqlite")]
pub(crate) use store::is_answered;
pub(crate) use store::{Rows, in_time, is_settled, store_of_rows};
pub(crate) use watchers::{Look, Seen, Watchers};

pub(crate) type Answer<T> = Result<T, crate::store::StoreError>;
