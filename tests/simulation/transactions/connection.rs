//! The connection of one transaction to the database, which breaks, is slow, and loses the answers
//! to commits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::__private::{ClaimAnswer, End, TransactionConnection, TransactionFuture};
use idempotency::clock::Clock as _;
use idempotency::store::{
    Claim, Commit, DynStore, Operation, SqlTransaction, StoreError, StoreErrorKind, Token,
};
use idempotency_test_support::random::Random;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::database::{Database, First, Over};
use super::plan::Faults;
use crate::clock::ProcessClock;
use crate::life::Life;
use crate::log::{Entry, Log};
use crate::plan::millis_below;

/// How long a server takes at most to notice that a client is gone.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
/// How long a client waits for the answer to a commit.
const SILENCE: Duration = Duration::from_secs(1);

/// Where a process makes its transactions.
#[derive(Clone)]
pub struct Pool {
    pub database: Arc<Database>,
    pub clock: ProcessClock,
    pub log: Arc<Log>,
    pub random: Arc<Mutex<Random>>,
    pub faults: Faults,
}

/// What the client knows of its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    Yes,
    No,
    Unknown,
}

impl Pool {
    fn life(&self) -> &Arc<Life> {
        &self.clock.life
    }

    fn chance(&self, percent: u64) -> bool {
        // A calm has no faults, and takes no numbers.
        percent > 0 && self.random.lock().unwrap_or_else(PoisonError::into_inner).chance(percent)
    }

    fn moment(&self, limit: Duration) -> Duration {
        millis_below(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner), limit)
    }

    pub fn note(&self, what: &'static str) {
        let (at, process) = (self.clock.monotonic(), self.life().name.clone());
        self.log.write(Entry::InTransaction { at, process, what });
    }

    pub async fn begin(&self) -> Transaction {
        self.life().goes_on().await;
        let number = self.database.begin(&self.life().name);
        Transaction { pool: self.clone(), number, is_open: true }
    }
}

/// A transaction, as its client sees it. Dropped, it is rolled back when the server notices.
pub struct Transaction {
    pool: Pool,
    number: u64,
    is_open: bool,
}

fn lost() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, Operation::Transaction)
        .with_detail("the connection was lost")
}

impl Transaction {
    /// A statement is on its way to the server and back.
    async fn send<T>(
        &mut self,
        apply: impl FnOnce(&Database, u64) -> Result<T, Over>,
    ) -> Result<T, StoreError> {
        self.pool.life().goes_on().await;
        if self.pool.chance(self.pool.faults.slow) {
            sleep(self.pool.moment(SILENCE * 3)).await;
            self.pool.life().goes_on().await;
        }
        if self.is_open && self.pool.chance(self.pool.faults.broken) {
            self.pool.note("a connection breaks");
            self.abandon();
        }
        if !self.is_open {
            return Err(lost());
        }
        apply(&self.pool.database, self.number).map_err(|Over| lost())
    }

    /// The effect of a body.
    pub async fn effect(&mut self) -> Result<String, StoreError> {
        self.send(Database::effect).await
    }

    /// Undoes the effects, and nothing else.
    pub fn undo_effects(&self) {
        self.pool.database.undo_effects(self.number);
    }

    pub async fn commit(mut self) -> Committed {
        self.pool.life().goes_on().await;
        if !self.is_open {
            return Committed::No;
        }
        let (pool, number) = (self.pool.clone(), self.number);
        if pool.chance(pool.faults.commit_lost) {
            pool.note("a commit is lost");
            self.abandon();
            sleep(pool.moment(SILENCE)).await;
            pool.life().goes_on().await;
            return Committed::Unknown;
        }
        self.is_open = false;
        let committed = if pool.chance(pool.faults.commit_answer_lost) {
            pool.note("the answer to a commit is lost");
            let (database, late) = (pool.database.clone(), pool.moment(NOTICED_WITHIN));
            if pool.chance(50) {
                let _ = database.commit(number);
            } else {
                // It arrives also when its sender is gone.
                tokio::spawn(async move {
                    sleep(late).await;
                    let _ = database.commit(number);
                });
            }
            sleep(pool.moment(SILENCE)).await;
            Committed::Unknown
        } else {
            pool.database.commit(number).map_or(Committed::No, |()| Committed::Yes)
        };
        pool.life().goes_on().await;
        committed
    }

