//! The part that provides servers: finds them, installs missing ones where it can, and prints
//! advice where it cannot.

#[path = "../../../test-support/src/server/binary.rs"]
mod binary;
mod client;
mod ministack;
pub(crate) mod npm;
#[path = "../../../test-support/src/packages.rs"]
mod packages;
mod version;
mod wanted;

use std::env;

use anyhow::bail;

use crate::arguments::Options;
use crate::command::Command;
use crate::versions;
use wanted::{WANTED, Wanted};

/// The part's name.
pub(crate) const NAME: &str = "servers";

/// The facts on which the choice depends.
struct Machine<'a> {
    /// `"linux"`, `"macos"`, as in [`env::consts::OS`].
    system: &'a str,
    administrator: bool,
    has_server: &'a dyn Fn(&Wanted) -> bool,
    has_program: &'a dyn Fn(&str) -> bool,
    is_set: &'a dyn Fn(&str) -> bool,
}

/// Finds tansu, on which the long versions of the tests for Kafka run.
pub(crate) fn tansu() -> anyhow::Result<std::path::PathBuf> {
    binary::find("tansu", "TANSU")
}

/// Returns the commands that install missing servers.
pub(crate) fn install(_: &Options) -> anyhow::Result<Vec<Command>> {
    let mut commands = choose(&Machine {
        system: env::consts::OS,
        administrator: Command::program("id", "-u")
            .output()
            .is_ok_and(|id| id.trim_ascii() == b"0"),
        has_server: &|wanted| (wanted.find)().is_ok(),
        has_program: &is_in_path,
        is_set: &is_set,
    })?;
    commands.extend(client::install()?);
    commands.extend(ministack::install()?);
    Ok(commands)
}

/// Checks that servers of versions that are new enough are there now.
pub(crate) fn check() -> anyhow::Result<()> {
    for wanted in WANTED.iter().filter(|wanted| wanted.is_for(env::consts::OS)) {
        if let Some(variable) = wanted.url_variable.filter(|variable| is_set(variable)) {
            // Not which one: the URL may contain a password.
            let program = wanted.program;
            println!(
                "{variable} names the server; tests that stop or pause one need {program} all the same."
            );
            continue;
        }
        let program = (wanted.find)()?;
        if !wanted.prints_version {
            println!("{}", program.display());
            continue;
        }
        let printed = Command::program(&program.to_string_lossy(), "--version").output()?;
        let printed = String::from_utf8_lossy(&printed);
        let first_line = printed.lines().next().unwrap_or_default();
        println!("{first_line}");
        version::check(wanted, first_line)?;
    }
    client::check()?;
    ministack::check()?;
    versions::provide()
}

fn choose(machine: &Machine) -> anyhow::Result<Vec<Command>> {
    let (has, is_set) = (machine.has_program, machine.is_set);
    let is_named =
        |wanted: &Wanted| is_set(wanted.variable.0) || wanted.url_variable.is_some_and(is_set);
    let is_missing = |wanted: &&Wanted| {
        wanted.is_for(machine.system) && !is_named(wanted) && !(machine.has_server)(wanted)
    };
    let missing: Vec<_> = WANTED.iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    match machine.system {
        "linux" if has("apt-get") && machine.administrator => Ok(apt("", &missing)),
        "linux" if has("apt-get") && has("sudo") => Ok(apt("sudo ", &missing)),
        "macos" if has("brew") => Ok(vec![Command::program(
            "brew",
            &format!("install {}", joined(&missing, |wanted| wanted.brew.unwrap_or_default())),
        )]),
        _ => bail!(
            "this program cannot install these here: {}\n{}\nWhat needs no server runs without: \
             `cargo test`, or single parts as `cargo xtask test clippy`.",
            joined(&missing, |wanted| wanted.program),
            missing.iter().map(|wanted| wanted.advice()).collect::<Vec<_>>().join("\n")
        ),
    }
}

/// Installs packages with apt. Packages of databases ask questions if the terminal is interactive.
fn apt(sudo: &str, missing: &[&Wanted]) -> Vec<Command> {
    let packages = joined(missing, |wanted| wanted.apt);
    let install = "env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends";
    let lines = [format!("{sudo}apt-get update"), format!("{sudo}{install} {packages}")];
    lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(program, rest)| Command::program(program, rest))
        .collect()
}

