//! The protocol of PostgreSQL, version 3.
//!
//! A request is everything that a client sends until it needs an answer: a simple query, or the
//! messages up to a Sync. An answer is everything up to the message that says that the server is
//! ready for the next request, or needs more from a client that logs in. (The effects of `COPY` and
//! Flush are not followed.)

use std::collections::HashMap;

use super::command;
use crate::proxy::request::Request;
use crate::resp::Length;

/// The length beyond which a message is not of this protocol: TLS, for example.
const MAX_LENGTH: usize = 64 << 20;
/// The maximum length of the first message, in which the client introduces itself.
const MAX_INTRODUCTION: usize = 10_000;
/// The codes of requests for TLS or GSS encryption; the answer is a single letter.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];
/// The code of a request, on a connection of its own, to cancel another connection's statement;
/// there is no answer.
const CANCEL_REQUEST: u32 = 80_877_102;
/// The codes of an `R` message that ends the login: success, or the server's last message about it.
const LOGIN_IS_OVER: [u32; 2] = [0, 12];

#[derive(Debug, Default)]
pub(in crate::proxy) struct Postgres {
    /// True once the client has introduced itself; from then on messages begin with a letter.
    has_introduced_itself: bool,
    /// True once the server has answered that.
    is_received: bool,
    is_encrypted: bool,
    /// The prepared statements, by their names.
    prepared: HashMap<Vec<u8>, String>,
}

impl Postgres {
    pub(super) fn request_length(&mut self, bytes: &[u8]) -> Length {
        if !self.has_introduced_itself {
            return self.introduction_length(bytes);
        }
        let mut at = 0;
        loop {
            let end = match message_end(bytes, at) {
                Ok(end) => end,
                Err(stop) => return stop,
            };
            // Query, Sync, a password, a function call, the end.
            if matches!(bytes[at], b'Q' | b'S' | b'p' | b'F' | b'X') {
                return Length::Complete(end);
            }
            at = end;
        }
    }

    fn introduction_length(&mut self, bytes: &[u8]) -> Length {
        let (Some(length), Some(code)) = (number(bytes, 0), number(bytes, 4)) else {
            return Length::Incomplete;
        };
        let length = length as usize;
        if !(8..=MAX_INTRODUCTION).contains(&length) {
            return Length::Invalid;
        }
        if bytes.len() < length {
            return Length::Incomplete;
        }
        self.has_introduced_itself = !ENCRYPTION_REQUESTS.contains(&code);
        Length::Complete(length)
    }

    pub(super) fn answer_length(&mut self, bytes: &[u8]) -> Length {
        let Some(first) = bytes.first() else { return Length::Incomplete };
        if self.is_encrypted {
            return Length::Invalid;
        }
        if !self.is_received && matches!(first, b'S' | b'N' | b'G') {
            self.is_encrypted = *first != b'N';
            return Length::Complete(1);
        }
        let mut at = 0;
        loop {
            let end = match message_end(bytes, at) {
                Ok(end) => end,
                Err(stop) => return stop,
            };
            let is_last = match bytes[at] {
                b'Z' => true,
                b'A' => at == 0,
                b'R' => number(bytes, at + 5).is_some_and(|code| !LOGIN_IS_OVER.contains(&code)),
                _ => false,
            };
            if is_last {
                self.is_received = true;
                return Length::Complete(end);
            }
            at = end;
        }
    }

    pub(super) fn request(&mut self, bytes: Vec<u8>) -> (Request, bool) {
        // The first byte of the introduction's length, where others have a letter.
        if bytes.first() == Some(&0) {
            let code = number(&bytes, 4).unwrap_or_default();
            let name = if ENCRYPTION_REQUESTS.contains(&code) { "ENCRYPT" } else { "LOGIN" };
            return (
                Request::of_sql(bytes, String::from(name), Vec::new()),
                code != CANCEL_REQUEST,
            );
        }
        let mut statements = Vec::new();
        let mut name = String::new();
        let mut at = 0;
        while let Ok(end) = message_end(&bytes, at) {
            let mut words = bytes[at + 5..end].split(|byte| *byte == 0);
            let mut word = || words.next().unwrap_or_default();
            match bytes[at] {
                b'Q' => statements.push(text(word())),
                b'P' => {
                    let statement = word();
                    self.prepared.insert(statement.to_vec(), text(word()));
                    name = String::from("PREPARE");
                }
                b'B' => {
                    let (_portal, statement) = (word(), word());
                    statements.extend(self.prepared.get(statement).cloned());
                }
                b'p' => name = String::from("PASSWORD"),
                b'X' => name = String::from("QUIT"),
                _ => {}
            }
            at = end;
        }
        if let Some(statement) = statements.first() {
            name = command(statement);
        }
        let has_answer = name != "QUIT";
        (Request::of_sql(bytes, name, statements), has_answer)
    }
}