    pub async fn roll_back(mut self) {
        self.pool.life().goes_on().await;
        self.is_open = false;
        self.pool.database.roll_back(self.number);
    }

    /// Nothing is heard of the client any more.
    fn abandon(&mut self) {
        let (database, number) = (self.pool.database.clone(), self.number);
        self.is_open = false;
        let noticed =
            if self.pool.chance(50) { Duration::ZERO } else { self.pool.moment(NOTICED_WITHIN) };
        if noticed.is_zero() {
            database.roll_back(number);
        } else if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                sleep(noticed).await;
                database.roll_back(number);
            });
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.is_open {
            self.pool.note("a transaction is dropped");
            self.abandon();
        }
    }
}

impl TransactionConnection for Transaction {
    fn begin<'a>(
        &'a mut self,
        _: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer> {
        Box::pin(async move {
            let pool = self.pool.clone();
            let ends = pool.clock.monotonic() + patience;
            let mut has_waited = false;
            loop {
                let over = pool.database.over.notified();
                tokio::pin!(over);
                over.as_mut().enable();
                if let Some(claimed) =
                    self.send(|database, number| database.claim(number, claim)).await?
                {
                    return Ok(ClaimAnswer::new(Some(claimed), has_waited));
                }
                pool.note("a claim waits for another transaction");
                has_waited = true;
                if timeout(ends.saturating_sub(pool.clock.monotonic()), over).await.is_err() {
                    pool.life().goes_on().await;
                    pool.note("a claim is out of patience");
                    return Ok(ClaimAnswer::new(None, has_waited));
                }
            }
        })
    }

    fn record_first<'a>(
        &'a mut self,
        _: &'a dyn DynStore,
        claim: &'a Claim,
        result: &'a Commit,
        patience: Duration,
    ) -> TransactionFuture<'a, Option<ClaimAnswer>> {
        Box::pin(async move {
            let pool = self.pool.clone();
            let ends = pool.clock.monotonic() + patience;
            loop {
                let over = pool.database.over.notified();
                tokio::pin!(over);
                over.as_mut().enable();
                match self
                    .send(|database, number| database.record_first(number, claim, result))
                    .await?
                {
                    Some(First::IsThere) => return Ok(None),
                    Some(First::Written(claimed)) => {
                        pool.note("a record is written first");
                        return Ok(Some(ClaimAnswer::new(Some(*claimed), false)));
                    }
                    None => {}
                }
                if timeout(ends.saturating_sub(pool.clock.monotonic()), over).await.is_err() {
                    pool.life().goes_on().await;
                    return Ok(Some(ClaimAnswer::new(None, true)));
                }
            }
        })
    }

    fn end<'a>(
        &'a mut self,
        _: &'a dyn DynStore,
        _: Token,
        end: End,
    ) -> TransactionFuture<'a, bool> {
        Box::pin(self.send(move |database, number| database.end(number, end)))
    }

    // For operations that are disabled, and here none is.
    fn set_savepoint<'a>(&'a mut self, _: &'a str) -> TransactionFuture<'a, ()> {
        Box::pin(self.send(|_, _| Ok(())))
    }

    fn end_savepoint<'a>(&'a mut self, _: &'a str, _: bool) -> TransactionFuture<'a, ()> {
        Box::pin(self.send(|_, _| Ok(())))
    }
}

impl SqlTransaction for Transaction {
    type Connection = Self;

    fn connection(&mut self) -> &mut Self {
        self
    }
}
