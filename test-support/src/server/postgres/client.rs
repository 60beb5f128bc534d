//! `psql`.

use tokio::process::Command;

use crate::server::binary;
use crate::server::sql::{Rows, feed};

/// The separator of columns and the text for null: characters that no test has in its data.
const COLUMN: &str = "\u{1f}";
const NULL: &str = "\u{1d}";

pub(in crate::server) async fn run(url: &str, statements: &str) -> anyhow::Result<Rows> {
    let mut command = Command::new(binary::postgres("psql")?);
    command.args([
        "--no-psqlrc",
        "--quiet",
        "--no-align",
        "--tuples-only",
        "--no-password",
        "--set=ON_ERROR_STOP=1",
    ]);
    // Every row ends with a zero byte, which no text in PostgreSQL contains.
    command.args([
        "--record-separator-zero",
        "--field-separator",
        COLUMN,
        "--pset",
        &format!("null={NULL}"),
    ]);
    command.args(["--dbname", url]);
    let printed = feed(command, statements).await?;
    let value = |text: &str| (text != NULL).then(|| String::from(text));
    Ok(printed.split_terminator('\0').map(|row| row.split(COLUMN).map(value).collect()).collect())
}
