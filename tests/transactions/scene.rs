//! What the tests on all databases share: a table of effects beside the records, and one guarded
//! call that adds to it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::record::State;
use idempotency::store::SqlTransaction;
use idempotency::tx::{TransactionDatabase, in_transaction};
use idempotency::{Call, Idempotency, OnConflict};
use sqlx::{Pool, Transaction};

use crate::world::{DAY, Fault, OPERATION};

/// How long a caller waits for the transactions of others.
const PATIENCE: Duration = Duration::from_secs(20);

pub type Connection<D> = <<D as Database>::Sqlx as sqlx::Database>::Connection;

/// A database under test. Its table `effects` has one row for each time that a body ran and was
/// committed.
pub trait Database: Sized + 'static {
    type Sqlx: TransactionDatabase;

    /// A server or a directory, with a database of its own.
    async fn start() -> anyhow::Result<Self>;

    /// Where the database is.
    fn url(&self) -> String;

    /// A pool, and an engine whose records are in the same database. Makes the tables that are
    /// missing.
    async fn open(
        url: &str,
        connections: u32,
        isolation: Option<&str>,
    ) -> anyhow::Result<(Pool<Self::Sqlx>, Idempotency)>;

    /// The effect.
    async fn add(
        connection: &mut Connection<Self>,
        key: &str,
        value: &str,
    ) -> Result<(), sqlx::Error>;

    /// All effects: keys and values.
    async fn effects(pool: &Pool<Self::Sqlx>) -> Result<Vec<(String, String)>, sqlx::Error>;

    /// Ends a connection that works, on the side of the server. False if there is none, or no
    /// server.
    async fn kill_a_backend(&self) -> anyhow::Result<bool>;
}

/// A database on a server, which is reached over a connection that can fail.
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub trait Remote: Database {
    const PROTOCOL: idempotency_test_support::proxy::Protocol;

    fn address(&self) -> String;
}

/// An open database.
pub struct Scene<D: Database> {
    pub database: D,
    pub pool: Pool<D::Sqlx>,
    pub engine: Idempotency,
}

/// What becomes of a call and its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Commit,
    /// The body fails after its effect, and the caller commits all the same.
    CommitError,
    /// The call succeeds, and the caller rolls back.
    RollBack,
}

impl<D: Database> Scene<D> {
    pub async fn new(connections: u32, isolation: Option<&str>) -> anyhow::Result<Self> {
        let database = D::start().await?;
        let (pool, engine) = D::open(&database.url(), connections, isolation).await?;
        Ok(Self { database, pool, engine })
    }

    /// The values of the effects, by key.
    pub async fn effects(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let mut effects = BTreeMap::<_, Vec<_>>::new();
        for (key, value) in D::effects(&self.pool).await? {
            effects.entry(key).or_default().push(value);
        }
        Ok(effects)
    }

    /// That there is one effect for each completed record and none for any other key, and that all
    /// `answers` tell of it.
    pub async fn is_exact(
        &self,
        keys: &[String],
        answers: &[(String, String)],
    ) -> anyhow::Result<()> {
        let effects = self.effects().await?;
        for key in keys {
            let record = self.engine.record(OPERATION, key.as_str()).inspect().await?;
            let state = record.map(|record| record.state);
            let of_key = effects.get(key).map_or(&[][..], Vec::as_slice);
            ensure!(
                matches!(state, None | Some(State::Completed)),
                "the record of {key} is {state:?}"
            );
            ensure!(
                of_key.len() == usize::from(state.is_some()),
                "{key} is {state:?} and has the effects {of_key:?}"
            );
        }
        let mut told = HashMap::<_, Vec<_>>::new();
        for (key, answer) in answers {
            told.entry(key).or_default().push(answer);
        }
        for (key, answers) in told {
            let effect = effects
                .get(key)
                .with_context(|| format!("{key} was answered and has no effect"))?;
            let other = answers.iter().find(|answer| **answer != &effect[0]);
            ensure!(
                other.is_none(),
                "the effect of {key} is {effect:?}, and a caller got {other:?}"
            );
        }
        Ok(())
    }
}

pub fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

pub fn call(engine: &Idempotency, key: &str) -> Call {
    engine.call(OPERATION, key).ttl(DAY).on_conflict(OnConflict::Wait(PATIENCE))
}

/// One guarded call in a transaction that makes itself again. `None` if the error of its body was
/// committed.
///
/// `in_body` is told when the body runs.
pub async fn charge<D: Database>(
    pool: &Pool<D::Sqlx>,
    engine: &Idempotency,
    key: &str,
    ending: Ending,
    in_body: &impl Fn(),
) -> Result<Option<String>, Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    in_transaction(pool, |mut transaction| async move {
        let call = call(engine, key).run_in(&mut transaction, async |connection| {
            in_body();
            let value = uuid::Uuid::new_v4().to_string();
            D::add(connection, key, &value).await?;
            if ending == Ending::CommitError { Err(Fault::No) } else { Ok(value) }
        });
        match (call.await, ending) {
            (Err(Fault::No), Ending::CommitError) => Ok(None),
            (Ok(_), Ending::RollBack) => Err(Fault::No),
            (result, _) => result.map(Some),
        }
    })
    .await
}
