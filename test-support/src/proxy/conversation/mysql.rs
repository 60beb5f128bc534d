//! The protocol of MySQL and MariaDB.
//!
//! A request is one command. Only the beginning of an answer is known: the first piece that arrives
//! after a request, at least one complete packet, stands for the answer, and the rest is passed on
//! as it arrives. The answer to a statement that writes is one packet; of several statements in one
//! request, it is the answer to the first.

use std::collections::{HashMap, VecDeque};

use super::command;
use crate::proxy::request::Request;
use crate::resp::Length;

/// The size of the length and the number of a packet.
const HEADER: usize = 4;
/// The length of a packet that continues in the next one.
const FULL_PACKET: usize = 0xFF_FFFF;
/// The size of the packet in which a client requests TLS, and the bit that says so.
const ENCRYPTION_REQUEST: usize = 32;
const ENCRYPTS: u8 = 0x08;

#[derive(Debug, Default)]
pub(in crate::proxy) struct MySql {
    is_encrypted: bool,
    /// The number of requests without an answer.
    unanswered: usize,
    /// The statement that the request prepares, for each of them and for each answer that was read.
    prepares: VecDeque<Option<String>>,
    /// True for an answer: one entry for each piece that was read and not yet checked by
    /// [`is_answer`](Self::is_answer).
    pieces: VecDeque<bool>,
    /// The prepared statements, by the numbers that the server assigned.
    prepared: HashMap<[u8; 4], String>,
}

impl MySql {
    pub(super) fn request_length(&mut self, bytes: &[u8]) -> Length {
        if self.is_encrypted {
            return Length::Invalid;
        }
        let length = packets_length(bytes);
        let is_second = bytes.get(3) == Some(&1);
        if length == Length::Complete(HEADER + ENCRYPTION_REQUEST)
            && is_second
            && bytes[HEADER + 1] & ENCRYPTS != 0
        {
            self.is_encrypted = true;
        }
        length
    }

    pub(super) fn answer_length(&mut self, bytes: &[u8]) -> Length {
        if self.is_encrypted {
            return Length::Invalid;
        }
        let is_answer = self.unanswered > 0;
        // The rest of an answer may begin in the middle of a packet.
        if is_answer && packets_length(bytes) == Length::Incomplete {
            return Length::Incomplete;
        }
        self.unanswered -= usize::from(is_answer);
        self.pieces.push_back(is_answer);
        Length::Complete(bytes.len())
    }

    pub(super) fn request(&mut self, bytes: Vec<u8>) -> (Request, bool) {
        let number = bytes.get(3).copied().unwrap_or_default();
        let content = bytes.get(HEADER..).unwrap_or_default();
        let (kind, rest) = content.split_first().map_or((0, content), |(kind, rest)| (*kind, rest));
        let text = || String::from_utf8_lossy(rest).into_owned();
        let mut prepares = None;
        let mut statement = None;
        let mut name = String::from(match kind {
            // Only a command starts the numbers at zero.
            _ if number != 0 => "LOGIN",
            0x01 => "QUIT",
            0x02 => "USE",
            0x03 => {
                statement = Some(text());
                ""
            }
            0x0E => "PING",
            0x16 => {
                prepares = Some(text());
                "PREPARE"
            }
            0x17 => {
                let id = rest.first_chunk::<4>();
                statement = id.and_then(|id| self.prepared.get(id)).cloned();
                "EXECUTE"
            }
            0x18 => "LONG DATA",
            0x19 => "CLOSE",
            0x1F => "RESET",
            _ => "OTHER",
        });
        if let Some(statement) = &statement {
            name = command(statement);
        }
        let has_answer = number != 0 || !matches!(kind, 0x01 | 0x18 | 0x19);
        if has_answer {
            self.unanswered += 1;
            self.prepares.push_back(prepares);
        }
        (Request::of_sql(bytes, name, statement.into_iter().collect()), has_answer)
    }

