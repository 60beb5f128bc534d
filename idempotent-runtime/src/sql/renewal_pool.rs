//! The connections for renewals.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{Connection, Database, Pool};
use tokio::runtime::{Handle, Id};
use tokio::task::JoinHandle;

use crate::runtime::sentinel;

/// One sends, another is there where the first is stuck.
const CONNECTIONS: u32 = 2;

/// A pool for each runtime in which renewals are sent: neither a blocked executor of the user nor requests that hold all
/// other connections keep a lease from being renewed.
///
/// Connections work only while the runtime lives in which they were made, and only as fast as that one. An engine has one
/// thread for renewals, so there are as many pools as engines that share the store.
pub(crate) struct RenewalPool<DB: Database> {
    /// Makes connections as this one does.
    like: Pool<DB>,
    made: Mutex<HashMap<Id, Made<DB>>>,
}

struct Made<DB: Database> {
    pool: Pool<DB>,
    runtime: Arc<JoinHandle<()>>,
}

impl<DB: Database> RenewalPool<DB> {
    pub(crate) fn new(like: Pool<DB>) -> Self {
        Self { like, made: Mutex::default() }
    }

    /// The pool of the runtime that asks.
    pub(crate) fn get(&self) -> Pool<DB> {
        let runtime = Handle::current();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.get(&runtime.id()) {
            return made.pool.clone();
        }
        made.retain(|_, made| !made.runtime.is_finished());
        let pool = self.make();
        made.insert(runtime.id(), Made { pool: pool.clone(), runtime: sentinel(&runtime) });
        pool
    }

    fn make(&self) -> Pool<DB> {
        let options = self.like.options().clone().min_connections(0).max_connections(CONNECTIONS);
        let connecting: &<DB::Connection as Connection>::Options = &self.like.connect_options();
        options.connect_lazy_with(connecting.clone())
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::RenewalPool;

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn each_runtime_keeps_its_own_pool_and_one_that_has_ended_leaves_none() {
        let (one, other) = (runtime(), runtime());
        let pools = one.block_on(async {
            RenewalPool::new(sqlx::MySqlPool::connect_lazy("mysql://nobody@127.0.0.1:1/nothing").unwrap())
        });
        let first = one.block_on(async { pools.get() });
        let second = other.block_on(async { pools.get() });
        other.block_on(second.close());
        // Handles of one pool are closed together.
        assert!(!first.is_closed() && !one.block_on(async { pools.get() }).is_closed());
        assert!(other.block_on(async { pools.get() }).is_closed());
        drop(one);
        let third = runtime();
        third.block_on(async { pools.get() });
        assert_eq!(pools.made.lock().unwrap().len(), 2, "that of the runtime that ended is gone");
    }
}
