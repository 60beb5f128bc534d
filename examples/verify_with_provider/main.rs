//! After a crash, the next call queries the payment provider before anything else. Workers are
//! killed (SIGKILL) before and after the charge reached the provider, and the provider is killed
//! too. Still every payment is charged once.
//!
//! ```sh
//! cargo run --features sqlite --example verify_with_provider
//! cargo run --features sqlite --example verify_with_provider -- DIRECTORY   # keeps the provider's books in a new one
//! ```
//!
//! The provider and each worker are processes of their own: this program again, with arguments.

mod provider;

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::store::SqliteStore;
use idempotency::{Context, Error, ErrorKind, Idempotency, Verdict, idempotent};
use provider::{Provider, ProviderProcess, noted, serve};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// The pause before a call is repeated whose error does not say when it will succeed.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
enum PayError {
    #[error("the provider gave no answer: {0}")]
    NoAnswer(#[from] io::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

struct Worker {
    provider: Provider,
    /// The place at which it stops until it is killed.
    stops: Option<String>,
}

impl Worker {
    /// Charges a payment. The provider's key is the same in every attempt. The lookup uses it, and
    /// the provider enforces it: a worker that was only slow, and sends its charge after the
    /// lookup, makes no second one.
    ///
    /// A charge without a response may have been made: it is held, and the next call looks that up
    /// too.
    #[idempotent(name = "payments.charge", key = payment, ttl = "24h", lease = "1s", on_error = hold,
        on_crash = verify(async |context| {
            let found = self.provider.find(payment, &context.derive_key("charge")).await;
            println!("asked the provider, {}", in_words(&found));
            Ok(match found {
                Ok(Some(receipt)) => Verdict::Completed(receipt), // the result, now and later
                Ok(None) => Verdict::NotExecuted,                 // the body runs, same claim
                Err(_) => Verdict::Unknown,                       // in doubt, looked up again later
            })
        }))]
    async fn charge(&self, payment: u32) -> Result<String, PayError> {
        self.is_at("charging").await;
        let receipt =
            self.provider.charge(payment, &Context::current().derive_key("charge")).await?;
        self.is_at("the provider has charged").await;
        Ok(receipt)
    }

    async fn is_at(&self, place: &str) {
        println!("{place}");
        if self.stops.as_deref() == Some(place) {
            std::future::pending::<()>().await;
        }
    }

    /// Calls until the payment is settled.
    async fn pay(&self, payment: u32) -> anyhow::Result<()> {
        loop {
            match self.charge(payment).await {
                Ok(receipt) => {
                    println!("paid, {receipt}");
                    return Ok(());
                }
                Err(PayError::Idempotency(error)) if error.is_retryable() => {
                    let what =
                        if error.kind() == ErrorKind::InDoubt { "in doubt" } else { "not now" };
                    println!("{what}: {error}");
                    tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
                }
                Err(PayError::NoAnswer(error)) => println!("the provider gave no answer: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn in_words(found: &io::Result<Option<String>>) -> String {
    match found {
        Ok(Some(receipt)) => format!("it has charged: {receipt}"),
        Ok(None) => "it has not charged".to_owned(),
        Err(error) => format!("no answer: {error}"),
    }
}

/// Pays in a process of its own, which is killed as soon as it prints a line that begins with
/// `until`.
async fn worker(
    directory: &Path,
    address: &str,
    payment: u32,
    until: Option<&str>,
) -> anyhow::Result<()> {
    println!("payment {payment}, a worker starts");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker").arg(directory).args([address, &payment.to_string()]).args(until);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let _ends_with_this_process = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        println!("  {line}");
        if until.is_some_and(|until| line.starts_with(until)) {
            child.kill().await?; // SIGKILL: none of its code runs any more
            println!("  killed");
            return Ok(());
        }
    }
    ensure!(child.wait().await?.success() && until.is_none(), "the worker has ended too early");
    Ok(())
}

async fn lead(directory: &Path) -> anyhow::Result<()> {
    let books = directory.join("books");
    let provider = ProviderProcess::start(&books).await?;
    worker(directory, provider.address(), 1, Some("the provider has charged")).await?;
    worker(directory, provider.address(), 1, None).await?;
    worker(directory, provider.address(), 2, Some("charging")).await?;
    worker(directory, provider.address(), 2, None).await?;

    worker(directory, provider.address(), 3, Some("the provider has charged")).await?;
    let address = provider.address().to_owned();
    provider.kill().await?;
    println!("the provider is down");
    worker(directory, &address, 3, Some("in doubt")).await?;
    let provider = ProviderProcess::start(&books).await?;
    println!("the provider is up again");
    worker(directory, provider.address(), 3, None).await?;

    for payment in ["1", "2", "3"] {
        let count = |what| {
            anyhow::Ok(noted(&books, what)?.iter().filter(|(noted, _)| noted == payment).count())
        };
        let (charged, repeated, asked) = (count("charged")?, count("repeated")?, count("asked")?);
        println!(
            "payment {payment} at the provider: charged {charged}x, sent again {repeated}x, asked about {asked}x"
        );
        ensure!((charged, repeated) == (1, 0), "payment {payment} was not charged exactly once");
    }
    println!("every payment was charged once");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["provider", books] => {
            end_with_parent();
            serve(Path::new(books)).await
        }
        ["worker", directory, address, payment, stops @ ..] => {
            end_with_parent();
            let store = SqliteStore::open(Path::new(directory).join("payments.db")).await?;
            Idempotency::new(store).install()?;
            let stops = stops.first().map(|&place| place.to_owned());
            Worker { provider: Provider::at(address), stops }.pay(payment.parse()?).await
        }
        [directory] => {
            std::fs::create_dir(directory).with_context(|| format!("cannot make {directory}"))?;
            lead(Path::new(directory)).await
        }
        _ => lead(tempfile::tempdir()?.path()).await,
    }
}

/// Ends this process when the one that started it is gone, for whatever reason.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    });
}
