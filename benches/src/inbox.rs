//! Messages whose record is in one transaction with their effect, beside an inbox that is written by
//! hand: `INSERT … ON CONFLICT DO NOTHING`, the effect, `COMMIT`.

use std::time::Duration;

use anyhow::ensure;
use idempotency::Idempotency;
use idempotency::inbox::{Delivery, Disposition, Inbox};
use idempotency::store::PostgresStore;
use idempotency::tx::OpenTransaction;
use idempotency_test_support::server::{PostgresOptions, PostgresServer};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{PgConnection, Postgres};

use crate::measure::{Row, Target, Turns, latency, throughput};

const TABLES: &str = "CREATE TABLE effects (id bigint, payload text);
    CREATE TABLE inbox (consumer text, id text, handled timestamptz DEFAULT now(), PRIMARY KEY (consumer, id))";
const TTL: Duration = Duration::from_secs(14 * 86_400);
const HAND_WRITTEN: &str = "an inbox by hand: `INSERT … ON CONFLICT`, effect, `COMMIT`";

async fn effect(connection: &mut PgConnection, number: u64) -> Result<(), sqlx::Error> {
    let effect = sqlx::query("INSERT INTO effects VALUES ($1, $2)");
    let effect = effect.bind(i64::try_from(number).unwrap_or(i64::MAX)).bind("paid");
    effect.execute(connection).await.map(drop)
}

/// Handles one message by hand.
async fn by_hand(pool: PgPool, number: u64) -> anyhow::Result<()> {
    let mut transaction = pool.begin().await?;
    let first = sqlx::query(
        "INSERT INTO inbox (consumer, id) VALUES ('billing', $1) ON CONFLICT DO NOTHING",
    );
    let first = first.bind(format!("message-{number}")).execute(&mut *transaction).await?;
    ensure!(first.rows_affected() == 1, "it is the first");
    effect(&mut transaction, number).await?;
    Ok(transaction.commit().await?)
}

async fn handle(inbox: Inbox, pool: PgPool, number: u64) -> anyhow::Result<()> {
    let id = format!("message-{number}");
    let delivery = Delivery::new(("id", &id)).payload(b"paid");
    let book = |mut transaction: OpenTransaction<Postgres>| async move {
        effect(&mut transaction, number).await
    };
    let handled = inbox.handle_in(&pool, delivery, book).await;
    ensure!(handled.disposition == Disposition::Ack, "{handled:?}");
    Ok(())
}

async fn open(options: PostgresOptions) -> anyhow::Result<(PostgresServer, PgPool, Inbox)> {
    let server = PostgresServer::start(options).await?;
    let url = server.database("bench").await?;
    server.sql_at(&url, TABLES).await?;
    let pool = PgPoolOptions::new().max_connections(32).connect(&url).await?;
    let store = PostgresStore::from_pool(pool.clone());
    store.migrate().await?;
    let inbox = Inbox::new(Idempotency::new(store), "billing", TTL);
    Ok((server, pool, inbox))
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let (_quick, pool, inbox) = open(PostgresOptions::new()).await?;
    let many = Row::new(
        "inbox in a PostgreSQL transaction, throughput, 32 at once, without fsync",
        HAND_WRITTEN,
        Target::AtLeast(0.75),
    );
    let turns = Turns { rounds: 9, calls: 8_000 };
    let (hand, consumer) = (pool.clone(), (inbox.clone(), pool.clone()));
    let many = throughput(
        many,
        turns,
        32,
        move |number| {
            let (inbox, pool) = consumer.clone();
            handle(inbox, pool, number)
        },
        move |number| by_hand(hand.clone(), number),
    )
    .await?;

    let (_durable, pool, inbox) = open(PostgresOptions::new().durable()).await?;
    let one = Row::new(
        "inbox in a PostgreSQL transaction, one at a time, with fsync (time of the reference by time of the message)",
        HAND_WRITTEN,
        Target::AtLeast(0.85),
    );
    let turns = Turns { rounds: 15, calls: 200 };
    // Inverted: the remaining share of the reference's speed.
    let one = latency(
        one,
        turns,
        |number| by_hand(pool.clone(), number),
        |number| handle(inbox.clone(), pool.clone(), number),
    )
    .await?;
    Ok(vec![many, one])
}
