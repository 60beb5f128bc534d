//! A connection for one request, and its return whatever becomes of the request.

use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, Error, Row as _, Sqlite, SqliteConnection, raw_sql};
use tokio::runtime::Handle;

use crate::runtime::while_runtime_lives;
use crate::sql::{Abandoned, Acquired, TransactionDatabase as _};

/// A connection that returns to its pool after its request.
///
/// If the request was given up, or its future was dropped, the store's own connection is
/// [abandoned](Abandoned), and another one takes its place. One of the user's is returned then too,
/// as soon as it has answered: closing it would drop a database in memory and everything in it.
/// Nothing is left to wait for, since it is not a server that answers but a thread of this process.
pub(crate) struct Lease {
    connection: Option<PoolConnection<Sqlite>>,
    is_given: bool,
    answered: bool,
    /// How long the user's own statements wait for a lock, in milliseconds, if the request's wait
    /// less.
    busy_timeout: Option<i64>,
    patience: Duration,
    abandoned: Abandoned,
    /// Pools take connections back in a task, and the future of a request may be dropped outside of
    /// its runtime.
    runtime: Handle,
}

impl Lease {
    /// Creates a lease. `is_given` is true if the connection is the user's. `patience` is the time
    /// that the caller waits for its return.
    pub(super) fn new(acquired: Acquired<Sqlite>, is_given: bool, patience: Duration) -> Self {
        let Acquired { connection, abandoned } = acquired;
        Self {
            connection: Some(connection),
            is_given,
            answered: false,
            busy_timeout: None,
            patience,
            abandoned,
            runtime: Handle::current(),
        }
    }

    /// Lets statements wait at most this long for a lock, until the connection is returned.
    ///
    /// A write that waits longer than its caller would be given up with an unknown outcome, and be
    /// applied later.
    ///
    /// Fails if the connection is in a transaction, where other code has left it: what is written
    /// there may never be committed.
    pub(super) async fn bound(&mut self, longest: Duration) -> Result<(), Error> {
        if self.is_in_transaction() {
            // So the client believes. SQLite has ended the transaction by itself.
            Sqlite::mend(self).await;
        }
        // Transactions are not nested. This one takes no lock, and the client ends it if the request
        // is dropped. It is committed because users may count what is rolled back.
        self.begin_with("BEGIN").await?.commit().await?;
        let longest = i64::try_from(longest.as_millis()).unwrap_or(i64::MAX);
        // Never prepared: this pragma takes effect, and reads its answer, when it is compiled.
        let found = raw_sql("PRAGMA busy_timeout").fetch_one(&mut **self).await?.try_get(0)?;
        // A service may have a handler of its own instead, and then this is zero.
        if found <= longest {
            return Ok(());
        }
        self.busy_timeout = Some(found);
        set_busy_timeout(self, longest).await
    }

    /// Returns the connection, and waits until the pool has it. A task for that would run only when
    /// the caller's worker is free again, and a body may block the worker as soon as its claim is
    /// answered.
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a connection is real time, whatever clock records have"
    )]
    pub(super) async fn give_back(mut self) {
        self.answered = true;
        let Some(returning) = self.returning() else { return };
        while_runtime_lives(tokio::time::timeout(self.patience, returning)).await;
        // Returning it has given it to the next caller that waits, and that may be the next task of
        // this worker, which no other worker takes over. It runs first: a body that begins now and
        // blocks the worker would otherwise keep a connection that is never used.
        tokio::task::yield_now().await;
    }

    /// Takes the connection, and returns it to its pool.
    fn returning(&mut self) -> Option<Followed<()>> {
        let mut connection = self.connection.take()?;
        let (runtime, busy_timeout) = (self.runtime.clone(), self.busy_timeout);
        Some(Followed::new(&self.runtime, self.is_given, async move {
            // The answer to what was sent before is read first, here or by the pool.
            if let Some(millis) = busy_timeout {
                // Fails only if the pool does not take the connection back either.
                let _ = set_busy_timeout(&mut connection, millis).await;
            }
            let returning = connection.return_to_pool();
            {
                // Dropping it may spawn a task, which needs a runtime.
                let _entered = runtime.enter();
                drop(connection);
            }
            returning.await;
        }))
    }
}

async fn set_busy_timeout(connection: &mut SqliteConnection, millis: i64) -> Result<(), Error> {
    let statement = AssertSqlSafe(format!("PRAGMA busy_timeout = {millis}"));
    raw_sql(statement).execute(connection).await.map(drop)
}

const THERE: &str = "the connection is there until the lease is dropped";

impl Deref for Lease {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_deref().expect(THERE)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_deref_mut().expect(THERE)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.answered || self.is_given {
            drop(self.returning());
        } else if let Some(connection) = self.connection.take() {
            let _entered = self.runtime.enter();
            self.runtime.spawn(self.abandoned.clone().close(connection));
        }
    }
}

/// A future that is finished in the background if it is dropped before it is done: in its runtime,
/// and, if that ends too soon and the future `needs_no_runtime` of its own, on a thread.
///
/// The client closes a connection when the future that has it is dropped.
pub(super) struct Followed<T: Send + 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    runtime: Handle,
    needs_no_runtime: bool,
    is_in_background: bool,
}

impl<T: Send + 'static> Followed<T> {
    pub(super) fn new(
        runtime: &Handle,
        needs_no_runtime: bool,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self {
            // Boxed: a kilobyte or more, and part of every request's future.
            future: Some(Box::pin(future)),
            runtime: runtime.clone(),
            needs_no_runtime,
            is_in_background: false,
        }
    }
}

impl<T: Send + 'static> Future for Followed<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let output = ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<T: Send + 'static> Drop for Followed<T> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        let home = self.runtime.clone();
        // Where the future itself is dropped in the end, so is a connection, which needs a runtime.
        let _entered = self.runtime.enter();
        if !self.is_in_background {
            let followed = Self {
                future: Some(future),
                runtime: home,
                needs_no_runtime: self.needs_no_runtime,
                is_in_background: true,
            };
            // If the runtime has ended, this drops the task at once, which gets here again.
            self.runtime.spawn(async move { drop(followed.await) });
        } else if self.needs_no_runtime {
            let finish = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let _entered = home.enter();
                match runtime {
                    Ok(runtime) => drop(runtime.block_on(future)),
                    Err(_) => drop(future),
                }
            };
            // Without a thread, the connection is closed.
            drop(std::thread::Builder::new().name("idempotency-sqlite".into()).spawn(finish));
        } else {
            drop(future);
        }
    }
}
