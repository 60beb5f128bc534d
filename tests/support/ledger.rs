//! Counts effects outside of the code under test: one line in a file per effect.

use std::fs::OpenOptions;
use std::io::Write as _;

use tempfile::NamedTempFile;

#[derive(Debug)]
pub struct Ledger(NamedTempFile);

impl Ledger {
    pub fn new() -> Self {
        Self(NamedTempFile::new().expect("a temporary file"))
    }

    /// The effect of a body.
    pub fn charge(&self, what: &str) {
        let mut file =
            OpenOptions::new().append(true).open(self.0.path()).expect("the ledger opens");
        file.write_all(format!("{what}\n").as_bytes()).expect("the ledger takes a line");
    }

    /// An effect without a name. Returns its number, so that a second one gives another result.
    pub fn happen(&self) -> usize {
        self.charge("it");
        self.count()
    }

    /// The effects so far.
    pub fn charges(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.path()).expect("the ledger can be read");
        text.lines().map(str::to_owned).collect()
    }

    pub fn count(&self) -> usize {
        self.charges().len()
    }
}
