//! Code that all kinds of servers share, from the start to the end.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use super::process::{ServerProcess, Signals};
use super::url::ServerUrl;
use crate::deadline::eventually_async;
use crate::port;

/// The number of ports that are tried if another process was faster.
const PORT_ATTEMPTS: usize = 10;

/// The properties of a kind of server, with the options of one server.
#[expect(async_fn_in_trait, reason = "not implemented outside of this crate")]
pub trait Kind: Sized {
    /// The options of one server.
    type Options;

    /// The name of its program.
    const NAME: &'static str;
    /// The environment variable that names a server to use where any will do, if there is one.
    const URL_VARIABLE: Option<&'static str>;
    /// The options that request a private server.
    const PRIVATE: &'static str;
    /// The port if a URL has none.
    const PORT: u16;
    /// The signals that end it.
    const SIGNALS: Signals;

    /// Returns true if a server that the environment names would do.
    fn any_server_will_do(options: &Self::Options) -> bool;

    /// Creates the files that the server needs before its first start.
    fn prepare(options: Self::Options, directory: &Path) -> anyhow::Result<Self>;

    /// Returns the command that starts it on `port`.
    fn command(&mut self, port: u16, directory: &Path) -> anyhow::Result<Command>;

    /// Returns true if the server on `port` is the process `pid` and answers.
    async fn is_ready(&self, port: u16, pid: u32, directory: &Path) -> bool;

    /// Runs once, when the server has answered for the first time.
    async fn set_up(&self, _port: u16) -> anyhow::Result<()> {
        Ok(())
    }

    /// Removes from the system what a killed server leaves there and would find again when it is
    /// restarted.
    fn clean_up_after_kill(&self, _directory: &Path) {}

    /// Returns the URL of the server.
    fn url(&self, port: u16) -> String;
}

/// A server for one test, or for all tests of a process.
///
/// It is private: no other code knows its port, its directory is removed with it, and it ends with
/// this value or with the test process, whichever is first. If an environment variable names a
/// server of this kind and the options request nothing special, that one is used instead, and can
/// be neither stopped nor paused.
#[derive(Debug)]
pub struct Server<K> {
    pub(super) place: Place<K>,
}

#[derive(Debug)]
pub(super) enum Place<K> {
    Private(Box<Private<K>>),
    Elsewhere(ServerUrl),
}

#[derive(Debug)]
pub(super) struct Private<K> {
    pub(super) kind: K,
    pub(super) port: u16,
    /// The process; `None` while it is stopped. Ends before its directory is removed.
    process: Option<ServerProcess>,
    directory: TempDir,
}

impl<K: Kind> Server<K> {
    /// Starts a server, and waits until it answers.
    ///
    /// # Errors
    /// If its program is missing, with the way to get it, or if it does not start, with its output.
    pub async fn start(options: K::Options) -> anyhow::Result<Self> {
        Self::start_or_use(options, K::URL_VARIABLE.and_then(|name| std::env::var(name).ok())).await
    }

    pub(super) async fn start_or_use(
        options: K::Options,
        url: Option<String>,
    ) -> anyhow::Result<Self> {
        let place = match url {
            Some(url) if K::any_server_will_do(&options) => {
                let url = ServerUrl::parse(&url, K::PORT);
                Place::Elsewhere(
                    url.with_context(|| format!("{} is no URL of a server", variable::<K>()))?,
                )
            }
            _ => Place::Private(Box::new(Private::start(options).await?)),
        };
        Ok(Self { place })
    }

