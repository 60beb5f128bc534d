//! A Redis server: a private one, or the one that the environment names.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::ServerProcess;
use super::redis_options::RedisOptions;
use super::{admin, binary};
use crate::deadline::eventually_async;
use crate::port;

/// Names a server to use where any will do.
const URL_VARIABLE: &str = "IDEMPOTENCY_REDIS_URL";

/// Names the program to start, which may be a Valkey server.
const PROGRAM_VARIABLE: &str = "REDIS_SERVER";

/// What the server says of itself when it has read its files. Before that, it answers but has no keys.
const LOADED: &str = "\nloading:0\r";

/// How often another port is tried when somebody was faster.
const PORT_ATTEMPTS: usize = 10;

/// A Redis server for one test.
///
/// It is private: nobody else knows its port, its directory is removed with it, and it ends with this value or with the
/// test process, whichever is first. Where the environment variable `IDEMPOTENCY_REDIS_URL` names a server and the
/// options ask for nothing special, that one is used instead, and can be neither stopped nor paused. Its keys may be
/// those of other tests too: a test uses a prefix of its own.
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
#[derive(Debug)]
pub struct RedisServer {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Private(Box<Private>),
    /// Its URL.
    Elsewhere(String),
}

#[derive(Debug)]
struct Private {
    options: RedisOptions,
    port: u16,
    tls: Option<(u16, Certificates)>,
    /// `None` while it is stopped. Ends before its directory is removed.
    process: Option<ServerProcess>,
    directory: TempDir,
}

impl RedisServer {
    /// Starts a server, and waits until it answers.
    ///
    /// # Errors
    /// When there is no `redis-server`, with the way to get it, or when it does not start, with what it printed.
    pub async fn start(options: RedisOptions) -> anyhow::Result<Self> {
        Self::start_or_use(options, std::env::var(URL_VARIABLE).ok()).await
    }

    async fn start_or_use(options: RedisOptions, url: Option<String>) -> anyhow::Result<Self> {
        let place = match url {
            Some(url) if options.any_server_will_do() => Place::Elsewhere(url),
            _ => Place::Private(Box::new(Private::start(options).await?)),
        };
        Ok(Self { place })
    }

    /// Where it is, with the password of the user `default`: `redis://127.0.0.1:20001`. The same after a restart.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Private(server) => {
                format!("redis://{}127.0.0.1:{}", server.options.credentials_in_url(), server.port)
            }
            Place::Elsewhere(url) => url.clone(),
        }
    }

    /// Host and port, for connections that speak no URL, such as a proxy's.
    ///
    /// # Errors
    /// When it is not private, and its URL has another form than `redis://…host:port…`.
    pub fn address(&self) -> anyhow::Result<String> {
        match &self.place {
            Place::Private(server) => Ok(format!("127.0.0.1:{}", server.port)),
            Place::Elsewhere(url) => Ok(split_url(url)?.1),
        }
    }

    /// Where it is with TLS: `rediss://127.0.0.1:20002`.
    ///
    /// # Errors
    /// When the options did not ask for TLS.
    pub fn tls_url(&self) -> anyhow::Result<String> {
        let server = self.private("has no TLS")?;
        let (port, _) = server.tls.as_ref().context("this Redis server was started without TLS")?;
        Ok(format!("rediss://{}127.0.0.1:{port}", server.options.credentials_in_url()))
    }

    /// The certificates of the TLS port.
    ///
    /// # Errors
    /// When the options did not ask for TLS.
    pub fn certificates(&self) -> anyhow::Result<&Certificates> {
        let server = self.private("has no certificates of ours")?;
        let (_, certificates) = server.tls.as_ref().context("this Redis server was started without TLS")?;
        Ok(certificates)
    }

    /// The port without TLS.
    ///
    /// # Errors
    /// As [`address`](Self::address).
    pub fn port(&self) -> anyhow::Result<u16> {
        let address = self.address()?;
        let (_, port) = address.rsplit_once(':').with_context(|| format!("{address} has no port"))?;
        Ok(port.parse()?)
    }

    /// The process id while it runs. `None` where it is not ours, and while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        match &self.place {
            Place::Private(server) => server.process.as_ref().map(ServerProcess::pid),
            Place::Elsewhere(_) => None,
        }
    }

    /// Where a private server keeps its files.
    ///
    /// # Errors
    /// When it is not private.
    pub fn directory(&self) -> anyhow::Result<&Path> {
        Ok(self.private("keeps its files elsewhere")?.directory.path())
    }

    /// Sends one command as the user `default` on a connection of its own, to set the server up or to look at it.
    /// Returns a string or a number as text, null as nothing, everything else as the server wrote it.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        match &self.place {
            Place::Private(server) => server.ask(words).await,
            Place::Elsewhere(url) => {
                let (credentials, address) = split_url(url)?;
                admin::ask(&address, credentials.as_deref(), words).await
            }
        }
    }

    /// Asks it to end and waits until it has. It can be started again with [`restart`](Self::restart).
    ///
    /// # Errors
    /// When it is not private, not running, or does not end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.take("cannot be stopped")?.stop().await
    }

    /// Kills it (SIGKILL). It can be started again with [`restart`](Self::restart).
    ///
    /// # Errors
    /// When it is not private or not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.take("cannot be killed")?.kill()
    }

    /// Stops it if it runs, starts it again on the same port with the same files, and waits until it answers.
    ///
    /// With [`append_only`](RedisOptions::append_only) it knows all that it knew, else nothing.
    ///
    /// # Errors
    /// When it is not private, or does not start.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let server = self.private_mut("cannot be restarted")?;
        if let Some(process) = server.process.take() {
            process.stop().await?;
        }
        server.run().await
    }

    /// Stops it where it stands (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it is not private or not running.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process("cannot be paused")?.pause()
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// When it is not private or not running.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.process("cannot be resumed")?.resume()
    }

    fn private(&self, refusal: &str) -> anyhow::Result<&Private> {
        match &self.place {
            Place::Private(server) => Ok(server),
            Place::Elsewhere(_) => bail!(not_ours(refusal)),
        }
    }

    fn private_mut(&mut self, refusal: &str) -> anyhow::Result<&mut Private> {
        match &mut self.place {
            Place::Private(server) => Ok(server),
            Place::Elsewhere(_) => bail!(not_ours(refusal)),
        }
    }

    fn process(&self, refusal: &str) -> anyhow::Result<&ServerProcess> {
        self.private(refusal)?.process.as_ref().context("the Redis server does not run")
    }

    fn take(&mut self, refusal: &str) -> anyhow::Result<ServerProcess> {
        self.private_mut(refusal)?.process.take().context("the Redis server does not run")
    }
}

