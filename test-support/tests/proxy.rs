//! The proxy in front of a real server: the server itself shows what reaches it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use idempotency_test_support::deadline::{eventually, eventually_async, within};
use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

struct Scene {
    server: RedisServer,
    proxy: Proxy,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let server = RedisServer::start(RedisOptions::new().private()).await?;
        let proxy = Proxy::start(server.address()).await?;
        Ok(Self { server, proxy })
    }

    async fn client(&self) -> anyhow::Result<TcpStream> {
        Ok(TcpStream::connect(self.proxy.address()).await?)
    }

    /// Returns the value on the server, read without the proxy.
    async fn stored(&self) -> anyhow::Result<String> {
        self.server.command(&["GET", "key"]).await
    }
}

async fn answer(client: &mut TcpStream, request: &[u8], expected: &[u8]) -> anyhow::Result<()> {
    client.write_all(request).await?;
    let mut answer = vec![0; expected.len()];
    within("the answer", client.read_exact(&mut answer)).await??;
    assert_eq!(answer, expected, "{}", answer.escape_ascii());
    Ok(())
}

/// All that the client still hears until its connection ends, and how it ends.
async fn rest(client: &mut TcpStream) -> anyhow::Result<(Vec<u8>, Option<ErrorKind>)> {
    let mut heard = Vec::new();
    let end = within("the end of the connection", client.read_to_end(&mut heard)).await?;
    Ok((heard, end.err().map(|error| error.kind())))
}

#[tokio::test]
async fn without_faults_everything_passes_and_is_counted() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut client = scene.client().await?;
    answer(&mut client, &[SET, PING, b"ping\r\n"].concat(), b"+OK\r\n+PONG\r\n+PONG\r\n").await?;
    let large = "x".repeat(1_000_000);
    let request = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$1000000\r\n{large}\r\n");
    answer(&mut client, request.as_bytes(), b"+OK\r\n").await?;
    answer(&mut client, b"GET large\r\n", format!("$1000000\r\n{large}\r\n").as_bytes()).await?;
    assert_eq!(scene.stored().await?, "value");
    assert_eq!((scene.proxy.requests_of("set"), scene.proxy.requests_of("PING")), (2, 2));
    assert_eq!((scene.proxy.requests(), scene.proxy.requests_by_command().len()), (5, 3));
    assert_eq!(scene.proxy.connections(), 1);
    drop(client);
    eventually("the connection to end", || scene.proxy.connections() == 0).await
}

#[tokio::test]
async fn what_is_sent_without_waiting_is_one_round_trip() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut client = scene.client().await?;
    // One that arrives in several pieces, and another after it.
    let large = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$300000\r\n{}\r\n", "x".repeat(300_000));
    scene.server.pause()?;
    client.write_all(&[large.as_bytes(), PING].concat()).await?;
    eventually("both requests", || scene.proxy.requests() == 2).await?;
    scene.server.resume()?;
    answer(&mut client, b"", b"+OK\r\n+PONG\r\n").await?;
    assert_eq!(scene.proxy.round_trips(), 1);
    for _ in 0..2 {
        answer(&mut client, PING, b"+PONG\r\n").await?;
    }
    assert_eq!(scene.proxy.round_trips(), 3);
    Ok(())
}

