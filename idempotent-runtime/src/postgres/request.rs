//! One statement with its values, which are bound or, where statements cannot be prepared, written
//! into it.

use crate::store::Operation;
use std::fmt::Write as _;
use std::sync::Arc;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Error, raw_sql};

use super::error::{answer_of_another, is_conflict, store_error};
use super::statements::Statement;
use crate::key::KeyHash;
use crate::sql::{Answer, Value};

/// The number of times that a statement is sent while the server rolls it back because of others.
const ATTEMPTS: usize = 30;

/// The manner in which a statement is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner<'a> {
    /// Prepared, with its values separate.
    Prepared,
    /// As one text with its values in it, after another text.
    TextAfter(&'a str),
}

/// A statement and the values of its `$1`, `$2`, …
#[must_use]
pub(super) struct Request<'a> {
    statement: &'a Statement,
    arguments: Vec<Argument<'a>>,
}

enum Argument<'a> {
    One(Value<'a>),
    BytesList(Vec<&'a [u8]>),
    IntegerList(Vec<i64>),
}

impl<'a> Request<'a> {
    pub(super) fn new(statement: &'a Statement) -> Self {
        Self { statement, arguments: Vec::new() }
    }

    pub(super) fn values(mut self, values: impl IntoIterator<Item = Value<'a>>) -> Self {
        self.arguments.extend(values.into_iter().map(Argument::One));
        self
    }

    pub(super) fn bytes(self, bytes: &'a [u8]) -> Self {
        self.values([Value::Bytes(Some(bytes))])
    }

    pub(super) fn text(self, text: &'a str) -> Self {
        self.values([Value::Text(Some(text))])
    }

    pub(super) fn small(self, value: i16) -> Self {
        self.values([Value::Small(value)])
    }

    pub(super) fn integer(self, value: i64) -> Self {
        self.values([Value::Integer(value)])
    }

    pub(super) fn keys(mut self, keys: &'a [KeyHash]) -> Self {
        self.arguments
            .push(Argument::BytesList(keys.iter().map(|key| &key.as_bytes()[..]).collect()));
        self
    }

    pub(super) fn owners(mut self, owners: &'a [[u8; 16]]) -> Self {
        self.arguments.push(Argument::BytesList(owners.iter().map(|owner| &owner[..]).collect()));
        self
    }

    pub(super) fn integers(mut self, list: Vec<i64>) -> Self {
        self.arguments.push(Argument::IntegerList(list));
        self
    }

    /// Sends the request, and returns the rows of the result. It is a transaction of its own, and
    /// the server rolls back only that on a conflict: the statement is then sent again, and meets
    /// what the others have written.
    pub(super) async fn send(
        self,
        operation: Operation,
        connection: &mut PgConnection,
        manner: Manner<'_>,
    ) -> Answer<Vec<PgRow>> {
        let mut attempt = 1;
        loop {
            match self.try_once(connection, manner).await {
                Err(error) if is_conflict(&error) && attempt < ATTEMPTS => attempt += 1,
                result => return result.map_err(|error| store_error(operation, error)),
            }
        }
    }

    /// Sends the request once, in a transaction of the user, and returns the rows of the result.
    pub(super) async fn send_once(
        self,
        operation: Operation,
        connection: &mut PgConnection,
        prepared: bool,
    ) -> Answer<Vec<PgRow>> {
        let manner = if prepared { Manner::Prepared } else { Manner::TextAfter("") };
        self.try_once(connection, manner).await.map_err(|error| store_error(operation, error))
    }

    /// Sends the request like [`send_once`](Self::send_once), as one text with its values in it
    /// after the statements of `first`. Returns the rows of all.
    pub(super) async fn send_after(
        self,
        operation: Operation,
        connection: &mut PgConnection,
        first: &str,
    ) -> Answer<Vec<PgRow>> {
        let manner = Manner::TextAfter(first);
        self.try_once(connection, manner).await.map_err(|error| store_error(operation, error))
    }

    async fn try_once(
        &self,
        connection: &mut PgConnection,
        manner: Manner<'_>,
    ) -> Result<Vec<PgRow>, Error> {
        match manner {
            Manner::Prepared => {
                let rows = self.bound(connection).await?;
                let are_own = rows.iter().all(|row| self.statement.has_returned(row));
                if are_own { Ok(rows) } else { Err(answer_of_another()) }
            }
            Manner::TextAfter(first) => {
                raw_sql(AssertSqlSafe(self.as_text(String::from(first))))
                    .fetch_all(connection)
                    .await
            }
        }
    }

    async fn bound(&self, connection: &mut PgConnection) -> Result<Vec<PgRow>, Error> {
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(self.statement.text())));
        for argument in &self.arguments {
            query = match argument {
                Argument::One(Value::Small(value)) => query.bind(value),
                Argument::One(Value::Integer(value)) => query.bind(value),
                Argument::One(Value::Bytes(value)) => query.bind(value),
                Argument::One(Value::Text(value)) => query.bind(value),
                Argument::BytesList(list) => query.bind(list),
                Argument::IntegerList(list) => query.bind(list),
            };
        }
        query.fetch_all(connection).await
    }

    /// Appends the statement to `text`, with its values filled in.
    fn as_text(&self, mut text: String) -> String {
        let mut pieces = self.statement.text().split('$');
        text.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = piece.split_at(digits);
            let argument = number
                .parse::<usize>()
                .ok()
                .and_then(|number| self.arguments.get(number.checked_sub(1)?));
            match argument {
                Some(argument) => write_argument(&mut text, argument),
                // The server reports what is wrong with it.
                None => drop(write!(text, "${number}")),
            }
            text.push_str(rest);
        }
        text
    }
}