    pub(super) fn is_answer(&mut self, bytes: &[u8]) -> bool {
        if self.pieces.pop_front() != Some(true) {
            return false;
        }
        let prepares = self.prepares.pop_front().flatten();
        let number = bytes.get(HEADER + 1..).and_then(<[u8]>::first_chunk::<4>);
        if let (Some(statement), Some(0), Some(number)) = (prepares, bytes.get(HEADER), number) {
            self.prepared.insert(*number, statement);
        }
        true
    }
}

/// Returns the length of the first packet and of those that continue it.
fn packets_length(bytes: &[u8]) -> Length {
    let mut at = 0;
    loop {
        let Some([low, middle, high]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<3>) else {
            return Length::Incomplete;
        };
        let length = usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high) << 16;
        at += HEADER + length;
        if bytes.len() < at {
            return Length::Incomplete;
        }
        if length < FULL_PACKET {
            return Length::Complete(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FULL_PACKET, Length, MySql};

    fn packet(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&length[..3], &[number], content].concat()
    }

    fn answers(mysql: &mut MySql, bytes: &[u8]) -> bool {
        assert_eq!(mysql.answer_length(bytes), Length::Complete(bytes.len()));
        mysql.is_answer(bytes)
    }

    #[test]
    fn a_request_is_one_command_however_long() {
        let long = [packet(0, &vec![3; FULL_PACKET]), packet(1, b"end")].concat();
        for request in [packet(0, b"\x03SELECT 1"), packet(1, b"who I am"), long] {
            for cut in [0, 3, request.len() - 1] {
                assert_eq!(MySql::default().request_length(&request[..cut]), Length::Incomplete);
            }
            let followed = [&*request, b"\x01"].concat();
            assert_eq!(MySql::default().request_length(&followed), Length::Complete(request.len()));
        }
    }

    #[test]
    fn the_first_piece_after_a_request_is_its_answer_and_the_rest_is_passed_on() {
        let mut mysql = MySql::default();
        let greeting = packet(0, b"hello");
        assert_eq!(mysql.answer_length(&greeting), Length::Complete(greeting.len()));
        assert!(!mysql.is_answer(&greeting));
        mysql.request(packet(0, b"\x03SELECT 1"));
        let answer = [packet(1, b"\x01"), packet(2, b"column")].concat();
        assert_eq!(mysql.answer_length(&answer[..4]), Length::Incomplete);
        assert_eq!(mysql.answer_length(&answer), Length::Complete(answer.len()));
        // It may be read before the beginning is checked.
        assert_eq!(mysql.answer_length(b"a row"), Length::Complete(5));
        assert!(mysql.is_answer(&answer));
        assert!(!mysql.is_answer(b"a row"));
    }

    #[test]
    fn what_is_encrypted_is_not_followed() {
        let mut mysql = MySql::default();
        let mut content = [0; 32];
        content[1] = 0x08;
        assert_eq!(mysql.request_length(&packet(1, &content)), Length::Complete(36));
        assert_eq!(mysql.request_length(b"\x16\x03\x01"), Length::Invalid);
        assert_eq!(mysql.answer_length(b"\x16\x03\x01"), Length::Invalid);
    }

    #[test]
    fn a_request_names_what_it_runs_also_when_that_was_prepared_before() {
        let mut mysql = MySql::default();
        assert_eq!(mysql.request(packet(1, b"\x03 who I am")).0.command(), "LOGIN");
        assert!(answers(&mut mysql, &packet(2, b"\0\0\0\x02\0\0\0")));
        let (prepare, _) = mysql.request(packet(0, b"\x16UPDATE t SET a = ?"));
        assert_eq!((prepare.command(), prepare.statements()), (String::from("PREPARE"), &[][..]));
        assert!(answers(&mut mysql, &packet(1, b"\0\x07\0\0\0\0\0\x01\0\0\0\0")));
        let (run, has_answer) = mysql.request(packet(0, b"\x17\x07\0\0\0\0\x01\0\0\0"));
        assert_eq!(
            (run.command(), run.runs("SET a"), has_answer),
            (String::from("UPDATE"), true, true)
        );
        let (close, has_answer) = mysql.request(packet(0, b"\x19\x07\0\0\0"));
        assert_eq!((close.command(), has_answer), (String::from("CLOSE"), false));
    }
}
