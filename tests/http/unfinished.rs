//! Requests that are cut off, too large, repeated, slow or without a usable key: no handler runs,
//! and no record is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use idempotency::Idempotency;
use idempotency::http::{IdempotencyLayer, Scope};
use idempotency::store::{Operation, RedisStore};
use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::client::{Client, raw_post};
use crate::world::{DAY, PATIENCE, Server, Shop, World, memory_directory, router};

/// How many bytes a body may have.
const LIMIT: usize = 1_000;
/// How often each request is sent, all at once.
const COPIES: usize = 8;

const OPEN: &[u8] = b"POST /pay HTTP/1.1\r\nHost: test\r\nIdempotency-Key: \"unfinished\"\r\n";

/// What is left when the client closes the connection, which it does after these bytes.
fn cut_off() -> Vec<Vec<u8>> {
    vec![
        OPEN[..20].to_vec(),
        OPEN.to_vec(),
        [OPEN, b"Content-Length: 100\r\n\r\n"].concat(),
        [OPEN, b"Content-Length: 100\r\n\r\n{\"amount\": 1"].concat(),
        [OPEN, b"Transfer-Encoding: chunked\r\n\r\n"].concat(),
        // A whole chunk, and a part of one: all but the end.
        [OPEN, b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"].concat(),
        [OPEN, b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-trailer: 1\r\n"].concat(),
        [OPEN, b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"].concat(),
    ]
}

/// What is refused, and with which status.
fn refused() -> Vec<(u16, Vec<u8>)> {
    let with = |headers: &[u8]| raw_post("/pay", headers, b"{}");
    let large = "x".repeat(LIMIT + 1);
    let chunk = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n", large.len());
    vec![
        (400, with(b"")),
        (400, with(b"Idempotency-Key: \"\"\r\n")),
        (400, with(b"Idempotency-Key: \"unfinished\r\n")),
        (400, with(b"Idempotency-Key: \"unfinished\"\r\nIdempotency-Key: \"unfinished\"\r\n")),
        (400, with(b"Idempotency-Key: \"unfinished\", \"other\"\r\n")),
        (400, with(format!("Idempotency-Key: \"{}\"\r\n", "k".repeat(256)).as_bytes())),
        (400, [OPEN, b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"].concat()),
        (
            400,
            [OPEN, b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"]
                .concat(),
        ),
        (413, raw_post("/pay", b"Idempotency-Key: \"unfinished\"\r\n", large.as_bytes())),
        // What says that it is too large is refused before it comes.
        (413, [OPEN, b"Connection: close\r\nContent-Length: 1000000000\r\n\r\n"].concat()),
        // Without an end, and refused at the limit.
        (413, [OPEN, chunk.as_bytes()].concat()),
    ]
}

/// Counts the requests that have come in and are not over.
async fn counted(under_way: Arc<AtomicUsize>, request: Request, next: Next) -> Response {
    struct UnderWay(Arc<AtomicUsize>);
    impl Drop for UnderWay {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    under_way.fetch_add(1, Ordering::SeqCst);
    let _here = UnderWay(under_way);
    next.run(request).await
}

struct Scene {
    redis: RedisServer,
    shop: Shop,
    server: Server,
    under_way: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let redis = RedisServer::start(RedisOptions::new().private()).await?;
        let connecting =
            RedisStore::builder(redis.url()).connect_timeout(PATIENCE).response_timeout(PATIENCE);
        let engine = Idempotency::builder(connecting.connect().await?)
            .claim_timeout(PATIENCE)
            .lease(DAY)
            .build()?;
        let layer = IdempotencyLayer::new(engine, Scope::global())
            .with_max_request_body(LIMIT)
            .with_ttl(2 * DAY);
        let directory = memory_directory()?;
        let shop = Shop::open(directory.path())?;
        let under_way = Arc::new(AtomicUsize::default());
        let counting = under_way.clone();
        let count = from_fn(move |request, next| counted(counting.clone(), request, next));
        let server = Server::start(router(&shop, Router::new()).layer(layer).layer(count)).await?;
        Ok(Self { redis, shop, server, under_way, _directory: directory })
    }

    /// Fails unless the store holds as many keys as handlers have run.
    async fn assert_untouched_but_by(&self, answered: usize) -> anyhow::Result<()> {
        let keys: usize = self.redis.command(&["DBSIZE"]).await?.parse()?;
        assert_eq!((keys, self.shop.effects.lines()?.len()), (answered, answered));
        Ok(())
    }

    async fn all_are_over(&self) -> anyhow::Result<()> {
        eventually("all requests to be over", || self.under_way.load(Ordering::SeqCst) == 0).await
    }
}

/// The status of what the server answers.
async fn status(connection: &mut TcpStream) -> anyhow::Result<u16> {
    let mut answer = Vec::new();
    while !answer.windows(2).any(|end| end == b"\r\n") {
        let read = within("an answer", connection.read_buf(&mut answer)).await??;
        ensure!(read > 0, "closed after {}", answer.escape_ascii());
    }
    let head = String::from_utf8_lossy(&answer).into_owned();
    Ok(head.split(' ').nth(1).context("no status")?.parse()?)
}

#[tokio::test]
async fn what_is_refused_or_cut_off_runs_no_handler_and_leaves_no_record() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let client = scene.server.client();
    let mut open = Vec::new();
    for _ in 0..COPIES {
        for request in cut_off() {
            open.push(client.write(request).await?);
        }
        for (expected, request) in refused() {
            let status = status(&mut client.write(&request).await?).await?;
            assert_eq!(status, expected, "{}", request[..request.len().min(200)].escape_ascii());
        }
    }
    // Those whose head is whole are at the layer, and wait for their bodies.
    let bodies = COPIES * (cut_off().len() - 2);
    eventually("the bodies to be waited for", || scene.under_way.load(Ordering::SeqCst) == bodies)
        .await?;
    scene.assert_untouched_but_by(0).await?;
    drop(open);
    scene.all_are_over().await?;
    scene.assert_untouched_but_by(0).await?;
    // The key is as good as new.
    let first = client.post("/pay").key("unfinished").send().await?;
    assert_eq!((first.status, first.is_replayed()), (201, false));
    scene.assert_untouched_but_by(1).await
}

/// The head of a request with a body of 50 bytes.
fn slow_head(key: usize) -> String {
    format!(
        "POST /pay HTTP/1.1\r\nHost: test\r\nIdempotency-Key: slow-{key}\r\nContent-Length: 50\r\n\r\n"
    )
}

/// One frame of HTTP/2 on the first stream of a connection, or about the connection.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The beginning of a request over HTTP/2: its head, and a part of its body.
fn opened(headers: &[(&str, &str)]) -> Vec<u8> {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_HEADERS: u8 = 4;
    let text =
        |text: &str| [&[u8::try_from(text.len()).expect("it is short")], text.as_bytes()].concat();
    // POST and http by their places in the table, the path under its name there, and the others by
    // theirs.
    let mut head = [&[0x83, 0x86, 0x04][..], &text("/pay")].concat();
    for (name, value) in headers {
        head.extend([&[0][..], &text(name), &text(value)].concat());
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let (settings, head) = (frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, &head));
    [&preface[..], &settings, &head, &frame(0, 0, 1, b"{\"amount\": 1")].concat()
}

/// It breaks no connection, and a server need not take it for an error: hyper ends the body then.
#[tokio::test]
async fn a_request_that_is_taken_back_in_the_middle_runs_no_handler_and_leaves_no_record()
-> anyhow::Result<()> {
    const RST_STREAM: u8 = 3;
    const NO_ERROR: u8 = 0;
    const CANCEL: u8 = 8;
    let under_way = Arc::new(AtomicUsize::default());
    let counting = under_way.clone();
    let count = from_fn(move |request, next| counted(counting.clone(), request, next));
    let world = World::setup().around(move |router: Router| router.layer(count)).start().await?;
    let key = ("idempotency-key", "unfinished");
    for headers in [&[key][..], &[key, ("content-length", "100")]] {
        for word in [NO_ERROR, CANCEL] {
            for _ in 0..COPIES {
                let mut connection = world.client.write(opened(headers)).await?;
                eventually("the body to be waited for", || under_way.load(Ordering::SeqCst) == 1)
                    .await?;
                connection.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, word])).await?;
                eventually("the request to be over", || under_way.load(Ordering::SeqCst) == 0)
                    .await?;
                assert_eq!(
                    (world.store.requests(Operation::Claim), world.shop.effects.lines()?.len()),
                    (0, 0),
                    "{headers:?}"
                );
            }
        }
    }
    let first = world.pay("unfinished").send().await?;
    assert_eq!((first.status, first.is_replayed(), world.effects("unfinished")), (201, false, 1));
    Ok(())
}

/// In a task of its own, which goes on when the server drops the request.
async fn in_a_task(under_way: Arc<AtomicUsize>, request: Request, next: Next) -> Response {
    let answer = tokio::spawn(counted(under_way, request, next)).await;
    answer.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

#[tokio::test]
async fn a_request_that_is_taken_back_is_measured_by_what_it_says_whatever_wraps_its_body()
-> anyhow::Result<()> {
    const RST_STREAM: u8 = 3;
    let under_way = Arc::new(AtomicUsize::default());
    let counting = under_way.clone();
    let in_a_task = from_fn(move |request, next| in_a_task(counting.clone(), request, next));
    // Its body does not say how long it is.
    let wrapped = RequestBodyTimeoutLayer::new(DAY);
    let world = World::setup()
        .around(move |router: Router| router.layer(wrapped).layer(in_a_task))
        .start()
        .await?;
    let headers = [("idempotency-key", "unfinished"), ("content-length", "100")];
    for _ in 0..COPIES {
        let mut connection = world.client.write(opened(&headers)).await?;
        eventually("the body to be waited for", || under_way.load(Ordering::SeqCst) == 1).await?;
        connection.write_all(&frame(RST_STREAM, 0, 1, &[0; 4])).await?;
        eventually("the request to be over", || under_way.load(Ordering::SeqCst) == 0).await?;
        assert_eq!(
            (world.store.requests(Operation::Claim), world.shop.effects.lines()?.len()),
            (0, 0)
        );
    }
    let first = world.pay("unfinished").send().await?;
    assert_eq!((first.status, first.is_replayed(), world.effects("unfinished")), (201, false, 1));
    Ok(())
}

/// A body that comes byte by byte, as long as somebody reads it.
async fn trickle(client: &Client, key: usize) -> anyhow::Result<TcpStream> {
    let mut connection = client.write(slow_head(key)).await?;
    connection.set_nodelay(true)?;
    for _ in 0..20 {
        connection.write_all(b"x").await?;
        tokio::task::yield_now().await;
    }
    Ok(connection)
}

#[tokio::test]
async fn slow_bodies_hold_no_claim_and_nobody_else_up() -> anyhow::Result<()> {
    const SLOW: usize = 200;
    let scene = Scene::new().await?;
    let client = scene.server.client();
    let slow = futures::future::try_join_all((0..SLOW).map(|key| trickle(&client, key))).await?;
    eventually("the bodies to be waited for", || scene.under_way.load(Ordering::SeqCst) == SLOW)
        .await?;
    scene.assert_untouched_but_by(0).await?;
    // A slow request has not claimed its key: a whole one with the same key is the first.
    let quick = client.post("/pay").key("slow-0").send().await?;
    assert_eq!((quick.status, quick.is_replayed()), (201, false));
    drop(slow);
    scene.all_are_over().await?;
    scene.assert_untouched_but_by(1).await
}

/// How long a request may take.
async fn in_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(Duration::from_millis(100), next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

#[tokio::test]
async fn a_slow_body_is_bounded_by_a_time_limit_in_front_and_leaves_no_record() -> anyhow::Result<()>
{
    let world =
        World::setup().around(|router: Router| router.layer(from_fn(in_time))).start().await?;
    let mut connections = Vec::new();
    for key in 0..COPIES {
        // Written at once: the limit may cut off whoever is still writing.
        let request = format!("{}{}", slow_head(key), "x".repeat(20));
        connections.push(world.client.write(request).await?);
    }
    for connection in &mut connections {
        assert_eq!(status(connection).await?, 408);
    }
    assert_eq!((world.records().await?, world.shop.effects.lines()?.len()), (0, 0));
    Ok(())
}
