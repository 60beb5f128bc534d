//! A pooler that gives every transaction another session, and does not know prepared statements,
//! lets a client run the statement that another client has prepared under the same name.

use idempotency::store::PostgresStore;
use idempotency::{Error, ErrorKind, Idempotency};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

use crate::world::{DAY, OPERATION, PATIENCE, World, patient};

/// The table of another service in the same database.
const OTHER_TABLE: &str = "other_records";

/// Lists the statements that a service has prepared in its session.
const PREPARED: &str = "SELECT name, statement, array_to_string(parameter_types, ', ')
    FROM pg_prepared_statements WHERE statement LIKE '%_records%'";

/// A service and another one, each with one session.
struct Services {
    world: World,
    pool: PgPool,
    engine: Idempotency,
    others_pool: PgPool,
    others: Idempotency,
}

impl Services {
    async fn new() -> anyhow::Result<Self> {
        let world = World::new().await?;
        patient(&world.url).table(OTHER_TABLE).connect().await?.migrate().await?;
        world.sql("CREATE TABLE charges (number INTEGER)").await?;
        let one_session =
            async || PgPoolOptions::new().max_connections(1).connect(&world.url).await;
        let (pool, others_pool) = (one_session().await?, one_session().await?);
        let engine = engine(PostgresStore::from_pool(pool.clone()))?;
        let others = PostgresStore::builder(others_pool.clone()).table(OTHER_TABLE).build()?;
        let others = self::engine(others)?;
        Ok(Self { world, pool, engine, others_pool, others })
    }

    /// Has the session run what the other service has prepared under the same names in its own, as
    /// a pooler does that gives the one service the session of the other.
    async fn swap_sessions(&self) -> anyhow::Result<()> {
        let prepared = sqlx::query_as::<_, (String, String, String)>(PREPARED).persistent(false);
        let prepared = prepared.fetch_all(&self.others_pool).await?;
        anyhow::ensure!(!prepared.is_empty(), "the other service has prepared nothing");
        let mut session = self.pool.acquire().await?;
        for (name, statement, types) in prepared {
            let swap = format!("DEALLOCATE {name}; PREPARE {name} ({types}) AS {statement}");
            sqlx::raw_sql(AssertSqlSafe(swap)).execute(&mut *session).await?;
        }
        Ok(())
    }

    /// Has each name stand for the statement of another one.
    async fn rotate_names(&self) -> anyhow::Result<()> {
        let mut session = self.pool.acquire().await?;
        let prepared = sqlx::query_as::<_, (String, String, String)>(PREPARED).persistent(false);
        let prepared = prepared.fetch_all(&mut *session).await?;
        anyhow::ensure!(prepared.len() > 1, "no two statements to exchange");
        let others = prepared.iter().cycle().skip(1);
        for ((name, ..), (_, statement, types)) in prepared.iter().zip(others) {
            let swap = format!("DEALLOCATE {name}; PREPARE {name} ({types}) AS {statement}");
            sqlx::raw_sql(AssertSqlSafe(swap)).execute(&mut *session).await?;
        }
        Ok(())
    }

    /// A charge, which counts itself in the database.
    async fn charge(&self, engine: &Idempotency, number: i32) -> Result<i32, Error> {
        let body = async move || {
            let charge = format!("INSERT INTO charges VALUES ({number})");
            self.world.sql(&charge).await.expect("the charge");
            Ok::<_, Error>(number)
        };
        engine.call(OPERATION, number).ttl(DAY).run(body).await
    }

    async fn charges(&self, number: i32) -> anyhow::Result<i64> {
        let count = format!("SELECT count(*) FROM charges WHERE number = {number}");
        crate::world::number(&self.world.sql(&count).await?)
    }

    /// The same service in another process, with sessions of its own.
    fn elsewhere(&self) -> anyhow::Result<Idempotency> {
        engine(self.world.store.clone())
    }
}

fn engine(store: PostgresStore) -> anyhow::Result<Idempotency> {
    Ok(Idempotency::builder(store).claim_timeout(PATIENCE).build()?)
}

#[tokio::test]
async fn a_claim_that_another_clients_statement_has_made_is_none() -> anyhow::Result<()> {
    let services = Services::new().await?;
    services.charge(&services.engine, 1).await?;
    services.charge(&services.others, 1).await?;
    services.swap_sessions().await?;
    let first = services.charge(&services.engine, 2).await;
    let again = services.charge(&services.elsewhere()?, 2).await;
    assert_eq!(services.charges(2).await?, 1, "{first:?}, {again:?}");
    assert_eq!(again?, 2);
    Ok(())
}

/// The server refuses the values of one statement for another one, before it does anything.
#[tokio::test]
async fn values_that_another_clients_statement_refuses_name_the_pooler() -> anyhow::Result<()> {
    let services = Services::new().await?;
    services.charge(&services.engine, 1).await?;
    services.rotate_names().await?;
    let error = services.charge(&services.engine, 2).await.unwrap_err();
    let chain = format!("{error:?}");
    assert!(
        error.kind() == ErrorKind::Config && chain.contains("without_prepared_statements"),
        "{chain}"
    );
    assert_eq!(services.charges(2).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_claim_in_a_transaction_that_another_clients_statement_has_made_is_none()
-> anyhow::Result<()> {
    let services = Services::new().await?;
    let charge = async |engine: &Idempotency, pool: &PgPool, number: i32| {
        let mut transaction = pool.begin().await?;
        let body = async |connection: &mut sqlx::PgConnection| {
            let charge = AssertSqlSafe(format!("INSERT INTO charges VALUES ({number})"));
            sqlx::raw_sql(charge).execute(connection).await.expect("the charge");
            Ok::<_, Error>(number)
        };
        let call = engine.call(OPERATION, number).ttl(DAY);
        let result = call.run_in(&mut transaction, body).await;
        transaction.commit().await?;
        anyhow::Ok(result)
    };
    charge(&services.engine, &services.pool, 1).await??;
    charge(&services.others, &services.others_pool, 1).await??;
    services.swap_sessions().await?;
    let first = charge(&services.engine, &services.pool, 2).await;
    let again = services.charge(&services.elsewhere()?, 2).await;
    assert_eq!(services.charges(2).await?, 1, "{first:?}, {again:?}");
    let error = format!("{:?}", first.and_then(|result| Ok(result?)).unwrap_err());
    assert!(error.contains("without_prepared_statements"), "{error}");
    assert_eq!(again?, 2);
    Ok(())
}
