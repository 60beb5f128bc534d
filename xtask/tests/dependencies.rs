//! The crates that each feature of the facade adds to a user's build, according to `cargo tree`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The crates that only some features add, and the features that are meant to add them.
const CLIENTS: [(&str, &[&str]); 11] = [
    ("redis", &["redis"]),
    ("sqlx", &["postgres", "mysql", "sqlite"]),
    ("sqlx-postgres", &["postgres"]),
    ("sqlx-mysql", &["mysql"]),
    ("sqlx-sqlite", &["sqlite"]),
    ("libsqlite3-sys", &["sqlite"]),
    ("rustls", &["redis", "postgres", "mysql"]),
    ("tower-service", &["http", "axum"]),
    ("axum-core", &["axum"]),
    // The layer needs neither a server nor a client.
    ("hyper", &[]),
    // Neither its macros nor its migrations: they parse SQL while the user's crate is compiled.
    ("sqlx-macros", &[]),
];

/// Returns the names of the crates of the facade with `features`.
fn crates(features: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "idempotency", "--no-default-features", "--features", features])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    text.lines().filter_map(|line| line.split(' ').next()).map(String::from).collect()
}

#[test]
fn each_feature_brings_its_own_client_and_no_other() {
    for feature in
        ["memory", "macros", "testing", "redis", "postgres", "mysql", "sqlite", "http", "axum"]
    {
        let crates = crates(feature);
        for (client, features) in CLIENTS {
            assert_eq!(
                crates.contains(client),
                features.contains(&feature),
                "`{client}` with the feature `{feature}`"
            );
        }
    }
}

#[test]
fn the_default_build_has_no_client_and_no_http() {
    let crates = crates("default");
    for name in
        CLIENTS.map(|(client, _)| client).into_iter().chain(["http", "hyper", "tower", "axum"])
    {
        assert!(!crates.contains(name), "{name}");
    }
    assert!(crates.len() < 60, "{} crates: {crates:?}", crates.len());
}
