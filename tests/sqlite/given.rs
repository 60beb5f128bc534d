//! A pool of the service's own, with a database in memory: it is gone when its connection is closed.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::Poll;
use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{
    Claim, Commit, Release, Remove, Renewal, Scan, SqliteStore, Store, StoreError, Token,
};
use idempotency::{Error, ErrorKind, Idempotency};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection, SqlitePool};
use tokio::runtime::Builder;

use crate::world::{DAY, OPERATION};

const KEY: KeyHash = KeyHash::from_bytes([7; 32]);
const REQUESTS: [&str; 6] = ["read", "watch", "scan", "purge", "claim", "migrate"];

/// How long the client lets a statement wait for a lock, in milliseconds.
const CLIENT_WAITS: i64 = 5_000;

async fn busy_timeout(connection: &mut SqliteConnection) -> anyhow::Result<i64> {
    Ok(sqlx::raw_sql("PRAGMA busy_timeout").fetch_one(connection).await?.try_get(0)?)
}

/// A service that keeps its own table and the records in memory.
struct Service {
    pool: SqlitePool,
    store: SqliteStore,
    engine: Idempotency,
    bodies: AtomicU32,
    gate: Arc<Gate>,
}

/// While it is closed, no statement on the connection ends.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set_closed(&self, is_closed: bool) {
        *self.is_closed.lock().expect("nobody panics") = is_closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let is_closed = self.is_closed.lock().expect("nobody panics");
        drop(self.opened.wait_while(is_closed, |is_closed| *is_closed).expect("nobody panics"));
    }
}

/// Opens a gate when it is dropped.
struct Opening<'a>(&'a Gate);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.set_closed(false);
    }
}

impl Service {
    async fn new(options: SqlitePoolOptions) -> anyhow::Result<Self> {
        let gate = Arc::new(Gate::default());
        let passes = Arc::clone(&gate);
        let options = options.after_connect(move |connection, _| {
            let gate = Arc::clone(&passes);
            Box::pin(async move {
                let pass = move || {
                    gate.pass();
                    true
                };
                connection.lock_handle().await?.set_progress_handler(1, pass);
                Ok(())
            })
        });
        let pool = options.max_connections(1).connect_with(SqliteConnectOptions::new()).await?;
        sqlx::query("CREATE TABLE shipped (number INTEGER)").execute(&pool).await?;
        let store = SqliteStore::from_pool(pool.clone());
        store.migrate().await?;
        let engine = Idempotency::builder(store.clone()).build()?;
        let service = Self { pool, store, engine, bodies: AtomicU32::new(0), gate };
        service.charge().await?;
        Ok(service)
    }

    async fn charge(&self) -> Result<u32, Error> {
        let call = self.engine.call(OPERATION, 1).ttl(DAY);
        call.run(|| async { Ok::<_, Error>(self.bodies.fetch_add(1, Ordering::Relaxed)) }).await
    }

    async fn request(&self, request: &str) -> Result<(), StoreError> {
        match request {
            "read" => self.store.read(KEY).await.map(drop),
            "watch" => self.store.watch(KEY).await.map(drop),
            "scan" => self.store.scan(Scan::default()).await.map(drop),
            "purge" => self.store.purge(100).await.map(drop),
            "migrate" => self.store.migrate().await,
            _ => {
                let token = Token::from_bits(1);
                self.store.claim(Claim::new(KEY, token, OPERATION.into())).await?;
                self.store.release(Release::new(KEY, token)).await.map(drop)
            }
        }
    }

    /// Begins the request, and drops it when it has been polled this often. Returns true if it had
    /// ended before. No statement ends during the poll that sends it, so the last one is under way.
    async fn cut(&self, request: &str, polls: u32) -> anyhow::Result<bool> {
        // After the request is dropped.
        let _opening = Opening(&self.gate);
        let mut request = pin!(self.request(request));
        let mut left = polls;
        let answer = poll_fn(|cx| {
            left = left.saturating_sub(1);
            self.gate.set_closed(true);
            let polled = request.as_mut().poll(cx);
            if polled.is_pending() && left == 0 {
                return Poll::Ready(None);
            }
            self.gate.set_closed(false);
            polled.map(Some)
        });
        Ok(answer.await.transpose()?.is_some())
    }

    /// Checks that the service's own table and the result are still there.
    async fn check(&self, cut: &str) -> anyhow::Result<()> {
        sqlx::query("INSERT INTO shipped VALUES (1)").execute(&self.pool).await?;
        anyhow::ensure!(self.charge().await? == 0, "{cut}: the call ran again");
        let waits = busy_timeout(&mut *self.pool.acquire().await?).await?;
        anyhow::ensure!(waits == CLIENT_WAITS, "{cut}: the service waits for {waits} ms");
        anyhow::ensure!(self.pool.size() == 1, "{cut}: {} connections", self.pool.size());
        Ok(())
    }
}

#[tokio::test]
async fn a_request_that_is_dropped_at_any_point_closes_no_connection() -> anyhow::Result<()> {
    let service = Service::new(SqlitePoolOptions::new()).await?;
    for request in REQUESTS {
        let mut polls = 1;
        while !service.cut(request, polls).await? {
            service.check(&format!("{request} after {polls} polls")).await?;
            polls += 1;
        }
        assert!(polls > 1, "{request} waits for the database");
    }
    Ok(())
}