    /// Returns its URL, with credentials. The same after a restart.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Private(server) => server.kind.url(server.port),
            Place::Elsewhere(url) => url.text.clone(),
        }
    }

    /// Returns host and port, for connections that take no URL, such as a proxy's.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    /// Returns its host.
    pub fn host(&self) -> &str {
        match &self.place {
            Place::Private(_) => "127.0.0.1",
            Place::Elsewhere(url) => &url.host,
        }
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        match &self.place {
            Place::Private(server) => server.port,
            Place::Elsewhere(url) => url.port,
        }
    }

    /// Returns the process id while it runs; `None` for a server that was not started here, and
    /// while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        match &self.place {
            Place::Private(server) => server.process.as_ref().map(ServerProcess::pid),
            Place::Elsewhere(_) => None,
        }
    }

    /// Returns the directory of a private server's files.
    ///
    /// # Errors
    /// If it is not private.
    pub fn directory(&self) -> anyhow::Result<&Path> {
        Ok(self.private("keeps its files elsewhere")?.directory.path())
    }

    /// Requests it to end, and waits until it has. Its clients lose their connections. It can be
    /// started again with [`restart`](Self::restart).
    ///
    /// # Errors
    /// If it is not private, not running, or does not end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.take("cannot be stopped")?.stop().await
    }

    /// Kills it with all processes that it has started (SIGKILL). It can be started again with
    /// [`restart`](Self::restart).
    ///
    /// # Errors
    /// If it is not private or not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.take("cannot be killed")?.kill()?;
        let server = self.private("cannot be killed")?;
        server.kind.clean_up_after_kill(server.directory.path());
        Ok(())
    }

    /// Stops it if it runs, starts it again on the same port with the same files, and waits until
    /// it answers.
    ///
    /// If it is not private, or does not start.
    /// When it is not private, or does not start.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let server = self.private_mut("cannot be restarted")?;
        if let Some(process) = server.process.take() {
            process.stop().await?;
        }
        server.run().await
    }

    /// Pauses it (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// If it is not private or not running.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process("cannot be paused")?.pause()
    }

    /// Resumes it after [`pause`](Self::pause).
    ///
    /// # Errors
    /// If it is not private or not running.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.process("cannot be resumed")?.resume()
    }

    pub(super) fn private(&self, refusal: &str) -> anyhow::Result<&Private<K>> {
        match &self.place {
            Place::Private(server) => Ok(server),
            Place::Elsewhere(_) => bail!(not_ours::<K>(refusal)),
        }
    }

    fn private_mut(&mut self, refusal: &str) -> anyhow::Result<&mut Private<K>> {
        match &mut self.place {
            Place::Private(server) => Ok(server),
            Place::Elsewhere(_) => bail!(not_ours::<K>(refusal)),
        }
    }

    fn process(&self, refusal: &str) -> anyhow::Result<&ServerProcess> {
        self.private(refusal)?.process.as_ref().with_context(|| format!("{} does not run", K::NAME))
    }

    fn take(&mut self, refusal: &str) -> anyhow::Result<ServerProcess> {
        self.private_mut(refusal)?
            .process
            .take()
            .with_context(|| format!("{} does not run", K::NAME))
    }
}

fn not_ours<K: Kind>(refusal: &str) -> String {
    format!(
        "the server that {} names {refusal}: ask for one of your own with {}",
        variable::<K>(),
        K::PRIVATE
    )
}

fn variable<K: Kind>() -> &'static str {
    K::URL_VARIABLE.unwrap_or_default()
}

impl<K: Kind> Private<K> {
    async fn start(options: K::Options) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix(&format!("{}-", K::NAME)).tempdir()?;
        let kind = K::prepare(options, directory.path())?;
        let mut server = Self { kind, port: 0, process: None, directory };
        let mut failure = None;
        for _ in 0..PORT_ATTEMPTS {
            server.port = port::free()?;
            match server.run().await {
                Ok(()) => {
                    server
                        .kind
                        .set_up(server.port)
                        .await
                        .with_context(|| format!("{} was not set up", K::NAME))?;
                    return Ok(server);
                }
                Err(error) if error.to_string().contains("Address already in use") => {
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| anyhow::anyhow!("no port was tried")))
    }

    /// Starts the process and waits until it answers.
    async fn run(&mut self) -> anyhow::Result<()> {
        let (name, port, directory) = (K::NAME, self.port, self.directory.path());
        let command = self.kind.command(port, directory)?;
        let mut process = ServerProcess::spawn(name, command, directory, K::SIGNALS)?;
        let pid = process.pid();
        let mut ended = None;
        let answered = eventually_async(format!("{name} to answer"), async || {
            ended = process.ended().ok().flatten();
            // Another process that listens on the port may answer too.
            ended.is_some() || self.kind.is_ready(port, pid, directory).await
        });
        let answered = answered.await;
        if let Some(status) = ended {
            bail!("{name} has ended ({status}):\n{}", process.last_output());
        }
        answered.with_context(|| format!("{name} does not answer:\n{}", process.last_output()))?;
        self.process = Some(process);
        Ok(())
    }
}
