//! The part that runs the suites again, on servers of other versions than those of the machine.
//!
//! `cargo xtask test servers` puts the servers into a folder of their own and installs none of
//! them. The environment variables that a person can set too select the program that a suite
//! starts.

mod debian;
mod folder;
mod postgresql;
mod suites;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::arguments::Options;
use crate::command::Command;
pub(crate) use suites::Kind;

/// The part's name.
pub(crate) const NAME: &str = "versions";

/// A server of another version, and the path of its program in the [folder of
/// all](folder::of_servers).
struct Version {
    name: &'static str,
    kind: Kind,
    program: &'static str,
}

/// The oldest and the newest ones that are available as packages, and those that behave
/// differently.
const VERSIONS: [Version; 6] = [
    // The first with prepared statements in transaction mode was 1.21.
    Version { name: "PgBouncer 1.24", kind: Kind::PgBouncer, program: "trixie/usr/sbin/pgbouncer" },
    // The default of `innodb_snapshot_isolation` changed in 11.6.2, and that of TLS in 11.4.
    Version { name: "MariaDB 11.8", kind: Kind::MariaDb, program: "trixie/usr/sbin/mariadbd" },
    Version {
        name: "PostgreSQL 13",
        kind: Kind::Postgres,
        program: "postgresql/node_modules/postgresql-13/native/bin",
    },
    Version {
        name: "PostgreSQL 18",
        kind: Kind::Postgres,
        program: "postgresql/node_modules/postgresql-18/native/bin",
    },
    Version {
        name: "Valkey 8.0",
        kind: Kind::Redis,
        program: "bookworm-backports/usr/bin/valkey-server",
    },
    Version { name: "Redis 8.0", kind: Kind::Redis, program: "trixie/usr/bin/redis-server" },
];

/// Puts the servers where the suites look for them.
pub(crate) fn provide() -> anyhow::Result<()> {
    let Err(reason) = can_be_had() else {
        let servers = folder::of_servers()?;
        debian::provide(&servers)?;
        postgresql::provide(&servers)?;
        return VERSIONS
            .iter()
            .try_for_each(|version| show(version, &servers.join(version.program)));
    };
    let names = names();
    if env::var_os("CI").is_some() {
        bail!("{names} cannot be had here: {reason}");
    }
    println!("{names} cannot be had here: {reason}. The part `{NAME}` does not run.");
    Ok(())
}

/// Returns the suites on each version: only the first one by default, all of them in a long run.
pub(crate) fn commands(options: &Options) -> anyhow::Result<Vec<Command>> {
    if let Err(reason) = can_be_had() {
        println!("not run: the suites on {}: {reason}", names());
        return Ok(Vec::new());
    }
    let servers = folder::of_servers()?;
    let suites = |version: &Version| version.kind.suites(&servers.join(version.program));
    let most = if options.long { usize::MAX } else { 1 };
    Ok(VERSIONS.iter().flat_map(|version| suites(version).into_iter().take(most)).collect())
}

/// Runs the suites on existing servers, each named by its program or by a URL.
pub(crate) fn run(servers: &[(Kind, String)]) -> anyhow::Result<()> {
    for (kind, server) in servers {
        let suites = if server.contains("://") {
            kind.suites_at(server)?
        } else {
            kind.suites(&program(*kind, server)?)
        };
        suites.iter().try_for_each(Command::run)?;
    }
    Ok(())
}

fn program(kind: Kind, named: &str) -> anyhow::Result<PathBuf> {
    // The tests open it from directories of their own. Some programs have several names, and behave
    // according to the name.
    let program = std::path::absolute(named)?;
    if !program.exists() {
        bail!("there is no {}", program.display());
    }
    println!("{}", first_line(kind, &program)?);
    Ok(program)
}

/// Checks that the servers can be provided: they are programs for one kind of machine, from two
/// archives.
fn can_be_had() -> Result<(), &'static str> {
    if (env::consts::OS, env::consts::ARCH) != ("linux", "x86_64") {
        return Err("the packages are for Linux on x86_64");
    }
    debian::archive().map(drop)
}

fn names() -> String {
    VERSIONS.map(|version| version.name).join(", ")
}

fn show(version: &Version, program: &Path) -> anyhow::Result<()> {
    let printed = first_line(version.kind, program)?;
    let (_, number) = version.name.split_once(' ').unwrap_or_default();
    if !printed.contains(number) {
        bail!("{} was expected, but this was found: {printed}", version.name);
    }
    println!("{printed}");
    Ok(())
}

fn first_line(kind: Kind, program: &Path) -> anyhow::Result<String> {
    let program =
        if kind == Kind::Postgres { program.join("postgres") } else { program.to_path_buf() };
    let printed = Command::program(&program.to_string_lossy(), "--version").output()?;
    Ok(String::from_utf8_lossy(&printed).lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::VERSIONS;

    #[test]
    fn every_program_is_in_a_folder_that_is_filled() {
        let folders: Vec<_> = super::debian::folders().chain(["postgresql"]).collect();
        for version in &VERSIONS {
            let (folder, _) = version.program.split_once('/').unwrap();
            assert!(folders.contains(&folder), "{}", version.name);
        }
    }
}
