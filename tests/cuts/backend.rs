//! The kinds of servers, and what the messages to them look like.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use idempotency::store::DynStore;
use idempotency_test_support::proxy::{Protocol, Request};
use idempotency_test_support::server::{Kind, Server};

/// How long most stores of these tests wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

pub type Shared<B> = OnceLock<Server<B>>;

/// A kind of server with the store on it.
pub trait Backend: Kind<Options: Default> + Send + Sync + 'static {
    const PROTOCOL: Protocol;
    /// The store's name in errors.
    const STORE: &'static str;
    /// What the statement says that reads what is there, which is all of a replay.
    const READS: &'static str;
    /// What the statement says that writes a first claim.
    const CLAIMS: &'static str;
    const COMMITS: &'static str;
    /// The command that asks whether a connection works, as [`Request::command`] names it.
    const PING: &'static str;
    const RENEWS: &'static str;
    /// What the statement says that removes a claim of one's own.
    const RELEASES: &'static str;

    /// Where the server is kept of all tests that do nothing to it.
    fn shared() -> &'static Shared<Self>;

    /// A server that may be stopped.
    fn private() -> Self::Options;

    /// One whose commits are on disk before they are answered.
    fn durable() -> Self::Options;

    /// An empty database.
    async fn database(server: &Server<Self>) -> anyhow::Result<String>;

    /// A patient store in the database at `url`, with its table.
    async fn migrated(url: &str) -> anyhow::Result<Arc<dyn DynStore>>;

    /// A store that has one connection, and waits `patience` for an answer. A connection that does
    /// not answer and is used again would block it.
    fn impatient(url: &str, patience: Duration) -> anyhow::Result<Arc<dyn DynStore>>;

    fn reads(request: &Request) -> bool {
        request.runs(Self::READS)
    }

    fn claims(request: &Request) -> bool {
        request.runs(Self::CLAIMS)
    }

    fn commits(request: &Request) -> bool {
        request.runs(Self::COMMITS)
    }

    fn releases(request: &Request) -> bool {
        request.runs(Self::RELEASES)
    }

    fn renews(request: &Request) -> bool {
        request.runs(Self::RENEWS)
    }
}

/// The server of all tests that do nothing to it. It ends with this process.
pub async fn shared<B: Backend>() -> anyhow::Result<&'static Server<B>> {
    let start = || {
        B::shared().get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(Server::start(B::Options::default())).expect("the server starts")
        })
    };
    Ok(tokio::task::spawn_blocking(start).await?)
}
