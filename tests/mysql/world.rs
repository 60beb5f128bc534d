//! A server, a database of the test's own on it, and a store in that.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use idempotency::key::KeyHash;
use idempotency::store::{
    Claim, ClaimOutcome, Commit, CrashPolicy, MySqlStore, MySqlStoreBuilder, Record, Store as _,
    StoreError, Token, WriteOutcome,
};
use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{MySql, MySqlPool, Transaction};

pub const DAY: Duration = Duration::from_secs(86_400);
pub const LEASE: Duration = Duration::from_secs(120);
/// How long a store or a claim waits for an answer where that is not what a test is about: longer
/// than a busy machine keeps a process waiting.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    /// `None` where the server is the one of all tests.
    own: Option<MariaDbServer>,
    pub url: String,
    pub store: MySqlStore,
}

/// One server for the tests that neither stop it nor count what it does. It ends with this process.
fn shared() -> &'static MariaDbServer {
    static SERVER: OnceLock<MariaDbServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let start = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime
                .block_on(MariaDbServer::start(MariaDbOptions::new()))
                .expect("the server starts")
        };
        std::thread::spawn(start).join().expect("the server starts")
    })
}

impl World {
    /// On the server of all tests, with an empty table.
    pub async fn new() -> anyhow::Result<Self> {
        let world = Self::without_table().await?;
        world.store.migrate().await?;
        Ok(world)
    }

    pub async fn without_table() -> anyhow::Result<Self> {
        let server = tokio::task::spawn_blocking(shared).await?;
        let url = server.database("store").await?;
        let store = patient(&url).connect().await?;
        Ok(Self { own: None, url, store })
    }

    /// On a server of its own.
    pub async fn private(options: MariaDbOptions) -> anyhow::Result<Self> {
        let server = MariaDbServer::start(options.private()).await?;
        let url = server.url();
        let store = patient(&url).connect().await?;
        store.migrate().await?;
        Ok(Self { own: Some(server), url, store })
    }

    pub fn server(&self) -> &MariaDbServer {
        self.own.as_ref().unwrap_or_else(|| shared())
    }

    pub fn own_server(&mut self) -> &mut MariaDbServer {
        self.own.as_mut().expect("the server is private")
    }

    /// The rows of statements that another client sends.
    pub async fn sql(&self, statements: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.server().sql_at(&self.url, statements).await
    }

    /// The one figure that a statement answers with.
    pub async fn figure(&self, statement: &str) -> anyhow::Result<i64> {
        let rows = self.sql(statement).await?;
        let figure = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
        Ok(figure.ok_or_else(|| anyhow::anyhow!("no answer to {statement}"))?.parse()?)
    }

    /// Whether the server can leave rows out that somebody has locked: MariaDB from 10.6 on, and
    /// MySQL.
    pub async fn skips_locked(&self) -> bool {
        let statement = "SELECT key_hash FROM idempotency_records LIMIT 1 FOR UPDATE SKIP LOCKED";
        self.sql(statement).await.is_ok()
    }

    /// A pool whose connections begin with `session`.
    pub async fn pool(&self, session: &'static str) -> anyhow::Result<MySqlPool> {
        let options: MySqlConnectOptions = self.url.parse()?;
        // Nothing is set but what the test sets.
        let options = options.timezone(None).pipes_as_concat(false).no_engine_substitution(false);
        let pool =
            MySqlPoolOptions::new().max_connections(16).after_connect(move |connection, _| {
                Box::pin(
                    async move { sqlx::raw_sql(session).execute(connection).await.map(|_| ()) },
                )
            });
        Ok(pool.connect_with(options).await?)
    }

    /// A transaction of somebody else that holds the lock of the key's row.
    pub async fn lock(&self, key: KeyHash) -> anyhow::Result<Transaction<'static, MySql>> {
        let mut transaction = self.pool("SET autocommit = 1").await?.begin().await?;
        let locking =
            sqlx::query("SELECT key_hash FROM idempotency_records WHERE key_hash = ? FOR UPDATE");
        locking.bind(key.as_bytes().to_vec()).fetch_one(&mut *transaction).await?;
        Ok(transaction)
    }

    pub async fn completed(&self, key: KeyHash) -> anyhow::Result<()> {
        let token = fresh();
        mine(self.store.claim(claim(key, token)).await?);
        assert_eq!(self.store.complete(commit(key, token)).await?, WriteOutcome::Applied);
        Ok(())
    }
}

