//! The part that provides servers: finds them, installs what is missing where it can, and says what to do where it cannot.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::arguments::Options;
use crate::command::Command;

/// The part's name.
pub(crate) const NAME: &str = "servers";

/// Names a Redis server to use, so that none is installed.
const URL_VARIABLE: &str = "IDEMPOTENCY_REDIS_URL";
/// Names the program of a Redis server, where it is not in `PATH`.
const PROGRAM_VARIABLE: &str = "REDIS_SERVER";
/// The lowest version of Redis on which the store runs.
const LOWEST_VERSION: u32 = 7;

/// What the choice depends on.
struct Machine<'a> {
    /// `"linux"`, `"macos"`, as in [`env::consts::OS`].
    system: &'a str,
    administrator: bool,
    url: Option<String>,
    program: Option<String>,
    has: &'a dyn Fn(&str) -> bool,
}

/// The commands that install what is missing.
pub(crate) fn install(_: &Options) -> anyhow::Result<Vec<Command>> {
    choose(&Machine {
        system: env::consts::OS,
        administrator: Command::program("id", "-u").output().is_ok_and(|id| id.trim_ascii() == b"0"),
        url: setting(URL_VARIABLE),
        program: setting(PROGRAM_VARIABLE),
        has: &|name| find(name).is_some(),
    })
}

/// Whether a server of a version that is new enough is there now.
pub(crate) fn check() -> anyhow::Result<()> {
    if setting(URL_VARIABLE).is_some() {
        // Not which: the URL may contain a password.
        println!("{URL_VARIABLE} names the server; tests that stop or pause one need redis-server all the same.");
        return Ok(());
    }
    let program = setting(PROGRAM_VARIABLE).unwrap_or_else(|| String::from("redis-server"));
    let printed = Command::program(&program, "--version").output()?;
    let printed = String::from_utf8_lossy(&printed);
    println!("{}", printed.trim_end());
    check_version(&printed)
}

fn choose(machine: &Machine) -> anyhow::Result<Vec<Command>> {
    let has = machine.has;
    if machine.url.is_some() || machine.program.is_some() || has("redis-server") {
        return Ok(Vec::new());
    }
    match machine.system {
        "linux" if has("apt-get") && machine.administrator => Ok(apt(|line| Command::program("apt-get", line))),
        "linux" if has("apt-get") && has("sudo") => {
            Ok(apt(|line| Command::program("sudo", &format!("apt-get {line}"))))
        }
        "macos" if has("brew") => Ok(vec![Command::program("brew", "install redis")]),
        _ => bail!(
            "redis-server is missing, and this program knows no way to install it here.\n\
             Install Redis {LOWEST_VERSION} or newer, or Valkey, with the package manager of your system, \
             so that `redis-server` is in PATH;\n\
             or set {PROGRAM_VARIABLE} to the path of the program;\n\
             or set {URL_VARIABLE} to the URL of a server that may be written to.\n\
             What needs no server runs without: `cargo test`, or single parts as `cargo xtask test clippy`."
        ),
    }
}

fn apt(command: impl Fn(&str) -> Command) -> Vec<Command> {
    vec![command("update"), command("install -y --no-install-recommends redis-server")]
}

/// Reads `v=7.0.15` in what the server prints. One without a version, a build of somebody's own, is left to the tests.
fn check_version(printed: &str) -> anyhow::Result<()> {
    let version = printed.split_whitespace().find_map(|word| word.strip_prefix("v="));
    let Some(version) = version else { return Ok(()) };
    let major: u32 = version.split('.').next().unwrap_or_default().parse().context("the version is no number")?;
    if major < LOWEST_VERSION {
        bail!(
            "redis-server is version {version}, and the store needs {LOWEST_VERSION} or newer; \
             set {PROGRAM_VARIABLE} to the path of a newer one, or {URL_VARIABLE} to its URL"
        );
    }
    Ok(())
}

fn setting(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::{Machine, check_version, choose};

    fn chosen(system: &str, administrator: bool, programs: &[&str]) -> Result<Vec<String>, String> {
        let has = |name: &str| programs.contains(&name);
        let machine = Machine { system, administrator, url: None, program: None, has: &has };
        match choose(&machine) {
            Ok(commands) => Ok(commands.iter().map(ToString::to_string).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_is_there_is_not_installed() {
        for administrator in [true, false] {
            assert_eq!(chosen("linux", administrator, &["redis-server", "apt-get", "sudo"]), Ok(vec![]));
        }
        assert_eq!(chosen("macos", false, &["redis-server", "brew"]), Ok(vec![]));
        assert_eq!(chosen("other", false, &["redis-server"]), Ok(vec![]));
    }

    #[test]
    fn a_named_server_or_program_needs_no_installation() {
        let named = Some(String::from("redis://example.org"));
        for (url, program) in [(named.clone(), None), (None, named)] {
            let machine =
                Machine { system: "linux", administrator: true, url, program, has: &|name| name == "apt-get" };
            assert_eq!(choose(&machine).unwrap(), []);
        }
    }

    #[test]
    fn debian_installs_as_root_or_with_sudo() {
        let update = "apt-get update";
        let install = "apt-get install -y --no-install-recommends redis-server";
        let plain = vec![String::from(update), String::from(install)];
        let with_sudo = vec![format!("sudo {update}"), format!("sudo {install}")];
        assert_eq!(chosen("linux", true, &["apt-get"]), Ok(plain.clone()));
        assert_eq!(chosen("linux", true, &["apt-get", "sudo"]), Ok(plain));
        assert_eq!(chosen("linux", false, &["apt-get", "sudo"]), Ok(with_sudo));
    }

    #[test]
    fn macos_installs_with_brew() {
        assert_eq!(chosen("macos", false, &["brew"]), Ok(vec![String::from("brew install redis")]));
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
            let message = chosen(system, administrator, programs).unwrap_err();
            for part in ["redis-server is missing", "REDIS_SERVER", "IDEMPOTENCY_REDIS_URL", "cargo test"] {
                assert!(message.contains(part), "{system}: {message}");
            }
        }
    }

    #[test]
    fn a_version_that_is_too_old_is_refused() {
        for accepted in ["Redis server v=7.0.15 sha=0", "Valkey server v=10.1.2 sha=0", "something else"] {
            check_version(accepted).unwrap();
        }
        let message = check_version("Redis server v=6.0.16 sha=00000000:0").unwrap_err().to_string();
        assert!(message.contains("6.0.16") && message.contains("7 or newer"), "{message}");
    }
}
