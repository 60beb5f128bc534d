//! The official client for Stripe's API, which the tests in `tests/stripe` run.

use anyhow::bail;

use super::npm::Project;
use super::packages;
use crate::command::Command;

/// One package.
const PROJECT: Project = Project {
    package: include_str!("../../../tests/stripe/package.json"),
    lock: include_str!("../../../tests/stripe/package-lock.json"),
};

/// Returns the command that installs it, if it is not there as the lock file requires.
pub(super) fn install() -> anyhow::Result<Option<Command>> {
    let folder = packages::stripe_client()?;
    if PROJECT.is_installed(&folder) {
        return Ok(None);
    }
    PROJECT.install(&folder).map(Some)
}

/// Checks that it is there now.
pub(super) fn check() -> anyhow::Result<()> {
    let folder = packages::stripe_client()?;
    if !PROJECT.is_installed(&folder) {
        bail!("the client of Stripe's API is missing in {}: run `npm ci` there", folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::PROJECT;
    use crate::servers::npm::DONE;

    #[test]
    fn it_is_there_when_npm_is_done_with_what_the_lock_file_says_now() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!PROJECT.is_installed(folder.path()));
        for (name, text) in PROJECT.files() {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert!(!PROJECT.is_installed(folder.path()), "npm was interrupted");
        fs::create_dir(folder.path().join("node_modules")).unwrap();
        fs::write(folder.path().join(DONE), "{}").unwrap();
        assert!(PROJECT.is_installed(folder.path()));
        fs::write(folder.path().join("package-lock.json"), "{}").unwrap();
        assert!(!PROJECT.is_installed(folder.path()), "it is another version");
    }

    #[test]
    fn the_lock_file_pins_bytes_and_names_no_registry() {
        PROJECT.assert_pinned();
    }
}