/// What the pool does before it hands a connection out ends with the runtime, so it does nothing
/// here.
#[test]
fn nor_does_the_end_of_a_runtime_in_which_a_request_is_under_way() -> anyhow::Result<()> {
    // The service's own requests leave tasks here, which run also while the test is elsewhere.
    let home = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let options = SqlitePoolOptions::new().test_before_acquire(false);
    let service = home.block_on(Service::new(options))?;
    for request in REQUESTS {
        let mut polls = 1;
        loop {
            let ending = Builder::new_current_thread().enable_all().build()?;
            let has_ended = ending.block_on(service.cut(request, polls))?;
            drop(ending);
            if has_ended {
                break;
            }
            home.block_on(service.check(&format!("{request} after {polls} polls")))?;
            polls += 1;
        }
        assert!(polls > 1, "{request} waits for the database");
    }
    Ok(())
}

/// The database itself tells how long each write would have waited.
#[tokio::test]
async fn writes_wait_for_a_lock_less_than_their_request_and_others_as_before() -> anyhow::Result<()>
{
    const TELL: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];
    for (own, bound) in [(5_000, 1_500), (300, 300)] {
        let directory = tempfile::tempdir()?;
        let options = SqliteConnectOptions::new().filename(directory.path().join("shop.db"));
        let options = options.create_if_missing(true).busy_timeout(Duration::from_millis(own));
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let store = SqliteStore::from_pool(pool.clone());
        store.migrate().await?;
        sqlx::query("CREATE TABLE waits (write TEXT, millis INTEGER)").execute(&pool).await?;
        for write in TELL {
            let trigger = format!(
                "CREATE TRIGGER tells_{write} AFTER {write} ON idempotency_records BEGIN
                     INSERT INTO waits SELECT '{write}', timeout FROM pragma_busy_timeout; END"
            );
            sqlx::query(AssertSqlSafe(trigger)).execute(&pool).await?;
        }
        let token = Token::from_bits(1);
        for number in 0..3 {
            let mut claim = Claim::new(KEY, token, OPERATION.into());
            (claim.lease, claim.ttl) = (DAY, DAY);
            store.claim(claim).await?;
            store.renew(vec![Renewal::new(KEY, token, DAY)]).await?;
            if number == 0 {
                store.release(Release::new(KEY, token)).await?;
                continue;
            }
            let ttl = if number == 1 { DAY } else { Duration::ZERO };
            store.complete(Commit::new(KEY, token, "done".into(), ttl)).await?;
            if number == 1 {
                store.remove(Remove::new(KEY, token)).await?;
            } else {
                assert_eq!(store.purge(10).await?.removed, 1);
            }
        }
        let told: Vec<(String, i64)> =
            sqlx::query_as("SELECT write, millis FROM waits").fetch_all(&pool).await?;
        let count = |write: &str| told.iter().filter(|(told, _)| told == write).count();
        assert_eq!(TELL.map(count), [3, 5, 3], "{told:?}");
        assert!(told.iter().all(|(_, millis)| *millis == bound), "{told:?}");
        assert_eq!(busy_timeout(&mut *pool.acquire().await?).await?, i64::try_from(own)?);
    }
    Ok(())
}

/// It sends `BEGIN` as a statement, and is dropped before it ends the transaction.
#[tokio::test]
async fn nothing_is_granted_in_a_transaction_that_other_code_has_left_in_the_session()
-> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new().filename(directory.path().join("service.db"));
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options.clone().create_if_missing(true))
        .await?;
    let effects = AtomicU32::new(0);
    let charge = async |pool: &SqlitePool| {
        let engine = Idempotency::new(SqliteStore::from_pool(pool.clone()));
        let body = async || Ok::<_, Error>(effects.fetch_add(1, Ordering::Relaxed));
        engine.call(OPERATION, 1).ttl(DAY).run(body).await
    };
    SqliteStore::from_pool(pool.clone()).migrate().await?;
    sqlx::raw_sql("BEGIN").execute(&pool).await?;
    let first = charge(&pool).await;
    pool.close().await;
    let elsewhere = SqlitePoolOptions::new().connect_with(options).await?;
    let again = charge(&elsewhere).await;
    assert_eq!(effects.load(Ordering::Relaxed), 1, "{first:?}, {again:?}");
    let error = first.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert!(error.to_string().contains("in a transaction that other code has begun"), "{error}");
    assert_eq!(again?, 0);
    Ok(())
}

/// SQLite has ended the transaction by itself, and the client goes on believing in it.
#[tokio::test]
async fn a_connection_whose_transaction_the_database_has_undone_serves_the_store()
-> anyhow::Result<()> {
    let service = Service::new(SqlitePoolOptions::new()).await?;
    sqlx::raw_sql("CREATE TABLE once (number INTEGER UNIQUE); INSERT INTO once VALUES (1)")
        .execute(&service.pool)
        .await?;
    let mut transaction = service.pool.begin().await?;
    let undone = sqlx::raw_sql("INSERT OR ROLLBACK INTO once VALUES (1)");
    assert!(undone.execute(&mut *transaction).await.is_err());
    drop(transaction);
    assert_eq!(service.charge().await?, 0, "its result is replayed");
    let engine = &service.engine;
    engine.call(OPERATION, 2).ttl(DAY).run(async || Ok::<_, Error>(())).await?;
    let transaction = service.pool.begin().await?;
    transaction.commit().await?;
    Ok(())
}