fn write_argument(text: &mut String, argument: &Argument<'_>) {
    match argument {
        Argument::One(value) => write_value(text, *value),
        Argument::BytesList(list) => {
            write_list(text, "bytea", list.iter().map(|bytes| Value::Bytes(Some(bytes))));
        }
        Argument::IntegerList(list) => {
            write_list(text, "int8", list.iter().copied().map(Value::Integer));
        }
    }
}

fn write_list<'a>(text: &mut String, of: &str, values: impl Iterator<Item = Value<'a>>) {
    text.push_str("ARRAY[");
    for (position, value) in values.enumerate() {
        if position > 0 {
            text.push_str(", ");
        }
        write_value(text, value);
    }
    text.push_str("]::");
    text.push_str(of);
    text.push_str("[]");
}

/// Writes bytes and text as hexadecimal digits: nothing in them can be misread, whatever the
/// server's settings.
fn write_value(text: &mut String, value: Value<'_>) {
    match value {
        Value::Small(value) => drop(write!(text, "({value})::int2")),
        Value::Integer(value) => drop(write!(text, "({value})::int8")),
        Value::Bytes(None) => text.push_str("NULL::bytea"),
        Value::Text(None) => text.push_str("NULL::text"),
        Value::Bytes(Some(bytes)) => write_bytes(text, bytes),
        Value::Text(Some(value)) => {
            text.push_str("convert_from(");
            write_bytes(text, value.as_bytes());
            text.push_str(", 'UTF8')");
        }
    }
}

fn write_bytes(text: &mut String, bytes: &[u8]) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    text.reserve(2 * bytes.len() + 18);
    text.push_str("decode('");
    for byte in bytes {
        text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    text.push_str("', 'hex')");
}

#[cfg(test)]
mod tests {
    use super::{Request, Statement};
    use crate::sql::Value;

    #[test]
    fn values_are_written_as_what_they_are_and_as_nothing_else() {
        let statement =
            Statement::new("SELECT $1, $2 + $10, '$', $3, $4, $5, $6, $7, $8 FROM t WHERE a = $9");
        let request = Request::new(&statement)
            .small(-3)
            .integer(i64::MIN)
            .bytes(&[0, 0xff, b'\''])
            .values([Value::Bytes(None), Value::Text(Some("'; $1")), Value::Text(None)])
            .owners(&[[1; 16], [0xab; 16]])
            .integers(vec![1, -2])
            .keys(&[])
            .integer(10);
        assert_eq!(
            request.as_text(String::new()),
            "SELECT (-3)::int2, (-9223372036854775808)::int8 + (10)::int8, '$', decode('00ff27', 'hex'), NULL::bytea, \
             convert_from(decode('273b202431', 'hex'), 'UTF8'), NULL::text, \
             ARRAY[decode('01010101010101010101010101010101', 'hex'), \
             decode('abababababababababababababababab', 'hex')]::bytea[], ARRAY[(1)::int8, (-2)::int8]::int8[] \
             FROM t WHERE a = ARRAY[]::bytea[]"
        );
    }
}
