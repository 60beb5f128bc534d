//! The name of the table: the one part of a statement that does not come from this crate.

use std::fmt;

use crate::store::{Operation, StoreError, StoreErrorKind};

/// The longest name for which the tables and indexes derived from it still fit the limits of
/// PostgreSQL (63 bytes) and MySQL (64).
const LONGEST: usize = 48;

/// A table, and its schema (in MySQL: its database) if that is not the connection's own.
///
/// ASCII letters, digits and underscores, not starting with a digit: such a name is the same in
/// every dialect, and cannot be anything but a name in a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    pub(crate) const DEFAULT: &'static str = "idempotency_records";

    /// Reads `table` or `schema.table`.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when a part is empty, longer than 48 characters or has
    /// another character.
    pub(crate) fn parse(name: &str) -> Result<Self, StoreError> {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, name),
        };
        if schema.into_iter().chain([table]).all(is_name) {
            return Ok(Self { schema: schema.map(String::from), table: String::from(table) });
        }
        Err(StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(format!(
            "`{name}` cannot be the name of a table: write `table` or `schema.table`, each of at \
             most {LONGEST} ASCII letters, digits and underscores, not beginning with a digit"
        )))
    }

    /// Returns the name of an object that belongs to the table and is in the same schema:
    /// `records_meta` for `meta`.
    pub(crate) fn with_suffix(&self, suffix: &str) -> Self {
        Self { schema: self.schema.clone(), table: format!("{}_{suffix}", self.table) }
    }

    /// The schema, where the name has one.
    pub(crate) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name without the schema.
    #[cfg(feature = "sqlite")]
    pub(crate) fn name(&self) -> &str {
        &self.table
    }

    /// Adapts `script`, which creates the default table, to this one. Names of indexes and triggers
    /// have no schema.
    pub(crate) fn in_script(&self, script: &str, quote: char) -> String {
        script
            .replace("idempotency_records_purge_at", "{index}")
            .replace("idempotency_records_meta", "{meta}")
            .replace("idempotency_records_gone", "{trigger}")
            .replace(Self::DEFAULT, &self.quoted(quote))
            .replace("{index}", &self.purge_index(quote))
            .replace("{trigger}", &format!("{quote}{}_gone{quote}", self.table))
            .replace("{meta}", &self.with_suffix("meta").quoted(quote))
    }

    /// Returns the index by which a purge finds due rows, as written in a statement, between two
    /// `quote`s.
    pub(crate) fn purge_index(&self, quote: char) -> String {
        format!("{quote}{}_purge_at{quote}", self.table)
    }

    /// Returns the name as written in a statement, each part between `quote`s.
    pub(crate) fn quoted(&self, quote: char) -> String {
        match &self.schema {
            Some(schema) => format!("{quote}{schema}{quote}.{quote}{}{quote}", self.table),
            None => format!("{quote}{}{quote}", self.table),
        }
    }
}

impl Default for TableName {
    fn default() -> Self {
        Self { schema: None, table: String::from(Self::DEFAULT) }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.schema.as_ref().map_or(Ok(()), |schema| write!(f, "{schema}."))?;
        f.write_str(&self.table)
    }
}

fn is_name(part: &str) -> bool {
    (1..=LONGEST).contains(&part.len())
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !part.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::TableName;
    use crate::store::StoreErrorKind;

    #[test]
    fn names_are_quoted_part_by_part() {
        let plain = TableName::parse("records").unwrap();
        assert_eq!(
            (plain.quoted('"'), plain.to_string()),
            ("\"records\"".into(), "records".into())
        );
        let name = TableName::parse("shop.records_2").unwrap();
        assert_eq!(name.quoted('`'), "`shop`.`records_2`");
        assert_eq!(name.with_suffix("meta").quoted('"'), "\"shop\".\"records_2_meta\"");
        let script = "CREATE INDEX idempotency_records_purge_at ON idempotency_records; \
            CREATE TRIGGER idempotency_records_gone ON idempotency_records; SELECT idempotency_records_meta";
        let expected = "CREATE INDEX \"records_2_purge_at\" ON \"shop\".\"records_2\"; \
            CREATE TRIGGER \"records_2_gone\" ON \"shop\".\"records_2\"; SELECT \"shop\".\"records_2_meta\"";
        assert_eq!(name.in_script(script, '"'), expected);
    }

    #[test]
    fn what_could_be_more_than_a_name_is_refused() {
        let long = "x".repeat(49);
        for name in
            ["", ".", "a.", ".b", "a.b.c", "1a", "a b", "a\"b", "a`b", "a;drop", "täble", &long]
        {
            let error = TableName::parse(name).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{name}");
            assert!(error.to_string().contains("schema.table"), "{error}");
        }
        assert!(TableName::parse(&"x".repeat(48)).is_ok());
    }
}
