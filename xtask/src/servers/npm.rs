//! Packages of npm, as a lock file lists them.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::binary;
use crate::command::Command;

/// The file that npm writes when it has finished.
pub(super) const DONE: &str = "node_modules/.package-lock.json";

/// Packages that are installed in a folder of their own.
pub(crate) struct Project {
    /// The content of `package.json`.
    pub(crate) package: &'static str,
    /// The content of `package-lock.json`, which fixes the bytes.
    pub(crate) lock: &'static str,
}

impl Project {
    /// Returns the command that installs it in `folder`.
    pub(crate) fn install(&self, folder: &Path) -> anyhow::Result<Command> {
        fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        for (name, text) in self.files() {
            fs::write(folder.join(name), text)
                .with_context(|| format!("{name} cannot be written"))?;
        }
        // If npm itself is about to be installed, it will be in `PATH`.
        let npm = binary::find("npm", "NPM")
            .map_or_else(|_| String::from("npm"), |path| path.display().to_string());
        let options = "ci --ignore-scripts --no-audit --no-fund --prefix";
        Ok(Command::program(&npm, options).with_argument(folder.display().to_string()))
    }

    /// Returns true if `folder` has it as the lock file requires.
    pub(super) fn is_installed(&self, folder: &Path) -> bool {
        let is_current = |(name, text): (&str, &str)| {
            fs::read_to_string(folder.join(name)).is_ok_and(|there| there == text)
        };
        folder.join(DONE).is_file() && self.files().into_iter().all(is_current)
    }

    pub(super) fn files(&self) -> [(&'static str, &'static str); 2] {
        [("package.json", self.package), ("package-lock.json", self.lock)]
    }

    #[cfg(test)]
    #[track_caller]
    pub(crate) fn assert_pinned(&self) {
        let lock = self.lock;
        assert!(
            lock.contains("\"integrity\": \"sha512-")
                && !lock.contains("resolved")
                && !lock.contains("://"),
            "{lock}"
        );
    }
}
