//! The world around `quickstart` and `without_macro`: events from a file, and a card provider with
//! a ledger of its own.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// One line of the file; `examples/data/README.md` describes the fields.
#[derive(Deserialize)]
pub(crate) struct Event {
    #[serde(flatten)]
    pub(crate) payment: Payment,
    #[serde(default)]
    pub(crate) answer: Answer,
}

/// The fate of the response. If it is lost, the client sends the payment again later.
#[derive(Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    #[default]
    Arrives,
    Lost,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Payment {
    #[serde(rename = "payment")]
    pub(crate) id: String,
    pub(crate) customer: String,
    /// The amount in cents.
    pub(crate) amount: u64,
    pub(crate) currency: String,
    pub(crate) card: String,
}

pub(crate) fn bundled_events() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/events.jsonl")
}

/// Reads the events of the file. Returns them with the number of invalid lines, which are reported
/// with their line numbers.
pub(crate) fn read_events(path: &Path) -> anyhow::Result<(Vec<Event>, usize)> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut events, mut malformed) = (Vec::new(), 0);
    for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        match serde_json::from_slice(line) {
            Ok(event) => events.push(event),
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(error) => {
                malformed += 1;
                let message = error.to_string();
                let message =
                    message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
                eprintln!(
                    "line {number}, column {} is malformed and skipped: {message}",
                    error.column()
                );
            }
        }
    }
    Ok((events, malformed))
}

/// Prints an error on stderr.
pub(crate) fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

/// Returns the sum of these charges in cents, and their number, for each currency.
pub(crate) fn sums(charges: &[Payment]) -> BTreeMap<&str, (u128, usize)> {
    charges.iter().fold(BTreeMap::new(), |mut sums, charge| {
        let (amount, count) = sums.entry(&*charge.currency).or_default();
        *amount += u128::from(charge.amount);
        *count += 1;
        sums
    })
}

/// A card provider that charges on every request and records it: the effect that a retry must not
/// repeat.
pub(crate) struct CardProvider {
    path: PathBuf,
    ledger: File,
    /// The directory of a ledger that is not kept.
    _scratch: TempDir,
}

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum ProviderError {
    #[error("the card was declined")]
    Declined,
    #[error("the card provider gave no answer: {0}")]
    NoAnswer(String),
}

impl From<io::Error> for ProviderError {
    fn from(error: io::Error) -> Self {
        Self::NoAnswer(error.to_string())
    }
}

impl CardProvider {
    /// Opens a provider with an empty ledger: a new file at `keep`, or one that is deleted at the
    /// end.
    pub(crate) fn open(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir().context("cannot make a directory for the ledger")?;
        let path = keep.unwrap_or_else(|| scratch.path().join("ledger.jsonl"));
        let ledger = OpenOptions::new().append(true).create_new(true).open(&path);
        let ledger =
            ledger.with_context(|| format!("cannot make the ledger {}", path.display()))?;
        Ok(Self { path, ledger, _scratch: scratch })
    }

    pub(crate) async fn charge(&self, payment: &Payment) -> Result<(), ProviderError> {
        tokio::time::sleep(Duration::from_millis(3)).await; // network latency
        if payment.card.ends_with("-0002") {
            return Err(ProviderError::Declined);
        }
        let line = serde_json::to_string(payment).map_err(io::Error::from)?;
        Ok((&self.ledger).write_all(format!("{line}\n").as_bytes())?)
    }

    /// Returns every charge that was made, read back from the ledger.
    pub(crate) fn charges(&self) -> anyhow::Result<Vec<Payment>> {
        let text = fs::read_to_string(&self.path)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("the ledger is damaged"))
            .collect()
    }
}
