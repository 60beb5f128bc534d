//! Connections whose request was given up, and the sessions that they leave on the server.

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Database, Pool};
use tokio::sync::Semaphore;

/// The time for which a connection outside the pool is kept for its server's answer: as long as
/// results are stored in the background.
const BESIDE: Duration = Duration::from_secs(600);
/// The time for which a connection keeps its place in the pool.
const IN_PLACE: Duration = Duration::from_secs(60);
/// The same for renewals, which are needed as soon as a server is back.
const RENEWALS_IN_PLACE: Duration = Duration::from_secs(10);

/// The limits for connections whose request was given up.
///
/// A server does not notice that a client has gone while it waits for a lock, for its disk or for a
/// standby. Each request that was given up would leave one more session, until the server accepts
/// no more from any client.
///
/// So a connection is closed once the server has answered on it. Meanwhile, up to as many of them
/// as the pool holds leave it, and others take their places: after a failover, where no answer ever
/// arrives, no request has to wait. Further ones keep their places, and then the pool has no
/// connection left.
#[derive(Clone, Debug)]
pub(crate) struct Abandoned {
    beside: Arc<Semaphore>,
    in_place: Duration,
}

impl Abandoned {
    /// The limits for connections of `pool`.
    pub(crate) fn of<DB: Database>(pool: &Pool<DB>) -> Self {
        let most = usize::try_from(pool.options().get_max_connections()).unwrap_or(usize::MAX);
        Self {
            beside: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            in_place: IN_PLACE,
        }
    }

    /// The limits for connections of a pool for renewals.
    pub(crate) fn of_renewals<DB: Database>(pool: &Pool<DB>) -> Self {
        Self { in_place: RENEWALS_IN_PLACE, ..Self::of(pool) }
    }

    /// Closes `connection` once the server has answered the request that was sent on it.
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(crate) async fn close<DB: Database>(self, mut connection: PoolConnection<DB>) {
        // A ping first reads the answers to earlier requests.
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
