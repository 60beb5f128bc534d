//! The servers that tests start for themselves: found on this machine, or installed.

use std::path::Path;

use anyhow::bail;

use crate::arguments::Options;
use crate::command::Command;

/// A URL in this variable stands for a server that is there already.
const REDIS_URL: &str = "IDEMPOTENCY_REDIS_URL";
/// A path in this variable stands for the program, wherever it is.
const REDIS_PROGRAM: &str = "REDIS_SERVER";

/// What decides how a server is had.
#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    /// There is a server, or a program that can be started.
    has_redis: bool,
    has_apt: bool,
    has_sudo: bool,
    has_brew: bool,
    is_root: bool,
}

impl Machine {
    fn this() -> Self {
        let named = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
        Self {
            has_redis: named(REDIS_URL) || named(REDIS_PROGRAM) || is_on_path("redis-server"),
            has_apt: is_on_path("apt-get"),
            has_sudo: is_on_path("sudo"),
            has_brew: is_on_path("brew"),
            is_root: is_root(),
        }
    }
}

/// The commands that install what is missing.
pub(crate) fn commands(_: &Options) -> anyhow::Result<Vec<Command>> {
    plan(Machine::this())
}

fn plan(machine: Machine) -> anyhow::Result<Vec<Command>> {
    if machine.has_redis {
        return Ok(Vec::new());
    }
    if machine.has_apt && (machine.is_root || machine.has_sudo) {
        let sudo = if machine.is_root { "" } else { "sudo " };
        return Ok(vec![
            Command::program(&format!("{sudo}apt-get update")),
            Command::program(&format!("{sudo}apt-get install -y --no-install-recommends redis-server")),
        ]);
    }
    if machine.has_brew {
        return Ok(vec![Command::program("brew install redis")]);
    }
    bail!(
        "redis-server is missing, and neither apt-get (as root or with sudo) nor brew is here to install it; install \
         Redis 7.0 or later or Valkey, name its program in {REDIS_PROGRAM}, or name a server that runs in {REDIS_URL}"
    )
}

fn is_on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).is_file())
}

fn is_root() -> bool {
    let id = std::process::Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::{Machine, plan};

    fn planned(machine: Machine) -> Vec<String> {
        plan(machine).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_installed_where_a_server_is_there() {
        let machine = Machine { has_redis: true, has_apt: true, is_root: true, ..Machine::default() };
        assert!(planned(machine).is_empty());
    }

    #[test]
    fn apt_installs_as_root_or_with_sudo() {
        let root = Machine { has_apt: true, is_root: true, ..Machine::default() };
        let install = "apt-get install -y --no-install-recommends redis-server";
        assert_eq!(planned(root), ["apt-get update", install]);
        let user = Machine { has_apt: true, has_sudo: true, ..Machine::default() };
        assert_eq!(planned(user), ["sudo apt-get update".to_owned(), format!("sudo {install}")]);
    }

    #[test]
    fn brew_installs_where_apt_cannot() {
        let machine = Machine { has_brew: true, has_apt: true, ..Machine::default() };
        assert_eq!(planned(machine), ["brew install redis"]);
    }

    #[test]
    fn a_machine_without_either_is_told_how_to_get_a_server() {
        let error = plan(Machine::default()).unwrap_err().to_string();
        for part in ["redis-server is missing", "IDEMPOTENCY_REDIS_URL", "REDIS_SERVER", "Redis 7.0"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
