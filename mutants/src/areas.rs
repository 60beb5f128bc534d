//! The areas whose code is removed, and the tests that should notice.

/// Sources that one set of tests covers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// The name that selects it on the command line.
    pub(crate) name: &'static str,
    pub(crate) rooms: &'static [Room],
}

/// A part of an area with tests of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Folders and files of the runtime crate.
    pub(crate) sources: &'static [&'static str],
    /// Test targets, the cheapest first.
    pub(crate) tests: &'static [&'static str],
}

/// The unit tests of the runtime crate.
pub(crate) const UNIT: &str = "idempotent_runtime";

pub(crate) const AREAS: &[Area] = &[
    Area {
        name: "engine",
        rooms: &[Room {
            sources: &[
                "engine",
                "context.rs",
                "outcome.rs",
                "policy.rs",
                "near_cache.rs",
                "runtime.rs",
            ],
            tests: &[
                UNIT,
                "engine",
                "edge",
                "detach",
                "signatures",
                "redis",
                "transactions",
                "http",
                "simulation",
            ],
        }],
    },
    Area {
        name: "contract",
        rooms: &[Room {
            sources: &[
                "store",
                "key",
                "canonical",
                "encoding",
                "fingerprint.rs",
                "argument.rs",
                "error.rs",
            ],
            tests: &[
                UNIT,
                "contract",
                "engine",
                "values",
                "golden",
                "sqlite",
                "conformance_memory",
                "conformance_custom",
                "conformance_sqlite",
                "http",
            ],
        }],
    },
    Area {
        name: "steps",
        rooms: &[Room {
            sources: &["steps"],
            tests: &[UNIT, "engine", "edge", "redis", "transactions", "conformance_sqlite"],
        }],
    },
    Area {
        name: "inbox",
        rooms: &[Room {
            sources: &["inbox"],
            tests: &[UNIT, "inbox", "transactions", "simulation"],
        }],
    },
    Area { name: "http", rooms: &[Room { sources: &["http"], tests: &[UNIT, "http"] }] },
    Area {
        name: "stores",
        rooms: &[
            Room { sources: &["memory"], tests: &[UNIT, "engine", "conformance_memory"] },
            Room {
                sources: &["sqlite", "sql"],
                tests: &[UNIT, "sqlite", "transactions", "conformance_sqlite"],
            },
            Room { sources: &["redis"], tests: &[UNIT, "redis", "conformance_redis"] },
            Room {
                sources: &["postgres"],
                tests: &[UNIT, "postgres", "transactions", "conformance_postgres"],
            },
            Room {
                sources: &["mysql"],
                tests: &[UNIT, "mysql", "transactions", "conformance_mysql"],
            },
        ],
    },
];
