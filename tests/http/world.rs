//! A service with effects behind the layer, on a real socket in the test process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::routing::any;
use idempotency::http::{IdempotencyKey, IdempotencyLayer, Scope};
use idempotency::record::{RecordHandle, State as RecordState};
use idempotency::store::{MemoryStore, Scan, Store as _};
use idempotency::testing::{FaultyStore, Gate, ManualClock};
use idempotency::{Builder, Idempotency};
use idempotency_test_support::deadline::eventually;
use idempotency_test_support::effects::EffectLog;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::client::{Client, Outgoing};

/// How long the engine waits for its store: a busy machine is no fault.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long it waits for a store that a test keeps away.
pub const NO_PATIENCE: Duration = Duration::from_millis(10);
pub const DAY: Duration = Duration::from_secs(86_400);

/// In memory where the system has files there: no test waits for a disk that is busy with other
/// things.
pub fn memory_directory() -> anyhow::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() { TempDir::new_in(memory)? } else { TempDir::new()? })
}

/// What handlers share: the world that they change, and a gate at which they wait if the request
/// says so.
#[derive(Clone)]
pub struct Shop {
    pub effects: Arc<EffectLog>,
    pub gate: Gate,
}

impl Shop {
    /// In this directory.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let effects = Arc::new(EffectLog::open(directory.join("effects"))?);
        Ok(Self { effects, gate: Gate::new() })
    }

    /// The service behind `layer`.
    pub async fn serve(&self, layer: IdempotencyLayer) -> anyhow::Result<Server> {
        Server::start(router(self, Router::new()).layer(layer)).await
    }

    pub fn count(&self, key: &str) -> usize {
        self.effects.count(key).expect("the log can be read")
    }

    pub fn effect(&self, line: &str) {
        self.effects.append(line).expect("the log takes a line");
    }
}

/// The effect, and a receipt that a second run would not give.
pub async fn pay(
    State(shop): State<Shop>,
    key: Option<IdempotencyKey>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let key = key.map_or_else(|| "none".to_owned(), |key| key.as_str().to_owned());
    let word = key.replace(' ', "_");
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text("x-wait").is_some() {
        shop.effect(&format!("entered-{word}"));
        shop.gate.wait().await;
    }
    let receipt = uuid::Uuid::new_v4().to_string();
    shop.effect(&format!("{word} {receipt} {method} {uri}"));
    let status: u16 = text("x-status").and_then(|status| status.parse().ok()).unwrap_or(201);
    let document =
        serde_json::json!({"key": key, "receipt": receipt, "body": String::from_utf8_lossy(&body)});
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("location", format!("/receipts/{receipt}"))
        .body(Body::from(document.to_string()))
        .expect("the response is well-formed")
}

/// A server in the test process. It ends with this value.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(router: Router) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the server serves");
        });
        Ok(Self { address, task })
    }
}

impl Server {
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct World {
    pub clock: ManualClock,
    pub memory: MemoryStore,
    pub store: FaultyStore<MemoryStore>,
    pub engine: Idempotency,
    pub shop: Shop,
    pub client: Client,
    servers: Vec<Server>,
    // Removed last.
    directories: Vec<TempDir>,
}

/// What a world is made of, where it is not the usual.
pub struct Setup {
    engine: Box<dyn FnOnce(Builder) -> Builder>,
    layer: Box<dyn FnOnce(IdempotencyLayer) -> IdempotencyLayer>,
    scope: Scope,
    routes: Router<Shop>,
    around: Box<dyn FnOnce(Router) -> Router>,
    by_hand: bool,
}

impl Setup {
    pub fn engine(mut self, configure: impl FnOnce(Builder) -> Builder + 'static) -> Self {
        self.engine = Box::new(configure);
        self
    }

    pub fn layer(
        mut self,
        configure: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer + 'static,
    ) -> Self {
        self.layer = Box::new(configure);
        self
    }

    pub fn scope(mut self, scope: impl Into<Scope>) -> Self {
        self.scope = scope.into();
        self
    }

    /// Beside the usual ones, behind the layer too.
    pub fn routes(mut self, routes: Router<Shop>) -> Self {
        self.routes = routes;
        self
    }

