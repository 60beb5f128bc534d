//! MiniStack, which the tests of `idempotency-sqs` start.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::{binary, packages};
use crate::command::Command;

/// Its version, and the bytes of all that it needs.
const REQUIREMENTS: &str =
    include_str!("../../../test-support/src/server/ministack/requirements.txt");
/// What is to be installed, and what was.
const WANTED: &str = "requirements.txt";
const DONE: &str = "installed.txt";

/// Returns the commands that install it, if it is not there as the requirements say.
pub(super) fn install() -> anyhow::Result<Vec<Command>> {
    let folder = packages::ministack()?;
    if is_installed(&folder) {
        return Ok(Vec::new());
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let wanted = folder.join(WANTED);
    fs::write(&wanted, REQUIREMENTS)
        .with_context(|| format!("{} cannot be written", wanted.display()))?;
    // If Python itself is about to be installed, it will be in `PATH`.
    let python = binary::python()
        .map_or_else(|_| String::from("python3"), |path| path.display().to_string());
    let (folder, wanted) = (folder.display().to_string(), wanted.display().to_string());
    Ok(vec![
        Command::program(&python, "-I -m venv").with_argument(folder.clone()),
        Command::program(
            &format!("{folder}/bin/python"),
            "-I -m pip install --quiet --disable-pip-version-check --require-hashes --requirement",
        )
        .with_argument(wanted.clone()),
        // Only when all is there.
        Command::program("cp", "").with_argument(wanted).with_argument(format!("{folder}/{DONE}")),
    ])
}

/// Checks that it is there now.
pub(super) fn check() -> anyhow::Result<()> {
    let folder = packages::ministack()?;
    if !is_installed(&folder) {
        bail!("MiniStack is missing in {}", folder.display());
    }
    Ok(())
}

fn is_installed(folder: &Path) -> bool {
    fs::read_to_string(folder.join(DONE)).is_ok_and(|there| there == REQUIREMENTS)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{DONE, REQUIREMENTS, WANTED, is_installed};

    #[test]
    fn it_is_there_when_what_was_installed_is_what_is_required_now() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(WANTED), REQUIREMENTS).unwrap();
        assert!(!is_installed(folder.path()), "pip was interrupted");
        fs::write(folder.path().join(DONE), "ministack==1.0").unwrap();
        assert!(!is_installed(folder.path()), "it is another version");
        fs::write(folder.path().join(DONE), REQUIREMENTS).unwrap();
        assert!(is_installed(folder.path()));
    }

    #[test]
    fn the_requirements_pin_bytes_and_name_no_registry() {
        let packages = REQUIREMENTS.lines().filter(|line| line.contains("=="));
        assert!(packages.clone().any(|line| line.starts_with("ministack==")));
        assert!(packages.clone().all(|line| line.ends_with('\\')), "one has no hash");
        assert!(!REQUIREMENTS.contains("://") && !REQUIREMENTS.contains("--index"));
    }
}