fn joined(missing: &[&Wanted], part: fn(&Wanted) -> &'static str) -> String {
    missing.iter().map(|wanted| part(wanted)).collect::<Vec<_>>().join(" ")
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::{Machine, WANTED, Wanted, choose};

    const SERVERS: [&str; 12] = [
        "redis-server",
        "postgres",
        "mariadbd",
        "pgbouncer",
        "rabbitmq-server",
        "nats-server",
        "chromedriver",
        "curl",
        "valgrind",
        "node",
        "npm",
        "python3",
    ];

    fn on(
        system: &str,
        administrator: bool,
        servers: &[&str],
        programs: &[&str],
        variables: &[&str],
    ) -> Result<Vec<String>, String> {
        let machine = Machine {
            system,
            administrator,
            has_server: &|wanted| servers.contains(&wanted.program),
            has_program: &|name| programs.contains(&name),
            is_set: &|name| variables.contains(&name),
        };
        match choose(&machine) {
            Ok(commands) => Ok(commands.iter().map(ToString::to_string).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_is_there_is_not_installed() {
        for (system, administrator) in
            [("linux", true), ("linux", false), ("macos", false), ("other", false)]
        {
            assert_eq!(
                on(system, administrator, &SERVERS, &["apt-get", "sudo", "brew"], &[]),
                Ok(vec![])
            );
        }
        let missing = on(
            "macos",
            false,
            &[
                "redis-server",
                "mariadbd",
                "pgbouncer",
                "nats-server",
                "chromedriver",
                "curl",
                "node",
                "python3",
            ],
            &["brew"],
            &[],
        );
        assert_eq!(missing, Ok(vec![String::from("brew install postgresql@16")]));
    }

    #[test]
    fn a_named_server_or_program_needs_no_installation() {
        let urls = [
            "CHROMEDRIVER",
            "CURL",
            "IDEMPOTENCY_REDIS_URL",
            "IDEMPOTENCY_POSTGRES_URL",
            "IDEMPOTENCY_MARIADB_URL",
            "IDEMPOTENCY_RABBITMQ_URL",
            "IDEMPOTENCY_NATS_URL",
            "VALGRIND",
            "NODE",
            "NPM",
            "PYTHON",
            "PGBOUNCER",
        ];
        let programs = [
            "CHROMEDRIVER",
            "CURL",
            "REDIS_SERVER",
            "POSTGRES_BIN",
            "MARIADB_SERVER",
            "RABBITMQ_BIN",
            "NATS_SERVER",
            "VALGRIND",
            "NODE",
            "NPM",
            "PYTHON",
            "PGBOUNCER",
        ];
        for variables in [urls, programs] {
            assert_eq!(on("linux", true, &[], &["apt-get"], &variables), Ok(vec![]));
            let commands = on("linux", true, &[], &["apt-get"], &variables[..11]).unwrap();
            assert!(commands[1].ends_with("--no-install-recommends pgbouncer"), "{commands:?}");
        }
    }

    #[test]
    fn debian_installs_all_at_once_as_root_or_with_sudo() {
        let update = "apt-get update";
        let install = "env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
                       redis-server postgresql mariadb-server pgbouncer rabbitmq-server nats-server chromium chromium-driver curl valgrind nodejs npm python3-venv";
        let plain = vec![String::from(update), String::from(install)];
        let with_sudo = vec![format!("sudo {update}"), format!("sudo {install}")];
        assert_eq!(on("linux", true, &[], &["apt-get"], &[]), Ok(plain.clone()));
        assert_eq!(on("linux", true, &[], &["apt-get", "sudo"], &[]), Ok(plain));
        assert_eq!(on("linux", false, &[], &["apt-get", "sudo"], &[]), Ok(with_sudo));
    }

    #[test]
    fn macos_installs_with_brew() {
        let install = String::from(
            "brew install redis postgresql@16 mariadb pgbouncer nats-server chromium chromedriver curl node python",
        );
        assert_eq!(on("macos", false, &[], &["brew"], &[]), Ok(vec![install]));
    }

    #[test]
    fn where_nothing_can_be_installed_it_says_what_to_do() {
        let machines: [(&str, bool, &[&str]); 4] = [
            ("linux", false, &["apt-get"]),
            ("linux", true, &["dnf", "sudo"]),
            ("macos", true, &[]),
            ("windows", true, &["apt-get", "brew"]),
        ];
        for (system, administrator, programs) in machines {
            let message = on(system, administrator, &["mariadbd"], programs, &[]).unwrap_err();
            let missing = |wanted: &&Wanted| wanted.program != "mariadbd" && wanted.is_for(system);
            for wanted in WANTED.iter().filter(missing) {
                for part in [
                    wanted.program,
                    wanted.variable.0,
                    wanted.url_variable.unwrap_or_default(),
                    "cargo test",
                ] {
                    assert!(message.contains(part), "{system}: {message}");
                }
            }
            assert!(!message.contains("MariaDB"), "{message}");
        }
    }
}