    /// What is in front of the layer.
    pub fn around(mut self, around: impl FnOnce(Router) -> Router + 'static) -> Self {
        self.around = Box::new(around);
        self
    }

    /// The clock stands still until the test advances it.
    pub fn clock_by_hand(mut self) -> Self {
        self.by_hand = true;
        self
    }

    pub async fn start(self) -> anyhow::Result<World> {
        let clock = ManualClock::new();
        let memory =
            if self.by_hand { MemoryStore::with_clock(clock.clone()) } else { MemoryStore::new() };
        let store = FaultyStore::new(memory.clone());
        let builder = Idempotency::builder(store.clone()).claim_timeout(PATIENCE);
        let builder = if self.by_hand { builder.clock(clock.clone()) } else { builder };
        let engine = (self.engine)(builder).build()?;
        let directory = tempfile::tempdir()?;
        let shop = Shop::open(directory.path())?;
        let layer = (self.layer)(IdempotencyLayer::new(engine.clone(), self.scope));
        let server = Server::start((self.around)(router(&shop, self.routes).layer(layer))).await?;
        let client = Client::new(server.address);
        Ok(World {
            clock,
            memory,
            store,
            engine,
            shop,
            client,
            servers: vec![server],
            directories: vec![directory],
        })
    }
}

/// The service without a layer.
pub fn router(shop: &Shop, routes: Router<Shop>) -> Router {
    routes.route("/pay", any(pay)).route("/refund", any(pay)).with_state(shop.clone())
}

impl World {
    pub fn setup() -> Setup {
        Setup {
            engine: Box::new(|builder| builder),
            layer: Box::new(|layer| layer),
            scope: Scope::global(),
            routes: Router::new(),
            around: Box::new(|router| router),
            by_hand: false,
        }
    }

    pub async fn new() -> anyhow::Result<Self> {
        Self::setup().start().await
    }

    pub async fn with(
        layer: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer + 'static,
    ) -> anyhow::Result<Self> {
        Self::setup().layer(layer).start().await
    }

    /// The layer of another process on the same store.
    pub fn layer_of_another(&self) -> IdempotencyLayer {
        let engine =
            Idempotency::builder(self.store.clone()).claim_timeout(PATIENCE).build().unwrap();
        IdempotencyLayer::new(engine, Scope::global())
    }

    /// Another server on the same store with another layer, as a later version of the service has.
    pub async fn another_server(
        &mut self,
        layer: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer,
    ) -> anyhow::Result<Client> {
        let server = self.shop.serve(layer(self.layer_of_another())).await?;
        let client = Client::new(server.address);
        self.servers.push(server);
        Ok(client)
    }

    /// Removes `directory` with this world.
    pub fn keep(&mut self, directory: TempDir) {
        self.directories.push(directory);
    }

    /// The service without the layer.
    pub async fn bare_server(&mut self, routes: Router<Shop>) -> anyhow::Result<Client> {
        let server = Server::start(router(&self.shop, routes)).await?;
        let client = Client::new(server.address);
        self.servers.push(server);
        Ok(client)
    }

    /// A payment with this key.
    pub fn pay(&self, key: &str) -> Outgoing {
        self.client.post("/pay").key(key)
    }

    /// How often the handler ran for `key`, as the log outside of the service has it.
    pub fn effects(&self, key: &str) -> usize {
        self.shop.effects.count(&key.replace(' ', "_")).expect("the log can be read")
    }

    /// Waits until the handler of `key` has begun and waits at the gate.
    pub async fn entered(&self, key: &str) -> anyhow::Result<()> {
        let word = format!("entered-{key}");
        eventually(&word, || self.shop.effects.count(&word).is_ok_and(|count| count > 0)).await
    }

    pub fn record(&self, key: &str) -> RecordHandle {
        self.engine.record("http", key)
    }

    pub async fn state(&self, key: &str) -> anyhow::Result<Option<RecordState>> {
        Ok(self.record(key).inspect().await?.map(|view| view.state))
    }

    /// How many records there are, of whatever key.
    pub async fn records(&self) -> anyhow::Result<usize> {
        Ok(self.memory.scan(Scan::default()).await?.records.len())
    }
}