pub fn patient(url: &str) -> MySqlStoreBuilder {
    MySqlStore::builder(url).response_timeout(PATIENCE)
}

pub fn key(number: u64) -> KeyHash {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    KeyHash::from_bytes(bytes)
}

/// A token that no other call has.
pub fn fresh() -> Token {
    Token::from_bits(uuid::Uuid::new_v4().as_u128())
}

pub fn claim(key: KeyHash, token: Token) -> Claim {
    let mut claim = Claim::new(key, token, "payments.charge".into());
    (claim.lease, claim.linger, claim.ttl, claim.policy) = (LEASE, DAY, DAY, CrashPolicy::Hold);
    claim
}

pub fn commit(key: KeyHash, token: Token) -> Commit {
    Commit::new(key, token, Bytes::from_static(b"receipt 1"), DAY)
}

#[track_caller]
pub fn mine(claimed: ClaimOutcome) -> Record {
    match claimed {
        ClaimOutcome::Granted(grant) => grant.record,
        held => panic!("not granted: {held:?}"),
    }
}

#[track_caller]
pub fn held(claimed: ClaimOutcome) -> Record {
    match claimed {
        ClaimOutcome::Existing(record) => record,
        mine => panic!("granted: {mine:?}"),
    }
}

/// Everything that a store does, to the records of the keys from `first` on.
pub async fn everything(store: &MySqlStore, first: u64) -> Result<(), StoreError> {
    use idempotency::store::{
        Abandon, Checkpoint, Park, Reason, Release, Remove, Renewal, Scan, State,
    };

    let (one, two, token) = (key(first), key(first + 1), fresh());
    let with_policy = |key| {
        let mut claim = claim(key, token);
        claim.policy = CrashPolicy::Retry;
        claim
    };
    assert!(store.read(one).await?.is_none());
    let first = mine(store.claim(with_policy(one)).await?);
    assert_eq!(first.lease_until, first.read_at + LEASE);
    assert!(held(store.claim(claim(one, fresh())).await?).is_running());
    assert_eq!(store.release(Release::new(one, token)).await?, WriteOutcome::Applied);
    mine(store.claim(with_policy(one)).await?);
    mine(store.claim(with_policy(two)).await?);
    let renewals = [one, two].map(|key| Renewal::new(key, token, LEASE * 2));
    assert_eq!(store.renew(renewals.to_vec()).await?, [WriteOutcome::Applied; 2]);
    assert!(store.fence(one, token).await?.is_some());
    let checkpoint = Checkpoint::new(one, token, 0, Bytes::from_static(b"step"));
    assert_eq!(store.checkpoint(checkpoint).await?, WriteOutcome::Applied);
    assert_eq!(
        store.abandon(Abandon::new(one, token, Reason::Dropped)).await?,
        WriteOutcome::Applied
    );
    let next = fresh();
    let mut again = with_policy(one);
    again.token = next;
    assert_eq!(mine(store.claim(again).await?).attempts, 2);
    assert_eq!(store.complete(commit(one, next)).await?, WriteOutcome::Applied);
    assert_eq!(held(store.claim(claim(one, fresh())).await?).body, "receipt 1");
    let empty = Commit::new(two, token, Bytes::new(), DAY);
    assert_eq!(store.complete(empty).await?, WriteOutcome::Applied);
    assert_eq!(held(store.claim(claim(two, fresh())).await?).body, "");
    assert_eq!(store.watch(two).await?.record.map(|record| record.state), Some(State::Completed));
    let three = {
        let mut bytes = *two.as_bytes();
        bytes[31] = b' ';
        KeyHash::from_bytes(bytes)
    };
    assert!(store.read(three).await?.is_none(), "keys are compared byte by byte");
    mine(store.claim(with_policy(three)).await?);
    assert_eq!(store.park(Park::own(three, token, Reason::Panicked)).await?, WriteOutcome::Applied);
    assert_eq!(store.read(three).await?.map(|record| record.state), Some(State::InDoubt));
    assert_eq!(
        store
            .scan(Scan::default())
            .await?
            .records
            .iter()
            .filter(|record| record.owner == token)
            .count(),
        2
    );
    let mut remove = Remove::new(three, token);
    remove.force = true;
    store.remove(remove).await?;
    store.purge(100).await?;
    Ok(())
}
