//! Consumers of a JetStream stream with an inbox, beside bare loops over the same stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use idempotency::Idempotency;
use idempotency::inbox::Inbox;
use idempotency::store::{MemoryStore, PostgresStore, RedisStore};
use idempotency_nats::StreamMessage;
use idempotency_test_support::server::{
    PostgresOptions, PostgresServer, RedisOptions, RedisServer,
};
use redis::aio::MultiplexedConnection;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::measure::{Row, Target, rates};
use crate::stream::{AT_ONCE, Streams, number};

const ROUNDS: u32 = 9;
const TTL: Duration = Duration::from_secs(7 * 86_400);
const ACK: &str = "bare loop: ack";

/// The servers, and the numbers of messages.
struct World {
    streams: Streams,
    redis: RedisServer,
    postgres: PostgresServer,
    database: String,
    numbers: AtomicU64,
}

impl World {
    async fn start() -> anyhow::Result<Self> {
        let streams = Streams::start().await?;
        let redis = RedisServer::start(RedisOptions::new().private()).await?;
        let postgres = PostgresServer::start(PostgresOptions::new()).await?;
        let database = postgres.database("bench").await?;
        Ok(Self { streams, redis, postgres, database, numbers: AtomicU64::default() })
    }

    /// Numbers that no message has had before.
    fn numbers(&self, count: u32) -> std::ops::Range<u64> {
        let first = self.numbers.fetch_add(count.into(), Ordering::Relaxed);
        first..first + u64::from(count)
    }

    async fn pool(&self) -> anyhow::Result<PgPool> {
        let connections = u32::try_from(AT_ONCE)?;
        let options = PgPoolOptions::new().max_connections(connections);
        Ok(options.connect(&self.database).await?)
    }

    async fn redis_store(&self) -> anyhow::Result<RedisStore> {
        Ok(RedisStore::connect(&self.redis.url()).await?)
    }

    async fn connection(&self) -> anyhow::Result<MultiplexedConnection> {
        let client = redis::Client::open(self.redis.url())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }

    /// New messages with an effect on PostgreSQL.
    async fn effects(&self) -> anyhow::Result<Row> {
        let row = Row::new(
            "messages of JetStream, record on Redis, effect on PostgreSQL, 32 at once, without fsync",
            "bare loop: effect, ack",
            Target::AtLeast(0.4),
        );
        self.postgres
            .sql_at(&self.database, "CREATE TABLE effects (id bigint, payload text)")
            .await?;
        let pool = self.pool().await?;
        let inbox = inbox(Idempotency::new(self.redis_store().await?));
        let work = move |number| effect(pool.clone(), number);
        let count = 8_000;
        rates(
            row,
            ROUNDS,
            async || {
                let filled = self.streams.fill(self.numbers(count)).await?;
                let work = work.clone();
                let handler = move |message: Arc<StreamMessage>| {
                    let work = number(message.payload()).map(&work);
                    async move { work?.await }
                };
                filled.handle(inbox.clone(), handler).await
            },
            async || self.streams.fill(self.numbers(count)).await?.work(work.clone()).await,
        )
        .await
    }

    /// New messages without any effect.
    async fn records(&self) -> anyhow::Result<Row> {
        let row = Row::new(
            "messages of JetStream, record on Redis, no effect",
            "bare loop: `GET`, `SET`, ack",
            Target::AtLeast(0.6),
        );
        let connection = self.connection().await?;
        let inbox = inbox(Idempotency::new(self.redis_store().await?));
        let count = 20_000;
        rates(
            row,
            ROUNDS,
            async || {
                let filled = self.streams.fill(self.numbers(count)).await?;
                filled.handle(inbox.clone(), async |_| Ok(())).await
            },
            async || {
                let filled = self.streams.fill(self.numbers(count)).await?;
                let connection = connection.clone();
                filled.work(move |number| get_and_set(connection.clone(), number)).await
            },
        )
        .await
    }

    /// Messages that were all handled before.
    async fn duplicates(&self, row: Row, engine: Idempotency, count: u32) -> anyhow::Result<Row> {
        let inbox = inbox(engine);
        let numbers = self.numbers(count);
        let first = self.streams.fill(numbers.clone()).await?;
        first.handle(inbox.clone(), async |_| Ok(())).await?;
        rates(
            row,
            ROUNDS,
            async || {
                let filled = self.streams.fill(numbers.clone()).await?;
                filled.handle(inbox.clone(), async |_| bail!("a duplicate is handled")).await
            },
            async || self.streams.fill(numbers.clone()).await?.acknowledge().await,
        )
        .await
    }

    /// The loop with as little inbox as there can be.
    async fn bare(&self) -> anyhow::Result<Row> {
        let row = Row::new(
            "messages of JetStream, record in memory, no effect",
            ACK,
            Target::AtLeast(0.8),
        );
        let inbox = inbox(Idempotency::new(MemoryStore::new()));
        let count = 40_000;
        rates(
            row,
            ROUNDS,
            async || {
                let filled = self.streams.fill(self.numbers(count)).await?;
                filled.handle(inbox.clone(), async |_| Ok(())).await
            },
            async || self.streams.fill(self.numbers(count)).await?.acknowledge().await,
        )
        .await
    }
}

fn inbox(engine: Idempotency) -> Inbox {
    Inbox::new(engine, "billing", TTL)
}

async fn effect(pool: PgPool, number: u64) -> anyhow::Result<()> {
    let effect = sqlx::query("INSERT INTO effects VALUES ($1, $2)");
    effect.bind(i64::try_from(number)?).bind("paid").execute(&pool).await?;
    Ok(())
}

async fn get_and_set(mut connection: MultiplexedConnection, number: u64) -> anyhow::Result<()> {
    let name = format!("message:{number}");
    let known: Option<Vec<u8>> = redis::cmd("GET").arg(&name).query_async(&mut connection).await?;
    if known.is_some() {
        bail!("it was there before");
    }
    Ok(redis::cmd("SET").arg(&name).arg("done").query_async(&mut connection).await?)
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let world = World::start().await?;
    let on_redis = Row::new(
        "duplicates of messages of JetStream, record on Redis",
        ACK,
        Target::AtLeast(0.25),
    );
    let on_postgres = Row::new(
        "duplicates of messages of JetStream, record on PostgreSQL",
        ACK,
        Target::AtLeast(0.15),
    );
    let redis = Idempotency::new(world.redis_store().await?);
    let postgres = PostgresStore::from_pool(world.pool().await?);
    postgres.migrate().await?;
    let postgres = Idempotency::new(postgres);
    Ok(vec![
        world.effects().await?,
        world.records().await?,
        world.duplicates(on_redis, redis, 30_000).await?,
        world.duplicates(on_postgres, postgres, 20_000).await?,
        world.bare().await?,
    ])
}
