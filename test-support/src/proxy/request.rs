//! A request as a client sent it.

use crate::resp;

/// One request of a client, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    bytes: Vec<u8>,
    /// Of the Redis protocol.
    understood: bool,
}

impl Request {
    pub(super) fn new(bytes: Vec<u8>, understood: bool) -> Self {
        Self { bytes, understood }
    }

    /// As it was sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The command in upper case: `"SET"`. Empty for what is not the Redis protocol.
    pub fn command(&self) -> String {
        self.words().first().map(|word| word.escape_ascii().to_string().to_ascii_uppercase()).unwrap_or_default()
    }

    /// What follows the command.
    pub fn arguments(&self) -> Vec<&[u8]> {
        self.words().into_iter().skip(1).collect()
    }

    /// Whether one of the words is this one, for example the hash of a script or a key.
    pub fn mentions(&self, word: &str) -> bool {
        self.words().contains(&word.as_bytes())
    }

    fn words(&self) -> Vec<&[u8]> {
        if self.understood { resp::words(&self.bytes) } else { Vec::new() }
    }
}