#[tokio::test]
async fn a_fault_strikes_exactly_at_its_moment() -> anyhow::Result<()> {
    for moment in Moment::ALL {
        for action in [Action::Close, Action::Reset] {
            let scene = Scene::new().await?;
            let mut client = scene.client().await?;
            answer(&mut client, PING, b"+PONG\r\n").await?;
            let fault = scene.proxy.next("set", Fault::new(moment, action));
            client.write_all(&[PING, SET, PING].concat()).await?;
            let (heard, end) = rest(&mut client).await?;
            fault.happened().await?;

            let applied = matches!(moment, Moment::AfterRequest | Moment::InsideAnswer);
            assert_eq!(
                scene.stored().await?,
                if applied { "value" } else { "" },
                "{moment:?} {action:?}"
            );
            // A reset takes back what the client has not read.
            if action == Action::Close {
                let expected: &[u8] =
                    if moment == Moment::InsideAnswer { b"+PONG\r\n+O" } else { b"+PONG\r\n" };
                // Before the request, the answer to the earlier one may be lost too.
                assert!(
                    heard == expected || !applied && heard.is_empty(),
                    "{moment:?} {}",
                    heard.escape_ascii()
                );
            }
            let reset = (action == Action::Reset).then_some(ErrorKind::ConnectionReset);
            assert_eq!(end, reset, "{moment:?} {action:?}");
            assert_eq!(scene.proxy.requests_of("SET"), 1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_silenced_connection_stays_open_and_others_go_on() -> anyhow::Result<()> {
    for (moment, stored) in [(Moment::BeforeRequest, ""), (Moment::AfterRequest, "value")] {
        let scene = Scene::new().await?;
        let mut client = scene.client().await?;
        let fault = scene.proxy.next("SET", Fault::new(moment, Action::Silence));
        client.write_all(&[SET, PING].concat()).await?;
        fault.happened().await?;
        assert_eq!(scene.stored().await?, stored);
        answer(&mut scene.client().await?, PING, b"+PONG\r\n").await?;
        // Nothing can arrive however long this waits: a fault without effect fails here.
        let mut byte = [0];
        assert!(
            tokio::time::timeout(Duration::from_millis(100), client.read(&mut byte)).await.is_err()
        );
        scene.proxy.close_all();
        assert_eq!(rest(&mut client).await?, (Vec::new(), None));
    }
    Ok(())
}

#[tokio::test]
async fn the_nth_matching_request_is_counted_over_all_connections() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let fault = Fault::new(Moment::BeforeRequest, Action::Close);
    let planned = scene.proxy.nth(
        3,
        |request| request.mentions("key") && request.arguments().len() == 2,
        fault,
    );
    let (mut first, mut second) = (scene.client().await?, scene.client().await?);
    answer(&mut first, SET, b"+OK\r\n").await?;
    answer(&mut second, b"GET key\r\n", b"$5\r\nvalue\r\n").await?;
    answer(&mut second, SET, b"+OK\r\n").await?;
    first.write_all(b"SET key late\r\n").await?;
    assert_eq!(rest(&mut first).await?, (Vec::new(), None));
    planned.happened().await?;
    // It struck once.
    answer(&mut second, SET, b"+OK\r\n").await
}

#[tokio::test]
async fn a_standing_fault_strikes_until_it_is_cleared() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let fault = Fault::new(Moment::BeforeRequest, Action::Close);
    scene.proxy.every(|request| request.command() == "SET", fault);
    let never = scene.proxy.next("PING", fault);
    for _ in 0..3 {
        let mut client = scene.client().await?;
        client.write_all(SET).await?;
        assert_eq!(rest(&mut client).await?, (Vec::new(), None));
    }
    scene.proxy.clear();
    answer(&mut scene.client().await?, &[SET, PING].concat(), b"+OK\r\n+PONG\r\n").await?;
    assert!(never.happened().await.unwrap_err().to_string().contains("cleared"));
    Ok(())
}

#[tokio::test]
async fn delays_are_latency_in_each_direction() -> anyhow::Result<()> {
    const DELAY: Duration = Duration::from_millis(500);
    type Set = fn(&Proxy, Duration);
    for set in [Proxy::delay_requests as Set, Proxy::delay_answers as Set] {
        let scene = Scene::new().await?;
        let mut client = scene.client().await?;
        set(&scene.proxy, DELAY);
        let start = Instant::now();
        // They travel together: with a separate delay for each, the answers would miss the
        // deadline.
        answer(&mut client, &PING.repeat(100), &b"+PONG\r\n".repeat(100)).await?;
        assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
        set(&scene.proxy, Duration::ZERO);
        answer(&mut client, PING, b"+PONG\r\n").await?;
    }
    Ok(())
}

#[tokio::test]
async fn half_open_connections_hear_nothing_until_they_heal() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut client = scene.client().await?;
    answer(&mut client, PING, b"+PONG\r\n").await?;
    scene.proxy.half_open();
    client.write_all(SET).await?;
    let mut late = scene.client().await?;
    late.write_all(PING).await?;
    let mut byte = [0];
    assert!(
        tokio::time::timeout(Duration::from_millis(100), client.read(&mut byte)).await.is_err()
    );
    assert_eq!(scene.stored().await?, "");
    scene.proxy.heal();
    answer(&mut client, b"", b"+OK\r\n").await?;
    answer(&mut late, b"", b"+PONG\r\n").await
}

#[tokio::test]
async fn held_answers_keep_no_request_from_the_server() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut client = scene.client().await?;
    scene.proxy.hold_answers();
    client.write_all(SET).await?;
    eventually_async("the server to apply it", async || {
        scene.stored().await.is_ok_and(|stored| stored == "value")
    })
    .await?;
    client.write_all(PING).await?;
    eventually("the second request", || scene.proxy.requests() == 2).await?;
    let mut byte = [0];
    assert!(
        tokio::time::timeout(Duration::from_millis(100), client.read(&mut byte)).await.is_err()
    );
    scene.proxy.heal();
    answer(&mut client, b"", b"+OK\r\n+PONG\r\n").await?;
    assert_eq!(scene.proxy.round_trips(), 1);
    Ok(())
}

