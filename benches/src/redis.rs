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
use crate::receipt::{HOT, Order, Receipt, charge, decode, export};

const SMALL: &str = "small";
const LARGE: &str = "large";

pub struct World {
    pub server: RedisServer,
    pub engine: Idempotency,
    pub connection: MultiplexedConnection,
}

impl World {
    pub async fn new() -> anyhow::Result<Self> {
        let server = RedisServer::start(RedisOptions::new().private()).await?;
        let store = RedisStore::connect(&server.url()).await?;
        let engine = Idempotency::builder(store).max_result_size(2 * 1024 * 1024).build();
        let client = redis::Client::open(server.url())?;
        let connection = client.get_multiplexed_async_connection().await?;
        Ok(Self { server, engine, connection })
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.server.pid().context("the server is a process of this one")
    }

    async fn set(&self, name: &str, receipt: &Receipt) -> anyhow::Result<()> {
        let value = serde_json::to_vec(receipt)?;
        redis::cmd("SET").arg(name).arg(value).query_async::<()>(&mut self.connection.clone()).await?;
        Ok(())
    }

    /// A raw `GET` and the decoding.
    fn get(&self, name: &'static str) -> impl Fn(u64) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync + use<> {
        let connection = self.connection.clone();
        move |_| {
            let mut connection = connection.clone();
            async move {
                let value: Vec<u8> = redis::cmd("GET").arg(name).query_async(&mut connection).await?;
                decode(&value).map(drop)
            }
            .boxed()
        }
    }

    /// A call that replays.
    fn hit(&self) -> impl Fn(u64) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync + use<> {
        let engine = self.engine.clone();
        move |_| {
            let engine = engine.clone();
            async move { Ok(charge(&engine, &Order::new(HOT)).await.map(drop)?) }.boxed()
        }
    }
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let world = World::new().await?;
    world.set(SMALL, &Receipt::of(&Order::new(HOT))).await?;
    world.set(LARGE, &Receipt::with_note(&Order::new(HOT), "x".repeat(1_000_000))).await?;
    charge(&world.engine, &Order::new(HOT)).await?;
    export(&world.engine, HOT).await?;
    let servers = [world.pid()?];
    let get = "raw `GET` + decode";
    let one = Turns { rounds: 20, calls: 1_000 };
    let many = Turns { rounds: 9, calls: 20_000 };
    let few = Turns { rounds: 7, calls: 200 };

    let hit = Row::new("Redis hit, p50, 1 client", get, Target::AtMost(1.3));
    let hit = latency(hit, one, world.hit(), world.get(SMALL)).await?;
    let of_both =
        Row::new("Redis hit, processor of client and server for each call, 64 clients", get, Target::AtMost(1.8));
    let of_both = processor(of_both, many, 64, || cpu::together(&servers), world.hit(), world.get(SMALL)).await?;
    let calls = Row::new("Redis hit, throughput, 256 clients", get, Target::AtLeast(0.65));
    let calls = throughput(calls, many, 256, world.hit(), world.get(SMALL)).await?;
    let miss = Row::new("Redis miss, p50, 1 client", get, Target::AtMost(3.0));
    let engine = world.engine.clone();
    let first = |number| {
        let engine = engine.clone();
        async move { Ok(charge(&engine, &Order::new(number)).await.map(drop)?) }
    };
    let miss = latency(miss, one, first, world.get(SMALL)).await?;
    let large = Row::new("Redis hit, 1 MB, processor of the server", get, Target::AtMost(1.2));
    let engine = world.engine.clone();
    let hit_large = move |_| {
        let engine = engine.clone();
        async move { Ok(export(&engine, HOT).await.map(drop)?) }
    };
    let large = processor(large, few, 1, || cpu::of(&servers), hit_large, world.get(LARGE)).await?;
    Ok(vec![hit, of_both, calls, miss, large])
}