fn not_ours(refusal: &str) -> String {
    format!("the server that {URL_VARIABLE} names {refusal}: ask for one of your own with RedisOptions::private")
}

impl Private {
    async fn start(options: RedisOptions) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("redis-server-").tempdir()?;
        let certificates = options.wants_tls().then(|| Certificates::create(directory.path())).transpose()?;
        let mut server = Self { options, port: 0, tls: None, process: None, directory };
        let mut failure = None;
        for _ in 0..PORT_ATTEMPTS {
            server.port = port::free()?;
            if let Some(certificates) = &certificates {
                server.tls = Some((port::free()?, certificates.clone()));
            }
            match server.run().await {
                Ok(()) => return Ok(server),
                Err(error) if error.to_string().contains("Address already in use") => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| anyhow::anyhow!("no port was tried")))
    }

    /// Starts the process and waits until it answers.
    async fn run(&mut self) -> anyhow::Result<()> {
        let access_control = self.directory.path().join("users.acl");
        if let Some(users) = self.options.access_control() {
            std::fs::write(&access_control, users)?;
        }
        let tls = self.tls.as_ref().map(|(port, certificates)| (*port, certificates));
        let mut command = Command::new(binary::find("redis-server", PROGRAM_VARIABLE)?);
        command.args(self.options.arguments(self.port, &access_control, tls)).arg("--dir").arg(self.directory.path());

        let mut process = ServerProcess::spawn("redis-server", command, self.directory.path())?;
        // Whoever else listens on the port would answer too.
        let ours = format!("process_id:{}\r\n", process.pid());
        let mut ended = None;
        let answered = eventually_async("redis-server to answer", async || {
            ended = process.ended().ok().flatten();
            let answer = self.ask(&["INFO", "all"]).await.unwrap_or_default();
            ended.is_some() || answer.contains(&ours) && answer.contains(LOADED)
        });
        let answered = answered.await;
        if let Some(status) = ended {
            bail!("redis-server has ended ({status}):\n{}", process.last_output());
        }
        answered.with_context(|| format!("redis-server does not answer:\n{}", process.last_output()))?;
        self.process = Some(process);
        Ok(())
    }

    async fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        admin::ask(&format!("127.0.0.1:{}", self.port), self.options.credentials().as_deref(), words).await
    }
}

/// The words after `AUTH`, and host and port.
fn split_url(url: &str) -> anyhow::Result<(Option<Vec<String>>, String)> {
    let rest = url.strip_prefix("redis://").with_context(|| format!("{url} does not begin with redis://"))?;
    let rest = rest.split(['/', '?']).next().unwrap_or_default();
    let (credentials, address) = match rest.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, rest),
    };
    let words = credentials.map(|text| text.split(':').filter(|word| !word.is_empty()).map(String::from).collect());
    Ok((words, if address.contains(':') { String::from(address) } else { format!("{address}:6379") }))
}

#[cfg(test)]
mod tests {
    use super::{RedisOptions, RedisServer, split_url};

    #[tokio::test]
    async fn a_server_of_somebody_else_is_used_and_left_alone() {
        let url = String::from("redis://:secret@example.org:7000/3");
        let mut server = RedisServer::start_or_use(RedisOptions::new(), Some(url.clone())).await.unwrap();
        assert_eq!((server.url(), server.port().unwrap(), server.pid()), (url, 7000, None));

        let mut refusals = vec![server.pause().unwrap_err(), server.resume().unwrap_err(), server.kill().unwrap_err()];
        refusals.push(server.stop().await.unwrap_err());
        refusals.push(server.restart().await.unwrap_err());
        for refusal in refusals {
            let message = refusal.to_string();
            assert!(message.contains("IDEMPOTENCY_REDIS_URL") && message.contains("private"), "{message}");
        }
    }

    #[test]
    fn urls_are_split() {
        let words = |words: &[&str]| Some(words.iter().copied().map(String::from).collect::<Vec<_>>());
        assert_eq!(split_url("redis://localhost").unwrap(), (None, String::from("localhost:6379")));
        assert_eq!(split_url("redis://:p@h:1/0").unwrap(), (words(&["p"]), String::from("h:1")));
        assert_eq!(split_url("redis://u:p@h:1?protocol=resp3").unwrap(), (words(&["u", "p"]), String::from("h:1")));
        assert!(split_url("rediss://h:1").is_err());
    }
}