#[tokio::test]
async fn all_connections_can_be_closed_or_reset() -> anyhow::Result<()> {
    type End = fn(&Proxy);
    let scene = Scene::new().await?;
    let ends = [
        (Proxy::close_all as End, None),
        (Proxy::reset_all as End, Some(ErrorKind::ConnectionReset)),
    ];
    for (end, expected) in ends {
        let (mut first, mut second) = (scene.client().await?, scene.client().await?);
        answer(&mut first, PING, b"+PONG\r\n").await?;
        answer(&mut second, PING, b"+PONG\r\n").await?;
        end(&scene.proxy);
        assert_eq!(rest(&mut first).await?, (Vec::new(), expected));
        assert_eq!(rest(&mut second).await?, (Vec::new(), expected));
        answer(&mut scene.client().await?, PING, b"+PONG\r\n").await?;
    }
    Ok(())
}

#[tokio::test]
async fn new_connections_are_refused_while_open_ones_go_on() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut client = scene.client().await?;
    answer(&mut client, PING, b"+PONG\r\n").await?;
    scene.proxy.refuse().await?;
    let error = TcpStream::connect(scene.proxy.address()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    answer(&mut client, PING, b"+PONG\r\n").await?;
    scene.proxy.accept().await?;
    answer(&mut scene.client().await?, PING, b"+PONG\r\n").await
}

#[tokio::test]
async fn without_a_server_connections_are_closed_and_work_again_when_it_is_back()
-> anyhow::Result<()> {
    let mut scene = Scene::new().await?;
    scene.server.kill()?;
    let mut client = scene.client().await?;
    assert_eq!(rest(&mut client).await?, (Vec::new(), None));
    scene.server.restart().await?;
    answer(&mut scene.client().await?, PING, b"+PONG\r\n").await
}

#[tokio::test]
async fn pushed_messages_are_no_answers() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let mut client = scene.client().await?;
    client.write_all(b"HELLO 3\r\nCLIENT TRACKING on BCAST\r\n").await?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"+OK\r\n") {
        within("the greeting", client.read_buf(&mut heard)).await??;
    }
    // The message is held until the request has passed: if it counted as an answer, it would be
    // taken for that of the request.
    scene.proxy.delay_answers(Duration::from_millis(100));
    scene.server.command(&["SET", "key", "other"]).await?;
    let planned = scene.proxy.next("PING", Fault::new(Moment::AfterRequest, Action::Close));
    client.write_all(PING).await?;
    let pushed = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n";
    assert_eq!(rest(&mut client).await?, (pushed.to_vec(), None));
    planned.happened().await
}

#[tokio::test]
async fn other_protocols_pass_piece_by_piece() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(listener.local_addr()?.to_string()).await?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    let (mut server, _) = listener.accept().await?;
    // The second piece looks like the beginning of a command, and never ends as one.
    for piece in [&b"\x16\x03\x01"[..], b"*3"] {
        client.write_all(piece).await?;
        let mut read = vec![0; piece.len()];
        within("the piece", server.read_exact(&mut read)).await??;
        assert_eq!(read, piece);
    }
    assert_eq!(proxy.requests_of(""), 2);
    let planned = proxy.nth(1, |_| true, Fault::new(Moment::AfterRequest, Action::Close));
    client.write_all(b"\x17").await?;
    within("the request", server.read_u8()).await??;
    server.write_all(b"\x16answer").await?;
    assert_eq!(rest(&mut client).await?, (Vec::new(), None));
    planned.happened().await
}

#[tokio::test]
async fn urls_lead_through_the_proxy() -> anyhow::Result<()> {
    let proxy = Proxy::start("127.0.0.1:1").await?;
    let address = proxy.address();
    assert_eq!(proxy.url("redis://localhost:6379"), format!("redis://{address}"));
    assert_eq!(
        proxy.url("rediss://u:p@h:1/2?protocol=resp3"),
        format!("rediss://u:p@{address}/2?protocol=resp3")
    );
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_is_dropped_ends_its_connections_and_takes_no_more() -> anyhow::Result<()> {
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(server.local_addr()?.to_string()).await?;
    let address = proxy.address();
    let mut client = TcpStream::connect(address).await?;
    let (_server, _) = within("the connection", server.accept()).await??;
    drop(proxy);
    assert_eq!(rest(&mut client).await?.0, b"");
    // Another test may have been assigned the port by now: whatever listens there is not a proxy to
    // this server.
    let _ = TcpStream::connect(address).await;
    let late = tokio::time::timeout(Duration::from_millis(200), server.accept()).await;
    assert!(late.is_err(), "the proxy still takes connections");
    Ok(())
}
