//! A client on a real socket: hyper where the meaning matters, bare bytes where the bytes do.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use idempotency_test_support::deadline::within;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[derive(Clone)]
pub struct Client {
    hyper: Hyper<HttpConnector, Body>,
    address: SocketAddr,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { hyper: Hyper::builder(TokioExecutor::new()).build_http(), address }
    }

    pub fn post(&self, path: &str) -> Outgoing {
        self.request(Method::POST, path)
    }

    pub fn request(&self, method: Method, path: &str) -> Outgoing {
        let (client, path) = (self.clone(), path.to_owned());
        Outgoing { client, method, path, headers: HeaderMap::new(), body: Body::from("{}") }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes these bytes on a connection of their own.
    pub async fn write(&self, bytes: impl AsRef<[u8]>) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(bytes.as_ref()).await?;
        Ok(stream)
    }

    /// Writes these bytes and gives all that the server answers until it closes the connection, as
    /// the request must ask.
    pub async fn exchange(&self, bytes: impl AsRef<[u8]>) -> anyhow::Result<String> {
        let mut stream = self.write(bytes).await?;
        let mut answer = Vec::new();
        within("the end of the answer", stream.read_to_end(&mut answer)).await??;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// The head of a POST whose key header has this value, byte by byte.
pub fn raw_post(path: &str, headers: &[u8], body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    [head.as_bytes(), headers, b"\r\n", body].concat()
}

/// A request that has not been sent.
pub struct Outgoing {
    client: Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
}

impl Outgoing {
    /// As a quoted string.
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", format!("\"{key}\""))
    }

    pub fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a header can have this value");
        self.headers.append(HeaderName::from_static(name), value);
        self
    }

    pub fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    /// The answer with its whole body.
    pub async fn send(self) -> anyhow::Result<Reply> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(format!("http://{}{}", self.client.address, self.path));
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers);
        }
        let answer = async {
            let (head, body) =
                self.client.hyper.request(request.body(self.body)?).await?.into_parts();
            let body = to_bytes(Body::new(body), usize::MAX).await?;
            anyhow::Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
        };
        within("an answer", answer).await?
    }

    /// As [`send`](Self::send), in a task of its own.
    pub fn spawn(self) -> Pending {
        Pending(tokio::spawn(self.send()))
    }
}

/// A request that is on its way.
pub struct Pending(tokio::task::JoinHandle<anyhow::Result<Reply>>);

impl Pending {
    pub async fn reply(self) -> anyhow::Result<Reply> {
        self.0.await?
    }

    /// As [`reply`](Self::reply), for one who looks at something else meanwhile.
    pub async fn answered(&mut self) -> anyhow::Result<Reply> {
        (&mut self.0).await?
    }

    pub fn is_answered(&self) -> bool {
        self.0.is_finished()
    }

    /// The client goes away.
    pub fn leave(self) {
        self.0.abort();
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn is_replayed(&self) -> bool {
        // The second is the name that Stripe's API has for it.
        ["idempotency-replayed", "idempotent-replayed"]
            .iter()
            .any(|name| self.header(name) == Some("true"))
    }

    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("no JSON: {}", self.body.escape_ascii()))
    }

    /// The name at the end of the problem's `type`.
    pub fn problem(&self) -> anyhow::Result<String> {
        let json = self.json()?;
        let address = json["type"].as_str().context("the problem has a type")?;
        Ok(address.rsplit_once('#').context("the type has a name")?.1.to_owned())
    }

    /// Fails unless this is the problem `name` with `status`, written as a problem is.
    pub fn assert_problem(&self, status: u16, name: &str) -> anyhow::Result<()> {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.problem()?, name);
        assert_eq!(self.json()?["status"], status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
        Ok(())
    }

    /// What a person can compare: the status and the body.
    pub fn answer(&self) -> (u16, Bytes) {
        (self.status, self.body.clone())
    }
}
