//! The Redis store beside a raw `GET` on the same kind of connection.

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use idempotency::Idempotency;
use idempotency::store::RedisStore;
use idempotency_test_support::server::{RedisOptions, RedisServer};
use redis::aio::MultiplexedConnection;

use crate::cpu;
use crate::measure::{Row, Target, Turns, latency, processor, throughput};
use crate::receipt::{HOT, KEYS, Order, Receipt, charge, decode, export};

const SMALL: &str = "small";
const LARGE: &str = "large";

type Work = BoxFuture<'static, anyhow::Result<()>>;

pub struct World {
    pub server: RedisServer,
    pub engine: Idempotency,
    pub connection: MultiplexedConnection,
}

impl World {
    pub async fn new() -> anyhow::Result<Self> {
        let server = RedisServer::start(RedisOptions::new().private()).await?;
        let store = RedisStore::connect(&server.url()).await?;
        let engine = Idempotency::builder(store).max_result_size(2 * 1024 * 1024).build()?;
        let client = redis::Client::open(server.url())?;
        let connection = client.get_multiplexed_async_connection().await?;
        Ok(Self { server, engine, connection })
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.server.pid().context("the server is a process of this one")
    }

    async fn set(&self, name: String, receipt: &Receipt) -> anyhow::Result<()> {
        let value = serde_json::to_vec(receipt)?;
        redis::cmd("SET")
            .arg(name)
            .arg(value)
            .query_async::<()>(&mut self.connection.clone())
            .await?;
        Ok(())
    }

    /// Returns a raw `GET` with decoding, of one key after the other out of `keys`.
    fn get(&self, name: &'static str, keys: u64) -> impl Fn(u64) -> Work + Send + Sync + use<> {
        let connection = self.connection.clone();
        move |number| {
            let mut connection = connection.clone();
            async move {
                let name = format!("{name}:{}", number % keys);
                let value: Vec<u8> =
                    redis::cmd("GET").arg(name).query_async(&mut connection).await?;
                decode(&value).map(drop)
            }
            .boxed()
        }
    }

    /// Returns a call that replays, of one key after the other out of `keys`.
    fn hit(&self, keys: u64) -> impl Fn(u64) -> Work + Send + Sync + use<> {
        let engine = self.engine.clone();
        move |number| {
            let engine = engine.clone();
            async move { Ok(charge(&engine, &Order::new(number % keys)).await.map(drop)?) }.boxed()
        }
    }
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let world = World::new().await?;
    for key in 0..KEYS {
        world.set(format!("{SMALL}:{key}"), &Receipt::of(&Order::new(key))).await?;
        charge(&world.engine, &Order::new(key)).await?;
    }
    world
        .set(format!("{LARGE}:0"), &Receipt::with_note(&Order::new(HOT), "x".repeat(1_000_000)))
        .await?;
    export(&world.engine, HOT).await?;
    let servers = [world.pid()?];
    let get = "raw `GET` + decode";
    let one = Turns { rounds: 20, calls: 1_000 };
    let many = Turns { rounds: 9, calls: 20_000 };
    let few = Turns { rounds: 7, calls: 200 };

    let hit = Row::new("Redis hit, p50, 1 client", get, Target::AtMost(1.3));
    let hit = latency(hit, one, world.hit(1), world.get(SMALL, 1)).await?;
    let of_both = Row::new(
        "Redis hit, processor of client and server for each call, 64 clients",
        get,
        Target::AtMost(1.8),
    );
    let of_both = processor(
        of_both,
        many,
        64,
        || cpu::together(&servers),
        world.hit(KEYS),
        world.get(SMALL, KEYS),
    )
    .await?;
    let calls = Row::new("Redis hit, throughput, 256 clients", get, Target::AtLeast(0.65));
    let calls = throughput(calls, many, 256, world.hit(KEYS), world.get(SMALL, KEYS)).await?;
    let miss = Row::new("Redis miss, p50, 1 client", get, Target::AtMost(3.0));
    let engine = world.engine.clone();
    let first = |number| {
        let engine = engine.clone();
        async move { Ok(charge(&engine, &Order::new(number)).await.map(drop)?) }
    };
    let miss = latency(miss, one, first, world.get(SMALL, 1)).await?;
    let large = Row::new("Redis hit, 1 MB, processor of the server", get, Target::AtMost(1.2));
    let engine = world.engine.clone();
    let hit_large = move |_| {
        let engine = engine.clone();
        async move { Ok(export(&engine, HOT).await.map(drop)?) }
    };
    let large =
        processor(large, few, 1, || cpu::of(&servers), hit_large, world.get(LARGE, 1)).await?;
    Ok(vec![hit, of_both, calls, miss, large])
}
