//! `mariadb`, the command line client.

use tokio::process::Command;

use crate::server::binary;
use crate::server::sql::{Rows, feed};
use crate::server::url::ServerUrl;

pub(super) async fn run(url: &ServerUrl, statements: &str) -> anyhow::Result<Rows> {
    let mut command = Command::new(binary::mariadb("mariadb")?);
    // Some clients insist on TLS, which the servers do not offer by themselves.
    command.args([
        "--no-defaults",
        "--protocol=tcp",
        "--skip-ssl",
        "--default-character-set=utf8mb4",
    ]);
    command.args([
        "--batch",
        "--skip-column-names",
        "--host",
        &url.host,
        "--port",
        &url.port.to_string(),
    ]);
    command.args(["--user", url.user.as_deref().unwrap_or("root"), "--database", &url.database]);
    if let Some(password) = &url.password {
        // Not as an argument, which every user of the machine can read.
        command.env("MYSQL_PWD", password);
    }
    let printed = feed(command, statements).await?;
    Ok(printed.lines().map(|row| row.split('\t').map(value).collect()).collect())
}

fn value(printed: &str) -> Option<String> {
    if printed == "NULL" {
        return None;
    }
    let mut value = String::new();
    let mut characters = printed.chars();
    while let Some(character) = characters.next() {
        let escaped = if character == '\\' { characters.next() } else { None };
        value.push(match escaped {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('0') => '\0',
            other => other.unwrap_or(character),
        });
    }
    Some(value)
}
