//! Connections whose request was given up, and the sessions that they leave in the server.

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Database, Pool};
use tokio::sync::Semaphore;

/// How long a connection beside the pool is kept for its server's answer: as long as results are
/// stored in the background.
const BESIDE: Duration = Duration::from_secs(600);
/// How long one keeps its place in the pool.
const IN_PLACE: Duration = Duration::from_secs(60);
/// The same for renewals, which are needed as soon as a server is back.
const RENEWALS_IN_PLACE: Duration = Duration::from_secs(10);

/// A server does not notice that a client has gone while it waits for a lock, for its disk or for a
/// standby, and each request that was given up would leave one more session, until the server takes
/// no more of anybody.
///
/// So a connection is closed when the server has answered on it. As many as the pool has leave it
/// meanwhile, and others take their places: after a failover, where no answer ever comes, nothing
/// is kept waiting. Further ones keep their places, and then the pool has no connection to give.
#[derive(Clone, Debug)]
pub(crate) struct Abandoned {
    beside: Arc<Semaphore>,
    in_place: Duration,
}

impl Abandoned {
    /// Those of `pool`.
    pub(crate) fn of<DB: Database>(pool: &Pool<DB>) -> Self {
        let most = usize::try_from(pool.options().get_max_connections()).unwrap_or(usize::MAX);
        Self {
            beside: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            in_place: IN_PLACE,
        }
    }

    /// Those of a pool for renewals.
    pub(crate) fn of_renewals<DB: Database>(pool: &Pool<DB>) -> Self {
        Self { in_place: RENEWALS_IN_PLACE, ..Self::of(pool) }
    }

    /// Closes `connection` when the server has answered what was asked on it.
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(super) async fn close<DB: Database>(self, mut connection: PoolConnection<DB>) {
        // A ping reads the answers to what was asked before it.
        if let Ok(_beside) = self.beside.try_acquire() {
            let mut connection = connection.detach();
            let _ = tokio::time::timeout(BESIDE, connection.ping()).await;
            let _ = tokio::time::timeout(self.in_place, connection.close()).await;
        } else {
            connection.close_on_drop();
            let _ = tokio::time::timeout(self.in_place, connection.ping()).await;
        }
    }
}
