//! The world around `verify_with_provider`: a payment provider, which is a process of its own with
//! its own books, and its client.
//!
//! Each connection carries one line with a request and one with the response: `charge PAYMENT KEY`
//! returns `receipt ch_1`, and `find PAYMENT KEY` returns the same or `none`. The key is enforced:
//! a charge that is sent again is not made again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// The time for which the client waits for a response.
const PATIENCE: Duration = Duration::from_secs(10);

/// The provider's process, as seen by the process that starts it.
pub(crate) struct ProviderProcess {
    child: Child,
    address: String,
}

impl ProviderProcess {
    pub(crate) async fn start(books: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("provider")
            .arg(books)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let address = lines.next_line().await?.context("the provider has ended early")?;
        Ok(Self { child, address })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Kills the process with SIGKILL: it does not answer any more.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// Runs the provider in that process.
pub(crate) async fn serve(books: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let mut books = Books::open(books)?;
    loop {
        let (client, _) = listener.accept().await?;
        let mut client = BufReader::new(client);
        let mut request = String::new();
        // A client that has disconnected does not affect the others.
        if matches!(client.read_line(&mut request).await, Ok(1..)) {
            let answer = books.answer(request.trim_end())?;
            let _ = client.write_all(format!("{answer}\n").as_bytes()).await;
        }
    }
}

/// The provider's memory: each request that arrived, in a file that outlives the process.
struct Books {
    file: File,
    charged: Vec<String>,
}

impl Books {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let charged = noted(path, "charged")?.into_iter().map(|(_, key)| key).collect();
        Ok(Self { file, charged })
    }

    fn answer(&mut self, request: &str) -> io::Result<String> {
        let [what, payment, key] = request.split(' ').collect::<Vec<_>>()[..] else {
            return Ok("what do you mean?".to_owned());
        };
        let known = self.charged.iter().position(|charged| charged == key);
        let (note, receipt) = match (what, known) {
            ("charge", None) => {
                self.charged.push(key.to_owned());
                ("charged", Some(self.charged.len()))
            }
            ("charge", Some(position)) => ("repeated", Some(position + 1)),
            (_, known) => ("asked", known.map(|position| position + 1)),
        };
        self.file.write_all(format!("{note} {payment} {key}\n").as_bytes())?;
        Ok(receipt.map_or_else(|| "none".to_owned(), |number| format!("receipt ch_{number}")))
    }
}

/// Returns the payments and keys of all lines of the books that begin with `what`.
pub(crate) fn noted(books: &Path, what: &str) -> anyhow::Result<Vec<(String, String)>> {
    let text = fs::read_to_string(books)?;
    let entries =
        text.lines().filter_map(|line| line.strip_prefix(what)?.trim_start().split_once(' '));
    Ok(entries.map(|(payment, key)| (payment.to_owned(), key.to_owned())).collect())
}

/// The client. An error means that there is no response, not that nothing happened.
pub(crate) struct Provider {
    address: String,
}

impl Provider {
    pub(crate) fn at(address: &str) -> Self {
        Self { address: address.to_owned() }
    }

    /// Charges, and returns the number of the receipt.
    pub(crate) async fn charge(&self, payment: u32, key: &str) -> io::Result<String> {
        let receipt = self.ask(format!("charge {payment} {key}\n")).await?;
        receipt.ok_or_else(|| io::Error::other("it answers something else"))
    }

    /// Returns the number of the receipt, if the provider has charged under `key`.
    pub(crate) async fn find(&self, payment: u32, key: &str) -> io::Result<Option<String>> {
        self.ask(format!("find {payment} {key}\n")).await
    }

    async fn ask(&self, request: String) -> io::Result<Option<String>> {
        let answer = async {
            let mut stream = BufReader::new(TcpStream::connect(&self.address).await?);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_line(&mut answer).await.map(|_| answer)
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await??;
        match answer.strip_suffix('\n') {
            Some("none") => Ok(None),
            Some(answer) if let Some(receipt) = answer.strip_prefix("receipt ") => {
                Ok(Some(receipt.to_owned()))
            }
            Some(_) => Err(io::Error::other("it answers something else")),
            None => Err(io::ErrorKind::UnexpectedEof.into()), // half a response is not one
        }
    }
}
