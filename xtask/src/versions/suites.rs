//! The suites for a server of another version: those whose outcome depends on the server, and none
//! that only counts.

use std::path::Path;

use anyhow::Context as _;

use crate::command::Command;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    PgBouncer,
    MariaDb,
    Postgres,
    Redis,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::PgBouncer, Self::MariaDb, Self::Postgres, Self::Redis];

    /// Returns the option of `cargo xtask versions` that names its program.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::PgBouncer => "pgbouncer",
            Self::MariaDb => "mariadb",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    /// Returns the meaning of its value.
    pub(crate) fn value(self) -> &'static str {
        match self {
            Self::Postgres => "the directory of its programs, or the URL of a server",
            Self::PgBouncer => "the path of its program",
            Self::MariaDb | Self::Redis => "the path of its server, or the URL of one",
        }
    }

    /// Returns the environment variable in which the tests find the program.
    fn variable(self) -> &'static str {
        match self {
            Self::PgBouncer => "PGBOUNCER",
            Self::MariaDb => "MARIADB_SERVER",
            Self::Postgres => "POSTGRES_BIN",
            Self::Redis => "REDIS_SERVER",
        }
    }

    /// Returns the environment variable that names a running server. Tests that stop or pause one
    /// start another.
    fn url_variable(self) -> Option<&'static str> {
        match self {
            Self::PgBouncer => None,
            Self::MariaDb => Some("IDEMPOTENCY_MARIADB_URL"),
            Self::Postgres => Some("IDEMPOTENCY_POSTGRES_URL"),
            Self::Redis => Some("IDEMPOTENCY_REDIS_URL"),
        }
    }

    /// Returns the arguments of `cargo test`. Of the process tests, only those that kill or stop
    /// processes.
    fn lines(self) -> &'static [&'static str] {
        match self {
            Self::PgBouncer => &["--test postgres -- poolers:: waits::"],
            Self::MariaDb => &[
                "--test conformance_mysql",
                "--test mysql",
                "--test transactions -- mysql:: on_mariadb",
                "--test cuts -- on_mariadb::",
                "--test processes -- mariadb::under_",
            ],
            Self::Postgres => &[
                "--test conformance_postgres",
                "--test postgres",
                "--test transactions -- postgres:: on_postgresql",
                "--test processes -- postgres::under_",
            ],
            Self::Redis => {
                &["--test conformance_redis", "--test redis", "--test processes -- redis::under_"]
            }
        }
    }

    /// Returns the suites with `program` as the server. They are the binaries that the part `tests`
    /// has built.
    pub(super) fn suites(self, program: &Path) -> Vec<Command> {
        self.commands(self.variable(), &program.display().to_string())
    }

    /// Returns the suites on the server at `url`.
    pub(super) fn suites_at(self, url: &str) -> anyhow::Result<Vec<Command>> {
        let variable = self
            .url_variable()
            .context("a pooler is named by its program, or as a server by its URL")?;
        Ok(self.commands(variable, url))
    }

    fn commands(self, variable: &'static str, value: &str) -> Vec<Command> {
        let command = |line: &&str| {
            Command::cargo(&format!("test --workspace --all-features {line}"))
                .with_variable(variable, value)
        };
        self.lines().iter().map(command).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::Kind;

    /// Returns the names of files and modules, with their content.
    fn text_of(suite: &Path) -> String {
        let files = fs::read_dir(suite)
            .expect("the suite has a folder")
            .map(|entry| entry.expect("an entry").path());
        let text = |file: std::path::PathBuf| {
            let name = file.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            format!("{name}\n{}\n", fs::read_to_string(file).unwrap_or_default())
        };
        files.map(text).collect()
    }

    #[test]
    fn every_filter_finds_something_in_its_suite() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
        for line in Kind::ALL.iter().flat_map(|kind| kind.lines()) {
            let (suite, filters) = line.split_once(" -- ").unwrap_or((line, ""));
            let suite = suite.strip_prefix("--test ").expect("one suite");
            for filter in filters.split_whitespace() {
                let text = text_of(&tests.join(suite));
                let is_there = filter.split("::").all(|name| text.contains(name));
                assert!(is_there, "{suite} has no {filter}");
            }
            let conformance =
                suite.strip_prefix("conformance_").map(|store| format!("conformance/{store}.rs"));
            let place = conformance.unwrap_or_else(|| format!("{suite}/main.rs"));
            assert!(tests.join(&place).is_file(), "there is no {place}");
        }
    }
}