/// Returns true if the server answers a request with this. Notifications arrive at any time.
pub(super) fn is_answer(bytes: &[u8]) -> bool {
    bytes.first() != Some(&b'A')
}

/// Returns the end of the message that begins at `at` with a letter.
fn message_end(bytes: &[u8], at: usize) -> Result<usize, Length> {
    let kind = bytes.get(at).ok_or(Length::Incomplete)?;
    if !kind.is_ascii_alphanumeric() {
        return Err(Length::Invalid);
    }
    let length = number(bytes, at + 1).ok_or(Length::Incomplete)? as usize;
    if !(4..MAX_LENGTH).contains(&length) {
        return Err(Length::Invalid);
    }
    let end = at + 1 + length;
    if end <= bytes.len() { Ok(end) } else { Err(Length::Incomplete) }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Length, Postgres};

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, content].concat()
    }

    fn introduction(code: u32) -> Vec<u8> {
        [8_u32.to_be_bytes(), code.to_be_bytes()].concat()
    }

    fn introduced() -> Postgres {
        let mut postgres = Postgres::default();
        let hello = introduction(196_608);
        assert_eq!(postgres.request_length(&hello), Length::Complete(8));
        assert_eq!(postgres.request(hello).0.command(), "LOGIN");
        postgres
    }

    /// Checks that the message has exactly this length, and is incomplete before.
    fn whole(length: impl Fn(&[u8]) -> Length, bytes: &[u8]) {
        for cut in 0..bytes.len() {
            assert_eq!(
                length(&bytes[..cut]),
                Length::Incomplete,
                "{}",
                bytes[..cut].escape_ascii()
            );
        }
        assert_eq!(
            length(&[bytes, b"Q"].concat()),
            Length::Complete(bytes.len()),
            "{}",
            bytes.escape_ascii()
        );
    }

    #[test]
    fn a_request_goes_as_far_as_the_client_goes_without_an_answer() {
        let extended =
            [message(b'P', b"s\0SELECT 1\0\0\0"), message(b'D', b"Ss\0"), message(b'S', b"")]
                .concat();
        for request in
            [message(b'Q', b"SELECT 1\0"), extended, message(b'p', b"secret\0"), message(b'X', b"")]
        {
            whole(|bytes| introduced().request_length(bytes), &request);
        }
    }

    #[test]
    fn an_answer_goes_as_far_as_the_server_goes_without_a_request() {
        let asks_for_password = message(b'R', &3_u32.to_be_bytes());
        let welcome =
            [message(b'R', &0_u32.to_be_bytes()), message(b'S', b"a\0b\0"), message(b'Z', b"I")]
                .concat();
        let rows = [
            message(b'T', b"..."),
            message(b'N', b"..."),
            message(b'C', b"SELECT 1\0"),
            message(b'Z', b"T"),
        ];
        for answer in [asks_for_password, welcome, message(b'A', b"...")] {
            whole(|bytes| Postgres::default().answer_length(bytes), &answer);
        }
        let received = || Postgres { is_received: true, ..Postgres::default() };
        whole(|bytes| received().answer_length(bytes), &rows.concat());
        assert!(
            !super::is_answer(&message(b'A', b"...")) && super::is_answer(&message(b'E', b"..."))
        );
    }

    #[test]
    fn what_is_encrypted_is_not_followed() {
        let mut postgres = Postgres::default();
        let request = introduction(80_877_103);
        assert_eq!(postgres.request_length(&request), Length::Complete(8));
        assert_eq!(postgres.request(request).0.command(), "ENCRYPT");
        assert_eq!(postgres.answer_length(b"N"), Length::Complete(1));
        assert_eq!(postgres.answer_length(b"S"), Length::Complete(1));
        assert_eq!(postgres.answer_length(b"\x16\x03\x01\x00\x10"), Length::Invalid);
        assert_eq!(postgres.request_length(b"\x16\x03\x01\x02\x00\x01\x00\x01"), Length::Invalid);
    }

    #[test]
    fn a_request_names_what_it_runs_also_when_that_was_prepared_before() {
        let mut postgres = introduced();
        let mut request = |messages: &[Vec<u8>]| postgres.request(messages.concat()).0;
        let prepare = request(&[message(b'P', b"s\0UPDATE t SET a = 1\0\0\0"), message(b'S', b"")]);
        assert_eq!((prepare.command(), prepare.statements()), (String::from("PREPARE"), &[][..]));
        let run = request(&[
            message(b'B', b"\0s\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
        ]);
        assert_eq!((run.command(), run.runs("SET a")), (String::from("UPDATE"), true));
        assert!(!run.runs("SET b"));
        let query = request(&[message(b'Q', b"COMMIT\0")]);
        assert_eq!(
            (query.command(), query.statements()),
            (String::from("COMMIT"), &[String::from("COMMIT")][..])
        );
        assert!(!postgres.request(message(b'X', b"")).1, "nobody answers to that");
    }
}
