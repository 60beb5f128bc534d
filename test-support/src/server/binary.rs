//! The locations of server programs. `cargo xtask test servers` searches the same places: it
//! compiles this file too.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The variable that names the MariaDB server program.
const MARIADB_VARIABLE: &str = "MARIADB_SERVER";

/// The variable that names the directory of PostgreSQL's programs.
const POSTGRES_VARIABLE: &str = "POSTGRES_BIN";
/// The places where PostgreSQL is if not in `PATH`: folders of all versions, and the prefix of a
/// version's number.
const POSTGRES_FOLDERS: [(&str, &str); 3] = [
    ("/usr/lib/postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

/// The variable that names the directory of RabbitMQ's programs.
const RABBITMQ_VARIABLE: &str = "RABBITMQ_BIN";
/// Where a package has them. Those in `PATH` are scripts that change the user.
const RABBITMQ_FOLDER: &str = "/usr/lib/rabbitmq/bin";

/// Finds a program of PostgreSQL: in the directory that the environment variable `POSTGRES_BIN`
/// names if that is set, otherwise in that of the server in `PATH`, otherwise in that of the
/// highest version in the usual places. A client may also be in `PATH` alone.
///
/// # Errors
/// If there is none, with advice.
pub(crate) fn postgres(name: &str) -> anyhow::Result<PathBuf> {
    let path = search_path();
    let directory = match std::env::var_os(POSTGRES_VARIABLE) {
        Some(directory) => Some(PathBuf::from(directory)),
        None => first_in("postgres", &path)
            .and_then(|server| Some(server.parent()?.to_path_buf()))
            .or_else(|| {
                POSTGRES_FOLDERS
                    .iter()
                    .find_map(|(folder, prefix)| highest(Path::new(folder), prefix))
            }),
    };
    let beside =
        directory.map(|directory| directory.join(name)).filter(|program| is_program(program));
    beside
        .or_else(|| first_in(name, &path))
        .with_context(|| missing(name, POSTGRES_VARIABLE, "its directory"))
}

/// Returns the program directory of the highest version in `folder`, whose entries begin with
/// `prefix`.
fn highest(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?.flatten();
    let versions = entries.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
        let directory = entry.path().join("bin");
        is_program(&directory.join("postgres")).then_some((version, directory))
    });
    Some(versions.max()?.1)
}

/// Finds a program of MariaDB: beside the server that the environment variable `MARIADB_SERVER`
/// names if that is set, otherwise in `PATH`.
///
/// # Errors
/// If there is none, with advice.
pub(crate) fn mariadb(name: &str) -> anyhow::Result<PathBuf> {
    let configured = std::env::var_os(MARIADB_VARIABLE);
    if name == "mariadbd" && configured.is_some() {
        return find(name, MARIADB_VARIABLE);
    }
    // A version that was unpacked separately has its programs in several folders.
    let server = configured.map(PathBuf::from);
    let folder = server.as_deref().and_then(Path::parent);
    let beside = folder
        .into_iter()
        .flat_map(|folder| ["", "../bin", "../scripts"].map(|other| folder.join(other)));
    let beside = beside.map(|folder| folder.join(name)).find(|program| is_program(program));
    beside
        .or_else(|| first_in(name, &search_path()))
        .with_context(|| missing(name, MARIADB_VARIABLE, "the path of `mariadbd`"))
}

/// Returns the files of a separately unpacked MariaDB, as an option of its programs. Without it
/// they use those of an installed one.
#[allow(dead_code, reason = "for who starts it")]
pub(crate) fn mariadb_base() -> Option<String> {
    let server = PathBuf::from(std::env::var_os(MARIADB_VARIABLE)?);
    Some(format!("--basedir={}", server.parent()?.parent()?.display()))
}

