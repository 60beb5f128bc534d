//! The world around `redis_shared`: a Redis server, worker processes, and the ledger of a card
//! provider, to which all of them write.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::payments::{Event, Payment};

const MISSING: &str = "cannot start `redis-server`: install it (`apt install redis-server`, `brew install redis`), or \
                       give the URL of a server as argument or in REDIS_URL";

/// A server: the user's, or one that lives as long as this value.
pub(crate) struct Redis {
    url: String,
    _own: Option<(Child, TempDir)>,
}

impl Redis {
    pub(crate) async fn take_or_start(url: Option<String>) -> anyhow::Result<Self> {
        if let Some(url) = url {
            return Ok(Self { url, _own: None });
        }
        let directory = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--port",
            &port.to_string(),
        ]);
        command
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let server = command.spawn().context(MISSING)?;
        let address = ("127.0.0.1", port);
        let ready = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ready)
            .await
            .context("redis-server does not answer")?;
        Ok(Self { url: format!("redis://127.0.0.1:{port}/"), _own: Some((server, directory)) })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// A worker: this program again, with arguments.
pub(crate) struct Worker {
    number: usize,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    pub(crate) fn start(number: usize, url: &str, ledger: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["worker", &number.to_string(), url])
            .arg(ledger)
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a worker")?;
        let output = child.stdout.take().context("a worker without output")?;
        Ok(Self { number, child, lines: BufReader::new(output).lines() })
    }

    pub(crate) fn name(&self) -> String {
        format!("worker {}", self.number)
    }

    pub(crate) async fn wait_for_lines(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            self.lines.next_line().await?.context("the worker has ended early")?;
        }
        Ok(())
    }

    /// Kills the worker with SIGKILL: none of its code runs any more.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Waits for the worker. Returns the number of events with a result, and the failures of the
    /// others.
    pub(crate) async fn finish(mut self) -> anyhow::Result<(usize, Vec<(String, String)>)> {
        let (mut done, mut failed) = (0, Vec::new());
        while let Some(line) = self.lines.next_line().await? {
            match line.split_once(' ') {
                Some(("done", _)) => done += 1,
                Some((kind, payment)) => failed.push((kind.to_owned(), payment.to_owned())),
                None => {}
            }
        }
        let status = self.child.wait().await?;
        anyhow::ensure!(status.success(), "{} failed: {status}", self.name());
        Ok((done, failed))
    }
}

/// A ledger of charges, made on every request of any worker. Each line is a single write at the end
/// of the file.
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open the ledger {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Charges a payment, and returns true if the card was good.
    pub(crate) async fn charge(&self, payment: &Payment) -> anyhow::Result<bool> {
        tokio::time::sleep(Duration::from_millis(3 + payment.amount % 10)).await; // latency
        if payment.card.ends_with("-0002") {
            return Ok(false);
        }
        let line = format!("{}\n", serde_json::to_string(payment)?);
        (&self.file).write_all(line.as_bytes())?;
        tokio::time::sleep(Duration::from_millis(5)).await; // and the response
        Ok(true)
    }

    pub(crate) fn charges(&self) -> anyhow::Result<Vec<Payment>> {
        let text = fs::read_to_string(&self.path)?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("the ledger is damaged"))
            .collect()
    }
}

/// Returns the payments that should be charged: the first event of each payment whose card is good.
pub(crate) fn first_of_each_payment(events: Vec<Event>) -> Vec<Payment> {
    let mut seen = HashSet::new();
    let payments = events.into_iter().map(|event| event.payment);
    payments
        .filter(|payment| seen.insert(payment.id.clone()) && !payment.card.ends_with("-0002"))
        .collect()
}
