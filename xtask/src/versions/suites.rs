//! What is run on a server of another version: the suites whose outcome depends on the server, and none that only counts.

use std::path::Path;

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

    /// The option of `cargo xtask versions` that names its program.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::PgBouncer => "pgbouncer",
            Self::MariaDb => "mariadb",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    /// What that is.
    pub(crate) fn value(self) -> &'static str {
        match self {
            Self::Postgres => "the directory of its programs",
            Self::PgBouncer | Self::MariaDb | Self::Redis => "the path of its server",
        }
    }

    /// The environment variable by which the tests know the program.
    fn variable(self) -> &'static str {
        match self {
            Self::PgBouncer => "PGBOUNCER",
            Self::MariaDb => "MARIADB_SERVER",
            Self::Postgres => "POSTGRES_BIN",
            Self::Redis => "REDIS_SERVER",
        }
    }

    /// The arguments of `cargo test`.
    fn lines(self) -> &'static [&'static str] {
        match self {
            Self::PgBouncer => &["--test postgres -- poolers:: locked_table"],
            Self::MariaDb => &[
                "--test conformance_mysql --test mysql",
                "--test transactions -- mysql:: on_mariadb",
                "--test cuts on_mariadb::",
                "--test processes mariadb::",
            ],
            Self::Postgres => &[
                "--test conformance_postgres --test postgres",
                "--test transactions -- postgres:: on_postgresql",
                "--test cuts on_postgres::",
                "--test processes postgres::",
            ],
            Self::Redis => &["--test conformance_redis --test redis", "--test processes redis::"],
        }
    }

    /// The suites with `program` as the server. They are the binaries that the part `tests` has built.
    pub(super) fn suites(self, program: &Path) -> Vec<Command> {
        let suite = |line: &&str| {
            let command = Command::cargo(&format!("test --workspace --all-features {line}"));
            command.with_variable(self.variable(), program.display().to_string())
        };
        self.lines().iter().map(suite).collect()
    }
}
