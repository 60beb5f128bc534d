//! Where the programs of servers are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The program `name`: the path in the environment variable `variable` if that is set, else the first in `PATH`.
///
/// # Errors
/// When there is none, with what to do about it.
pub(super) fn find(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    find_in(name, variable, std::env::var_os(variable).as_deref(), std::env::var_os("PATH").as_deref())
}

fn find_in(name: &str, variable: &str, configured: Option<&OsStr>, path: Option<&OsStr>) -> anyhow::Result<PathBuf> {
    if let Some(configured) = configured {
        let program = PathBuf::from(configured);
        if !program.is_file() {
            bail!("{variable} says that {name} is {}, but there is no such file", program.display());
        }
        return Ok(program);
    }
    let directories = path.into_iter().flat_map(std::env::split_paths);
    directories.map(|directory| directory.join(name)).find(|program| is_program(program)).with_context(|| {
        format!(
            "{name} is missing: `cargo xtask test servers` installs it where it can and says how where it cannot; \
             or set {variable} to its path"
        )
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::find_in;

    #[test]
    fn a_missing_program_is_named_with_the_way_to_get_it() {
        let error = find_in("redis-server", "REDIS_SERVER", None, Some(OsStr::new("/nowhere"))).unwrap_err();
        let message = error.to_string();
        for part in ["redis-server is missing", "cargo xtask test servers", "REDIS_SERVER"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_variable_wins_and_is_checked() {
        let path = Some(OsStr::new("/bin"));
        assert_eq!(find_in("sh", "SHELL", None, path).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find_in("redis-server", "R", Some(OsStr::new("/bin/sh")), path).unwrap(), Path::new("/bin/sh"));
        let error = find_in("sh", "SHELL", Some(OsStr::new("/nowhere/sh")), path).unwrap_err();
        assert!(error.to_string().contains("SHELL says that sh is /nowhere/sh"), "{error}");
    }
}
