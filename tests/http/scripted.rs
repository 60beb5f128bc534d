//! A service that does what a script says and remembers what it was sent, and the client that is
//! tested against it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as Hyper, Error as HyperError, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use idempotency::clock::Randomness;
use idempotency::http::client::{ClientError, ClientLayer, ClientService, Sent};
use idempotency::testing::ManualClock;
use idempotency_test_support::deadline::{eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower::{Layer as _, Service};

/// What the service does with a request, once it has all of it.
#[derive(Clone, Debug)]
pub enum Step {
    /// It has taken effect, and the connection breaks.
    Close,
    /// It is never answered.
    Hang,
    Answer(u16, Vec<(&'static str, &'static str)>),
}

pub fn answer(status: u16) -> Step {
    Step::Answer(status, Vec::new())
}

pub fn answer_with(status: u16, headers: &[(&'static str, &'static str)]) -> Step {
    Step::Answer(status, headers.to_vec())
}

/// What the service was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub key: Option<String>,
    pub body: String,
}

/// The service. It ends with this value.
pub struct Scripted {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Each request takes a step of the script; after it, all are answered with 201.
    pub async fn start(script: impl IntoIterator<Item = Step>) -> anyhow::Result<Self> {
        let script: Vec<_> = script.into_iter().collect();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = received.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script) = (log.clone(), script.clone());
                tokio::spawn(async move { serve(stream, &log, &script).await });
            }
        });
        Ok(Self { address, received, task })
    }

    pub fn received(&self) -> Vec<Received> {
        lock(&self.received).clone()
    }

    /// The key of each request, in order.
    pub fn keys(&self) -> Vec<String> {
        self.received()
            .into_iter()
            .map(|received| received.key.unwrap_or_else(|| "none".to_owned()))
            .collect()
    }

    /// Waits until so many requests have come.
    pub async fn has_received(&self, count: usize) -> anyhow::Result<()> {
        eventually(format!("{count} requests"), || self.received().len() >= count).await
    }

    pub fn request(&self, method: Method, path: &str) -> Request<String> {
        let request =
            Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        request.body("{}".to_owned()).expect("the request is well-formed")
    }

    pub fn post(&self, path: &str) -> Request<String> {
        self.request(Method::POST, path)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(received: &Mutex<Vec<Received>>) -> MutexGuard<'_, Vec<Received>> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request on one connection.
async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Received>>,
    script: &[Step],
) -> anyhow::Result<()> {
    let received = read(&mut stream).await?;
    let number = {
        let mut log = lock(log);
        log.push(received);
        log.len()
    };
    let (status, headers) = match script.get(number - 1).cloned().unwrap_or_else(|| answer(201)) {
        Step::Close => return Ok(()),
        Step::Hang => return std::future::pending().await,
        Step::Answer(status, headers) => (status, headers),
    };
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let body = format!("answer {number}");
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} Scripted\r\n{}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}",
        headers.concat()
    );
    stream.write_all(text.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

async fn read(stream: &mut TcpStream) -> anyhow::Result<Received> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        anyhow::ensure!(stream.read_buf(&mut bytes).await? > 0, "the request ended in its head");
    };
    let head = String::from_utf8(bytes[..end].to_vec())?;
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .next()
    };
    let length = header("content-length").map_or(Ok(0), |length| length.parse::<usize>())?;
    while bytes.len() < end + length {
        anyhow::ensure!(stream.read_buf(&mut bytes).await? > 0, "the request ended in its body");
    }
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next().context("a method")?, words.next().context("a path")?);
    Ok(Received {
        method,
        path,
        key: header("idempotency-key"),
        body: String::from_utf8(bytes.split_off(end))?,
    })
}

/// hyper, which insists on being asked whether it is ready, as a client with a limit does.
#[derive(Debug)]
pub struct Strict<B> {
    hyper: Hyper<HttpConnector, B>,
    is_ready: bool,
}

impl<B> Clone for Strict<B> {
    fn clone(&self) -> Self {
        Self { hyper: self.hyper.clone(), is_ready: false }
    }
}

impl<B> Strict<B>
where
    B: hyper::body::Body<Data: Send, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
{
    pub fn new() -> Self {
        Self { hyper: Hyper::builder(TokioExecutor::new()).build_http(), is_ready: false }
    }
}

impl<B> Service<Request<B>> for Strict<B>
where
    B: hyper::body::Body<Data: Send, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<Incoming>;
    type Error = HyperError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HyperError>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        assert!(
            std::mem::take(&mut self.is_ready),
            "it is called without being asked whether it is ready"
        );
        self.hyper.request(request)
    }
}

/// Each byte that is drawn is this one.
#[derive(Debug)]
pub struct Drawn(pub u8);

impl Randomness for Drawn {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill(self.0);
        Ok(())
    }
}

/// On a clock that stands still until it is advanced, and with pauses that take no time unless the
/// layer says otherwise.
pub fn layer(clock: &ManualClock) -> ClientLayer {
    ClientLayer::new().with_clock(clock.clone()).with_backoff(Duration::ZERO, Duration::ZERO)
}

/// The client behind `layer`.
pub fn client(layer: &ClientLayer) -> ClientService<Strict<String>> {
    layer.layer(Strict::new())
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub sent: Option<Sent>,
    pub body: String,
}

impl Answer {
    /// What a person can compare.
    pub fn text(&self) -> (u16, &str) {
        (self.status, &self.body)
    }

    pub fn attempts(&self) -> Option<u32> {
        self.sent.as_ref().map(Sent::attempts)
    }
}

pub type Outcome = Result<Answer, ClientError<HyperError>>;

/// How the request ends.
pub async fn send<S, B>(mut client: S, request: Request<B>) -> anyhow::Result<Outcome>
where
    S: Service<Request<B>, Response = Response<Incoming>, Error = ClientError<HyperError>>,
{
    let exchange = async {
        std::future::poll_fn(|task| client.poll_ready(task)).await?;
        client.call(request).await
    };
    let answer = match within("the end of a request", exchange).await? {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let (head, body) = answer.into_parts();
    let body = within("the body of an answer", to_bytes(Body::new(body), usize::MAX)).await??;
    let sent = head.extensions.get().cloned();
    let body = String::from_utf8(body.to_vec())?;
    Ok(Ok(Answer { status: head.status.as_u16(), headers: head.headers, sent, body }))
}