/// Finds a program of RabbitMQ: in the directory that the environment variable `RABBITMQ_BIN` names
/// if that is set, otherwise where packages put it, otherwise in `PATH`.
///
/// # Errors
/// If there is none, with advice.
pub(crate) fn rabbitmq(name: &str) -> anyhow::Result<PathBuf> {
    let directory = std::env::var_os(RABBITMQ_VARIABLE);
    let directory = directory.map_or_else(|| PathBuf::from(RABBITMQ_FOLDER), PathBuf::from);
    let program = directory.join(name);
    Some(program)
        .filter(|program| is_program(program))
        .or_else(|| first_in(name, &search_path()))
        .with_context(|| missing(name, RABBITMQ_VARIABLE, "its directory"))
}

/// Finds Python 3 with what it needs to make a folder for packages. Debian has that apart.
///
/// # Errors
/// If there is none, with advice.
#[allow(dead_code, reason = "for who installs packages")]
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let python = find("python3", "PYTHON")?;
    let mut command = std::process::Command::new(&python);
    let modules = command.args(["-I", "-c", "import ensurepip, venv"]).output();
    if !modules.is_ok_and(|output| output.status.success()) {
        bail!("{} has no `venv`: install the package python3-venv", python.display());
    }
    Ok(python)
}

/// Finds the program `name`: the path in the environment variable `variable` if that is set,
/// otherwise the first in `PATH`.
///
/// # Errors
/// If there is none, with advice.
pub(crate) fn find(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    find_in(name, variable, std::env::var_os(variable).as_deref(), &search_path())
}

fn find_in(
    name: &str,
    variable: &str,
    configured: Option<&OsStr>,
    path: &OsStr,
) -> anyhow::Result<PathBuf> {
    if let Some(configured) = configured {
        let program = PathBuf::from(configured);
        if !program.is_file() {
            bail!(
                "{variable} says that {name} is {}, but there is no such file",
                program.display()
            );
        }
        return Ok(program);
    }
    first_in(name, path).with_context(|| missing(name, variable, "its path"))
}

/// Returns `PATH`, and a place of servers that is not in everyone's `PATH`.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin");
    path
}

fn first_in(name: &str, path: &OsStr) -> Option<PathBuf> {
    let directories = std::env::split_paths(path);
    directories.map(|directory| directory.join(name)).find(|program| is_program(program))
}

fn missing(name: &str, variable: &str, value: &str) -> String {
    format!(
        "{name} is missing: `cargo xtask test servers` installs it where it can and says how where it cannot; \
         or set {variable} to {value}"
    )
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::{find_in, highest};

    #[test]
    fn a_missing_program_is_named_with_the_way_to_get_it() {
        let error =
            find_in("redis-server", "REDIS_SERVER", None, OsStr::new("/nowhere")).unwrap_err();
        let message = error.to_string();
        for part in ["redis-server is missing", "cargo xtask test servers", "REDIS_SERVER"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn of_several_versions_the_highest_that_has_the_server_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for (version, program) in
            [("postgresql@9", "postgres"), ("postgresql@16", "postgres"), ("postgresql@17", "psql")]
        {
            let directory = folder.path().join(version).join("bin");
            std::fs::create_dir_all(&directory).unwrap();
            std::os::unix::fs::symlink("/bin/sh", directory.join(program)).unwrap();
        }
        assert_eq!(
            highest(folder.path(), "postgresql@"),
            Some(folder.path().join("postgresql@16/bin"))
        );
        assert_eq!(highest(folder.path(), ""), None);
    }

    #[test]
    fn the_variable_wins_and_is_checked() {
        let path = OsStr::new("/bin");
        assert_eq!(find_in("sh", "SHELL", None, path).unwrap(), Path::new("/bin/sh"));
        assert_eq!(
            find_in("redis-server", "R", Some(OsStr::new("/bin/sh")), path).unwrap(),
            Path::new("/bin/sh")
        );
        let error = find_in("sh", "SHELL", Some(OsStr::new("/nowhere/sh")), path).unwrap_err();
        assert!(error.to_string().contains("SHELL says that sh is /nowhere/sh"), "{error}");
    }
}
