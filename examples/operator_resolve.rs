//! Two payments whose workers were killed (SIGKILL), one after the charge and one before. Under
//! `hold`, the default, no caller runs them again. Operators list the records in doubt, check the
//! bank's books, and resolve them.
//!
//! ```sh
//! cargo run --features sqlite --example operator_resolve
//! cargo run --features sqlite --example operator_resolve -- DIRECTORY   # keeps records and books in a new one
//! ```

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use idempotency::record::{RecordView, Resolution, State};
use idempotency::store::{Only, Scan, SqliteStore};
use idempotency::{Error, ErrorKind, Idempotency, idempotent};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

const OPERATION: &str = "payments.charge";

#[derive(Debug, thiserror::Error)]
enum PayError {
    #[error(transparent)]
    Books(#[from] io::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

#[idempotent(name = OPERATION, key = payment, ttl = "24h", lease = "10s", on_crash = hold)]
async fn charge(bank: &Bank, payment: u32) -> Result<String, PayError> {
    bank.is_at("charging").await;
    bank.charge(payment)?;
    bank.is_at("charged").await;
    Ok(format!("receipt of payment {payment}"))
}

/// The bank, which charges on every request. Its books are where effects are counted.
struct Bank {
    books: PathBuf,
    /// The place at which the worker stops until it is killed.
    stops: Option<String>,
}

impl Bank {
    fn charge(&self, payment: u32) -> io::Result<()> {
        let mut books = OpenOptions::new().create(true).append(true).open(&self.books)?;
        books.write_all(format!("charged {payment}\n").as_bytes())
    }

    async fn is_at(&self, place: &str) {
        println!("{place}");
        if self.stops.as_deref() == Some(place) {
            std::future::pending::<()>().await;
        }
    }
}

/// Charges in a process of its own, which is killed as soon as it prints the line `until`.
async fn worker(directory: &Path, payment: u32, until: Option<&str>) -> anyhow::Result<()> {
    println!("payment {payment}, a worker starts");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker").arg(directory).arg(payment.to_string()).args(until);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let _ends_with_this_process = child.stdin.take();
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        println!("  {line}");
        if until == Some(line.as_str()) {
            child.kill().await?; // SIGKILL: none of its code runs any more
            println!("  killed");
            return Ok(());
        }
    }
    ensure!(child.wait().await?.success() && until.is_none(), "the worker has ended too early");
    Ok(())
}

/// Lists the records in doubt, including those that no caller has noticed yet. A list shows hashes:
/// the store does not know the keys. What an operator resolves is the view of one record.
async fn in_doubt(engine: &Idempotency) -> anyhow::Result<Vec<RecordView>> {
    let (mut scan, mut found) = (Scan::default(), Vec::new());
    (scan.only, scan.operation) = (Only::InDoubt, Some(OPERATION.into()));
    let mut records = engine.records(scan);
    while let Some(record) = records.next().await {
        let view = engine.record_by_hash(record?.key).inspect().await?;
        found.extend(view.filter(|view| view.state == State::InDoubt));
    }
    Ok(found)
}

async fn lead(directory: &Path) -> anyhow::Result<()> {
    worker(directory, 7, Some("charged")).await?;
    worker(directory, 8, Some("charging")).await?;
    // The leases of the killed workers expire after ten seconds. From then on, every call is
    // refused as in doubt.
    worker(directory, 7, None).await?;
    worker(directory, 8, None).await?;

    let store = SqliteStore::open(directory.join("payments.db")).await?;
    let engine = Idempotency::new(store);
    let (ada_sees, bob_sees) = (in_doubt(&engine).await?, in_doubt(&engine).await?);
    println!("in doubt are {} payments", ada_sees.len());
    let books = fs::read_to_string(directory.join("books"))?;
    for payment in [7, 8] {
        // The hash under which the store keeps the record. Errors show its first twelve characters.
        let record = engine.record(OPERATION, payment);
        let name = record.hash()?;
        let of_payment = |views: &[RecordView]| views.iter().find(|view| view.key == name).cloned();
        let view =
            of_payment(&ada_sees).with_context(|| format!("payment {payment} is not in doubt"))?;
        let age = SystemTime::from(view.created).elapsed().unwrap_or_default().as_secs();
        let reason = view.reason.context("it has no reason")?;
        println!(
            "  {} {name}: {reason}; attempt {}, first claimed {age}s ago",
            view.operation, view.attempts
        );
        // The process that died, by its host and its ID: its logs say how far it came.
        println!("  held by {}", view.holder);

        let was_charged = books.lines().any(|line| line == format!("charged {payment}"));
        let (answer, words) = if was_charged {
            (Resolution::completed(format!("receipt of payment {payment}")), "completed")
        } else {
            (Resolution::not_executed(), "not executed")
        };
        record.resolve(&view, answer).await?;
        println!("  Ada has looked into the books and answers: {words}");

        // Bob took his list at the same time, and has not checked the books. His resolution is
        // rejected, whatever it is.
        let seen = of_payment(&bob_sees).context("Bob has not seen it")?;
        match record.resolve(&seen, Resolution::not_executed()).await {
            Err(error) if error.kind() == ErrorKind::Superseded => {
                println!("  Bob answers too late: {error}");
            }
            answer => anyhow::bail!("Bob has answered as well: {answer:?}"),
        }
    }
    ensure!(in_doubt(&engine).await?.is_empty(), "something is still in doubt");

    worker(directory, 7, None).await?;
    worker(directory, 8, None).await?;
    let books = fs::read_to_string(directory.join("books"))?;
    ensure!(books == "charged 7\ncharged 8\n", "the books say {books}");
    println!("every payment was charged once");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", directory, payment, stops @ ..] => {
            end_with_parent();
            let directory = Path::new(directory);
            Idempotency::new(SqliteStore::open(directory.join("payments.db")).await?).install()?;
            let bank = Bank {
                books: directory.join("books"),
                stops: stops.first().map(|&place| place.to_owned()),
            };
            match charge(&bank, payment.parse()?).await {
                Ok(receipt) => println!("done: {receipt}"),
                Err(error) => println!("refused: {error}"),
            }
            Ok(())
        }
        [directory] => {
            fs::create_dir(directory).with_context(|| format!("cannot make {directory}"))?;
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
