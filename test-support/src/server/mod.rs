//! Private servers: each on a free port in a temporary directory, ended by its own process id.
//!
//! [`ServerProcess`] is what all kinds of servers share: starting, signals, and an end that is certain. A kind of server
//! adds its options, its address and how to tell that it is ready; see [`RedisServer`].

mod admin;
mod binary;
mod certificates;
pub(crate) mod process;
mod redis;
mod redis_options;

pub use certificates::Certificates;
pub use process::{ServerProcess, is_running};
pub use redis::RedisServer;
pub use redis_options::{RedisOptions, TlsClients};
