//! A Redis server: a private one, or the one that the environment names.

mod admin;
mod certificates;
mod options;

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use rustix::process::Signal;

pub use certificates::Certificates;
pub use options::{RedisOptions, TlsClients};

use super::binary;
use super::lifecycle::{Kind, Place, Server};
use super::process::Signals;
use crate::port;

/// The variable that names the program to start, which may be a Valkey server.
const PROGRAM_VARIABLE: &str = "REDIS_SERVER";

/// The line in the server's information once it has read its files. Before that, it answers but has
/// no keys.
const LOADED: &str = "\nloading:0\r";

/// A Redis or Valkey server.
///
/// If the environment variable `IDEMPOTENCY_REDIS_URL` names a server and the options request
/// nothing special, that one is used instead. Other tests may have keys on it too: a test uses a
/// prefix of its own.
///
/// With [`append_only`](RedisOptions::append_only) a restarted server still has all of its data,
/// otherwise none.
///
/// ```no_run
/// # async fn test() -> anyhow::Result<()> {
/// use idempotency_test_support::server::{RedisOptions, RedisServer};
///
/// let mut server = RedisServer::start(RedisOptions::new().append_only()).await?;
/// let url = server.url();
/// server.kill()?;
/// server.restart().await?;
/// assert_eq!(server.url(), url);
/// # Ok(())
/// # }
/// ```
pub type RedisServer = Server<Redis>;

/// The kind of [`RedisServer`].
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    tls: Option<Tls>,
}

#[derive(Debug)]
struct Tls {
    certificates: Certificates,
    /// The TLS port. Each port without TLS that was tried has one.
    port: u16,
    beside: u16,
}

impl Kind for Redis {
    type Options = RedisOptions;

    const NAME: &'static str = "redis-server";
    const URL_VARIABLE: Option<&'static str> = Some("IDEMPOTENCY_REDIS_URL");
    const PRIVATE: &'static str = "RedisOptions::private";
    const PORT: u16 = 6379;
    const SIGNALS: Signals = Signals { stop: Signal::TERM, discard: Signal::KILL };

    fn any_server_will_do(options: &RedisOptions) -> bool {
        options.any_server_will_do()
    }

    fn prepare(options: RedisOptions, directory: &Path) -> anyhow::Result<Self> {
        let certificates =
            options.wants_tls().then(|| Certificates::create(directory)).transpose()?;
        Ok(Self {
            options,
            tls: certificates.map(|certificates| Tls { certificates, port: 0, beside: 0 }),
        })
    }

    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command> {
        let access_control = directory.join("users.acl");
        if let Some(users) = self.options.access_control() {
            std::fs::write(&access_control, users)?;
        }
        if let Some(tls) = self.tls.as_mut().filter(|tls| tls.beside != port) {
            (tls.port, tls.beside) = (port::free()?, port);
        }
        let tls = self.tls.as_ref().map(|tls| (tls.port, &tls.certificates));
        let mut command = Command::new(binary::find("redis-server", PROGRAM_VARIABLE)?);
        command
            .args(self.options.arguments(port, &access_control, tls))
            .arg("--dir")
            .arg(directory);
        Ok(command)
    }

    async fn is_ready(&self, port: u16, pid: u32, _: &Path) -> bool {
        let answer = self.ask(port, &["INFO", "all"]).await.unwrap_or_default();
        answer.contains(&format!("process_id:{pid}\r\n")) && answer.contains(LOADED)
    }

    fn url(&self, port: u16) -> String {
        format!("redis://{}127.0.0.1:{port}", self.options.credentials_in_url())
    }
}

impl Redis {
    async fn ask(&self, port: u16, words: &[&str]) -> anyhow::Result<String> {
        admin::ask(&format!("127.0.0.1:{port}"), self.options.credentials().as_deref(), words).await
    }

    fn tls(&self) -> anyhow::Result<&Tls> {
        self.tls.as_ref().context("this Redis server was started without TLS")
    }
}

impl RedisServer {
    /// The URL of the TLS port: `rediss://127.0.0.1:20002`.
    ///
    /// # Errors
    /// If the options did not request TLS.
    pub fn tls_url(&self) -> anyhow::Result<String> {
        let redis = &self.private("has no TLS")?.kind;
        let credentials = redis.options.credentials_in_url();
        Ok(format!("rediss://{credentials}127.0.0.1:{}", redis.tls()?.port))
    }

    /// The certificates of the TLS port.
    ///
    /// # Errors
    /// If the options did not request TLS.
    pub fn certificates(&self) -> anyhow::Result<&Certificates> {
        Ok(&self.private("has no certificates of ours")?.kind.tls()?.certificates)
    }

    /// Sends one command as the user `default` on a connection of its own, to set the server up or
    /// to inspect it. Returns a string or a number as text, null as nothing, everything else as the
    /// server wrote it.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses.
    pub async fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        match &self.place {
            Place::Private(server) => server.kind.ask(server.port, words).await,
            Place::Elsewhere(url) => {
                let credentials = [url.user.clone(), url.password.clone()]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>();
                let credentials = (!credentials.is_empty()).then_some(credentials);
                admin::ask(&self.address(), credentials.as_deref(), words).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RedisOptions, RedisServer};

    #[tokio::test]
    async fn a_server_of_somebody_else_is_used_and_left_alone() {
        let url = String::from("redis://:secret@example.org:7000/3");
        let mut server =
            RedisServer::start_or_use(RedisOptions::new(), Some(url.clone())).await.unwrap();
        assert_eq!((server.url(), server.port(), server.pid()), (url, 7000, None));

        let mut refusals = vec![
            server.pause().unwrap_err(),
            server.resume().unwrap_err(),
            server.kill().unwrap_err(),
        ];
        refusals.push(server.stop().await.unwrap_err());
        refusals.push(server.restart().await.unwrap_err());
        for refusal in refusals {
            let message = refusal.to_string();
            assert!(
                message.contains("IDEMPOTENCY_REDIS_URL") && message.contains("private"),
                "{message}"
            );
        }
    }
}
