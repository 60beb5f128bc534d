//! The connections for renewals.

use std::sync::{Mutex, PoisonError};

use sqlx::{Database, Pool};
use tokio::runtime::{Handle, Id};

/// How many connections renewals have: one sends, another is there where the first is stuck.
pub(crate) const RENEWAL_CONNECTIONS: u32 = 2;

/// A pool that belongs to the runtime in which renewals are sent: neither a blocked executor of the user nor requests
/// that hold all other connections keep a lease from being renewed.
///
/// Connections work only while the runtime lives in which they were made, so another runtime gets another pool.
pub(crate) struct RenewalPool<DB: Database> {
    make: Box<dyn Fn() -> Pool<DB> + Send + Sync>,
    made: Mutex<Option<(Id, Pool<DB>)>>,
}

impl<DB: Database> RenewalPool<DB> {
    /// `make` makes a pool of [`RENEWAL_CONNECTIONS`], which connects when it is used.
    pub(crate) fn new(make: impl Fn() -> Pool<DB> + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), made: Mutex::new(None) }
    }

    /// The pool of the runtime that asks.
    pub(crate) fn get(&self) -> Pool<DB> {
        let runtime = Handle::current().id();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((id, pool)) if *id == runtime => pool.clone(),
            _ => made.insert((runtime, (self.make)())).1.clone(),
        }
    }
}
