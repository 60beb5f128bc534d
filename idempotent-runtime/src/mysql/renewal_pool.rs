//! The connections for renewals.

use std::sync::{Mutex, PoisonError};

use sqlx::MySqlPool;
use tokio::runtime::{Handle, Id};

/// One sends, another is there where the first is stuck.
const CONNECTIONS: u32 = 2;

/// A pool that belongs to the runtime in which renewals are sent: neither a blocked executor of the user nor requests
/// that hold all other connections keep a lease from being renewed.
///
/// Connections work only while the runtime lives in which they were made, and only as fast as that one, so another
/// runtime gets another pool.
pub(super) struct RenewalPool {
    /// Makes connections as this one does.
    like: MySqlPool,
    made: Mutex<Option<(Id, MySqlPool)>>,
}

impl RenewalPool {
    pub(super) fn new(like: MySqlPool) -> Self {
        Self { like, made: Mutex::new(None) }
    }

    /// The pool of the runtime that asks.
    pub(super) fn get(&self) -> MySqlPool {
        let runtime = Handle::current().id();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((id, pool)) if *id == runtime => pool.clone(),
            _ => made.insert((runtime, self.make())).1.clone(),
        }
    }

    fn make(&self) -> MySqlPool {
        let options = self.like.options().clone().min_connections(0).max_connections(CONNECTIONS);
        options.connect_lazy_with((*self.like.connect_options()).clone())
    }
}
