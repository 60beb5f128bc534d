//! A request as a client sent it.

use crate::resp;

/// One complete request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    bytes: Vec<u8>,
    meaning: Meaning,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    /// Some bytes that arrived together.
    Unknown,
    /// The words are in the bytes.
    Redis,
    Sql {
        command: String,
        statements: Vec<String>,
    },
}

impl Request {
    pub(super) fn unknown(bytes: Vec<u8>) -> Self {
        Self { bytes, meaning: Meaning::Unknown }
    }

    pub(super) fn of_redis(bytes: Vec<u8>) -> Self {
        Self { bytes, meaning: Meaning::Redis }
    }

    pub(super) fn of_sql(bytes: Vec<u8>, command: String, statements: Vec<String>) -> Self {
        Self { bytes, meaning: Meaning::Sql { command, statements } }
    }

    /// Returns the request as it was sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the command in upper case: `"SET"`, or the first word of the statement that is run:
    /// `"UPDATE"`.
    ///
    /// For SQL databases, this includes requests that run no statement: `"LOGIN"`, `"PREPARE"` for
    /// a statement that is only prepared, and so on. Empty for requests of another protocol.
    pub fn command(&self) -> String {
        match &self.meaning {
            Meaning::Sql { command, .. } => command.clone(),
            _ => self
                .words()
                .first()
                .map(|word| word.escape_ascii().to_string().to_uppercase())
                .unwrap_or_default(),
        }
    }

    /// Returns the arguments of a Redis command.
    pub fn arguments(&self) -> Vec<&[u8]> {
        self.words().into_iter().skip(1).collect()
    }

    /// Returns true if `word` is one of the words of a Redis command, for example the hash of a
    /// script or a key.
    pub fn mentions(&self, word: &str) -> bool {
        self.words().contains(&word.as_bytes())
    }

    /// Returns the SQL statements that are run, even if the request only names one that was
    /// prepared before.
    pub fn statements(&self) -> &[String] {
        match &self.meaning {
            Meaning::Sql { statements, .. } => statements,
            _ => &[],
        }
    }

    /// Returns true if an SQL statement is run that contains `text`.
    pub fn runs(&self, text: &str) -> bool {
        self.statements().iter().any(|statement| statement.contains(text))
    }

    fn words(&self) -> Vec<&[u8]> {
        if self.meaning == Meaning::Redis { resp::words(&self.bytes) } else { Vec::new() }
    }
}
