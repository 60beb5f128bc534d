//! The conversation on one connection: where requests and answers begin and end, and what a request
//! is for.

mod mysql;
mod postgres;

use super::request::Request;
use crate::resp::{self, Length};
use mysql::MySql;
use postgres::Postgres;

/// The protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Redis and Valkey.
    Redis,
    /// PostgreSQL and `PgBouncer`.
    Postgres,
    /// MariaDB and MySQL.
    MySql,
}

/// One connection, as far as it has been followed.
pub(super) enum Conversation {
    Redis,
    Postgres(Postgres),
    MySql(MySql),
}

impl Conversation {
    pub(super) fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Redis => Self::Redis,
            Protocol::Postgres => Self::Postgres(Postgres::default()),
            Protocol::MySql => Self::MySql(MySql::default()),
        }
    }

    /// Returns the length of the first request in `bytes`.
    pub(super) fn request_length(&mut self, bytes: &[u8]) -> Length {
        match self {
            Self::Redis => resp::request_length(bytes),
            Self::Postgres(postgres) => postgres.request_length(bytes),
            Self::MySql(mysql) => mysql.request_length(bytes),
        }
    }

    /// Returns the length of the first answer in `bytes`.
    pub(super) fn answer_length(&mut self, bytes: &[u8]) -> Length {
        match self {
            Self::Redis => resp::message_length(bytes),
            Self::Postgres(postgres) => postgres.answer_length(bytes),
            Self::MySql(mysql) => mysql.answer_length(bytes),
        }
    }

    /// Parses a complete request, and returns whether the server answers it. Called in the order in
    /// which they reach the server.
    pub(super) fn request(&mut self, bytes: Vec<u8>) -> (Request, bool) {
        match self {
            Self::Redis => (Request::of_redis(bytes), true),
            Self::Postgres(postgres) => postgres.request(bytes),
            Self::MySql(mysql) => mysql.request(bytes),
        }
    }

    /// Returns true if this is the answer to the earliest request that has none. If not, the server
    /// sends it on its own, or continues an answer.
    pub(super) fn is_answer(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Redis => bytes.first() != Some(&b'>'),
            Self::Postgres(_) => postgres::is_answer(bytes),
            Self::MySql(mysql) => mysql.is_answer(bytes),
        }
    }
}

/// Returns the first word of a statement, in upper case.
fn command(statement: &str) -> String {
    let mut rest = statement.trim_start();
    loop {
        let comment_end = if rest.starts_with("--") {
            rest.find('\n')
        } else if rest.starts_with("/*") {
            rest.find("*/").map(|at| at + 1)
        } else {
            break;
        };
        rest = comment_end.map_or("", |at| &rest[at + 1..]).trim_start();
    }
    let end = rest.find(|character: char| !character.is_alphanumeric()).unwrap_or(rest.len());
    rest[..end].to_uppercase()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_of_a_statement_is_its_first_word() {
        for (statement, expected) in [
            ("select 1", "SELECT"),
            ("COMMIT", "COMMIT"),
            ("\n  -- Claims: a key.\n-- More.\n/* and\nmore */ with(a) as", "WITH"),
            ("-- nothing", ""),
            ("", ""),
        ] {
            assert_eq!(super::command(statement), expected, "{statement}");
        }
    }
}
