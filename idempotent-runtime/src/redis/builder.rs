//! Building a store: the URL, the prefix, TLS, and the checks when it connects.

use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, ProtocolVersion,
    TlsCertificates,
};

use super::link::{Link, Setup};
use super::tracking::Waiters;
use super::{Inner, RedisAddress, RedisStore, check, script};
use crate::clock::{Clock, SystemClock};
use crate::paused::explained;
use crate::store::bounds::check_timeout;
use crate::store::{Operation, StoreError, StoreErrorKind};

/// Builds a [`RedisStore`]. Created by [`RedisStore::builder`].
///
/// ```no_run
/// # use idempotency::store::{RedisStore, StoreError};
/// # async fn connect() -> Result<(), StoreError> {
/// let store = RedisStore::builder("rediss://user:password@redis.internal:6380/2")
///     .prefix("shop:idempotency:")
///     .tls_ca(std::fs::read("ca.pem").unwrap_or_default())
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "`connect` makes the store"]
pub struct RedisStoreBuilder {
    server: Result<ConnectionInfo, StoreError>,
    prefix: String,
    tls_ca: Option<Vec<u8>>,
    tls_client: Option<ClientTlsConfig>,
    connect_timeout: Duration,
    response_timeout: Duration,
    allow_eviction: bool,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStoreBuilder").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl RedisStoreBuilder {
    pub(super) fn new(server: impl RedisAddress) -> Self {
        Self {
            server: server.connection_info().map_err(unfit),
            prefix: "idempotency:".into(),
            tls_ca: None,
            tls_client: None,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(2),
            allow_eviction: false,
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// Sets the prefix of all keys. Services that share a server each need a prefix of their own,
    /// or a namespace of the engine. The default is `idempotency:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the authority that signed the server's certificate, in PEM. It replaces the machine's
    /// authorities. The URL must begin with `rediss://`.
    pub fn tls_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls_ca = Some(pem.into());
        self
    }

    /// Sets the certificate and the key that identify this client to the server, in PEM.
    pub fn tls_client(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls_client =
            Some(ClientTlsConfig { client_cert: certificate.into(), client_key: key.into() });
        self
    }

    /// Sets the time limit for connecting, from a millisecond to a day. The default is 5 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the time that an answer may take before its connection is given up, from a millisecond
    /// to a day. The default is 2 seconds.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Accepts a server that may evict records: each evicted record is a call that runs again.
    pub fn allow_eviction(mut self) -> Self {
        self.allow_eviction = true;
        self
    }

    /// Connects, and checks that the server can keep the promise.
    ///
    /// # Errors
    /// [`Unavailable`](StoreErrorKind::Unavailable) when the server does not answer,
    /// [`Unsupported`](StoreErrorKind::Unsupported) when it is older than Redis 7.0,
    /// [`Config`](StoreErrorKind::Config) when it refuses the user, its certificate is not trusted,
    /// it is a node of a Redis Cluster, or it may evict records (see
    /// [`allow_eviction`](Self::allow_eviction)).
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let allow_eviction = self.allow_eviction;
        let store = self.build()?;
        explained(check::server(&store, allow_eviction)).await?;
        Ok(store)
    }

    /// Builds a store that connects on first use. Nothing is checked: neither the server's version
    /// nor whether it may evict records.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the URL, the certificates or a time-out are invalid.
    pub fn build(self) -> Result<RedisStore, StoreError> {
        check_timeout("connect_timeout", self.connect_timeout)?;
        check_timeout("response_timeout", self.response_timeout)?;
        let info = self.server?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let tcp = TcpSettings::default().set_nodelay(true);
        let info = info.set_redis_settings(redis).set_tcp_settings(tcp);
        let client = if self.tls_ca.is_some() || self.tls_client.is_some() {
            Client::build_with_tls(
                info,
                TlsCertificates { client_tls: self.tls_client, root_cert: self.tls_ca },
            )
        } else {
            Client::open(info)
        };
        let client = client.map_err(unfit)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout));
        let waiters = Arc::new(Waiters::default());
        let for_pushes = waiters.clone();
        let tracking = config.clone().set_push_sender(move |push| {
            for_pushes.push(&push);
            Ok::<(), redis::aio::SendError>(())
        });
        let link = |config, setup: Option<Setup>, waiters| {
            Link::new(client.clone(), config, self.clock.clone(), setup, waiters)
        };
        Ok(RedisStore(Arc::new(Inner {
            commands: link(config.clone(), None, None),
            renewals: link(config.clone(), None, None),
            tracking: link(tracking, Some(super::start_tracking), Some(waiters.clone())),
            waiters,
            polls: std::sync::atomic::AtomicBool::new(false),
            scripts: script::Scripts::new(),
            prefix: self.prefix,
            client: client.clone(),
            config,
            clock: self.clock,
            randomness: crate::clock::SystemRandomness,
        })))
    }
}

fn unfit(error: redis::RedisError) -> StoreError {
    StoreError::new(StoreErrorKind::Config, Operation::Connect)
        .with_detail("the connection URL or its certificates are invalid")
        .with_source(error)
}
