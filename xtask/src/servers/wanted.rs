//! The servers that the tests start, and the programs that talk to them or count their work.

use std::path::PathBuf;

use super::binary;

/// A server, and the way to get it.
pub(super) struct Wanted {
    /// The name for people.
    pub(super) name: &'static str,
    /// The name of the program.
    pub(super) program: &'static str,
    /// The search for its program. The tests search the same places.
    pub(super) find: fn() -> anyhow::Result<PathBuf>,
    pub(super) apt: &'static str,
    /// The Homebrew package. `None`: there is none for macOS, where the tests do without.
    pub(super) brew: Option<&'static str>,
    /// The environment variable for the location of the program, and the meaning of its value.
    pub(super) variable: (&'static str, &'static str),
    /// The environment variable that names a server to use, so that none is installed.
    pub(super) url_variable: Option<&'static str>,
    /// The lowest version on which the stores run: major and minor.
    pub(super) lowest: (u32, u32),
    /// It prints its version with `--version`. Another one would start with that.
    pub(super) prints_version: bool,
}

pub(super) const WANTED: [Wanted; 12] = [
    Wanted {
        name: "Redis, or Valkey,",
        program: "redis-server",
        find: || binary::find("redis-server", "REDIS_SERVER"),
        apt: "redis-server",
        brew: Some("redis"),
        variable: ("REDIS_SERVER", "the path of the program"),
        url_variable: Some("IDEMPOTENCY_REDIS_URL"),
        lowest: (7, 0),
        prints_version: true,
    },
    Wanted {
        name: "PostgreSQL",
        program: "postgres",
        find: || binary::postgres("postgres"),
        apt: "postgresql",
        brew: Some("postgresql@16"),
        variable: ("POSTGRES_BIN", "the directory of its programs"),
        url_variable: Some("IDEMPOTENCY_POSTGRES_URL"),
        lowest: (13, 0),
        prints_version: true,
    },
    Wanted {
        name: "MariaDB",
        program: "mariadbd",
        find: || binary::mariadb("mariadbd"),
        apt: "mariadb-server",
        brew: Some("mariadb"),
        variable: ("MARIADB_SERVER", "the path of the program"),
        url_variable: Some("IDEMPOTENCY_MARIADB_URL"),
        lowest: (10, 5),
        prints_version: true,
    },
    Wanted {
        name: "PgBouncer",
        program: "pgbouncer",
        find: || binary::find("pgbouncer", "PGBOUNCER"),
        apt: "pgbouncer",
        brew: Some("pgbouncer"),
        variable: ("PGBOUNCER", "the path of the program"),
        url_variable: None,
        lowest: (1, 12),
        prints_version: true,
    },
    Wanted {
        name: "RabbitMQ",
        program: "rabbitmq-server",
        find: || binary::rabbitmq("rabbitmq-server"),
        apt: "rabbitmq-server",
        // The tests end its name server in a way that is Linux's.
        brew: None,
        variable: ("RABBITMQ_BIN", "the directory of its programs"),
        url_variable: Some("IDEMPOTENCY_RABBITMQ_URL"),
        lowest: (3, 10),
        prints_version: false,
    },
    Wanted {
        name: "NATS",
        program: "nats-server",
        find: || binary::find("nats-server", "NATS_SERVER"),
        apt: "nats-server",
        brew: Some("nats-server"),
        variable: ("NATS_SERVER", "the path of the program"),
        url_variable: Some("IDEMPOTENCY_NATS_URL"),
        lowest: (2, 9),
        prints_version: true,
    },
    Wanted {
        name: "ChromeDriver, with Chromium of the same version,",
        program: "chromedriver",
        find: || binary::find("chromedriver", "CHROMEDRIVER"),
        apt: "chromium chromium-driver",
        brew: Some("chromium chromedriver"),
        variable: ("CHROMEDRIVER", "the path of the program"),
        url_variable: None,
        lowest: (115, 0),
        prints_version: true,
    },
    Wanted {
        name: "curl",
        program: "curl",
        find: || binary::find("curl", "CURL"),
        apt: "curl",
        brew: Some("curl"),
        variable: ("CURL", "the path of the program"),
        url_variable: None,
        // The first with `--json`.
        lowest: (7, 82),
        prints_version: true,
    },
    Wanted {
        name: "Valgrind",
        program: "valgrind",
        find: || binary::find("valgrind", "VALGRIND"),
        apt: "valgrind",
        brew: None,
        variable: ("VALGRIND", "the path of the program"),
        url_variable: None,
        lowest: (3, 18),
        prints_version: true,
    },
    Wanted {
        name: "Node",
        program: "node",
        find: || binary::find("node", "NODE"),
        apt: "nodejs",
        brew: Some("node"),
        variable: ("NODE", "the path of the program"),
        url_variable: None,
        lowest: (18, 0),
        prints_version: true,
    },
    Wanted {
        name: "npm",
        program: "npm",
        find: || binary::find("npm", "NPM"),
        apt: "npm",
        // It is part of Node there.
        brew: None,
        variable: ("NPM", "the path of the program"),
        url_variable: None,
        lowest: (8, 0),
        prints_version: true,
    },
    Wanted {
        name: "Python with its module `venv`",
        program: "python3",
        find: binary::python,
        apt: "python3-venv",
        brew: Some("python"),
        variable: ("PYTHON", "the path of the program"),
        url_variable: None,
        lowest: (3, 11),
        prints_version: true,
    },
];

impl Wanted {
    /// Returns true if the tests need it on this system, as in [`std::env::consts::OS`].
    pub(super) fn is_for(&self, system: &str) -> bool {
        system != "macos" || self.brew.is_some()
    }

    /// Returns advice where it cannot be installed.
    pub(super) fn advice(&self) -> String {
        let (major, minor) = self.lowest;
        let (variable, value) = self.variable;
        let instead = self.url_variable.map(|variable| {
            format!("; or set {variable} to the URL of one that may be written to")
        });
        format!(
            "- install {} {major}.{minor} or newer with the package manager of your system, so that `{}` is in PATH; \
             or set {variable} to {value}{}",
            self.name,
            self.program,
            instead.unwrap_or_default()
        )
    }
}
