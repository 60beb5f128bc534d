//! Private servers: each on a free port in a temporary directory, ended by its own process id.
//!
//! [`Server`] is what all kinds share: starting, signals, and a guaranteed end. A kind adds its
//! options, its address and its check for readiness: [`RedisServer`], [`PostgresServer`],
//! [`MariaDbServer`], [`PgBouncer`], [`RabbitMqServer`], [`NatsServer`], [`MiniStackServer`],
//! [`TansuServer`].
//! [`ChromeDriver`] is not a server of records, but its end is guaranteed too.

mod binary;
mod chromedriver;
mod family;
mod lifecycle;
mod mariadb;
mod ministack;
mod nats;
mod pgbouncer;
mod postgres;
pub(crate) mod process;
mod rabbitmq;
mod redis;
mod sql;
mod system_user;
mod tansu;
mod url;

pub use chromedriver::ChromeDriver;

/// Finds Node, which runs the clients in its language.
///
/// # Errors
/// If there is none, with advice.
pub fn node() -> anyhow::Result<std::path::PathBuf> {
    binary::find("node", "NODE")
}
pub use lifecycle::{Kind, Server};
pub use mariadb::{MariaDb, MariaDbOptions, MariaDbServer};
pub use ministack::{MiniStack, MiniStackOptions, MiniStackServer};
pub use nats::{Nats, NatsOptions, NatsServer};
pub use pgbouncer::{PgBouncer, PgBouncerOptions, Pooler};
pub use postgres::{Postgres, PostgresOptions, PostgresServer};
pub(crate) use process::pid_of;
pub use process::{ServerProcess, Signals, is_running};
pub use rabbitmq::{RabbitMq, RabbitMqOptions, RabbitMqServer};
pub use redis::{Certificates, Redis, RedisOptions, RedisServer, TlsClients};
pub use sql::Rows;
pub use tansu::{Tansu, TansuOptions, TansuServer};
pub(crate) use url::with_address;
