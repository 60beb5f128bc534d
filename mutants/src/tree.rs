//! A copy of the sources, in which they are changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The location of the runtime crate's sources.
const SOURCES: &str = "idempotent-runtime/src";

/// The copy. It is kept for inspection.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
}

impl Tree {
    /// Copies the files that git tracks, or would track, of the repository at `origin` to `root`.
    pub(crate) fn copy(origin: &Path, root: PathBuf) -> anyhow::Result<Self> {
        let list = Command::new("git")
            .args(["ls-files", "-z", "-co", "--exclude-standard"])
            .current_dir(origin)
            .output();
        let list = list.context("git does not start")?;
        ensure!(
            list.status.success(),
            "git does not list the sources: {}",
            String::from_utf8_lossy(&list.stderr)
        );
        if root.exists() {
            std::fs::remove_dir_all(&root)
                .with_context(|| format!("{} cannot be removed", root.display()))?;
        }
        for name in String::from_utf8(list.stdout)?.split_terminator('\0') {
            let (from, to) = (origin.join(name), root.join(name));
            // Deleted, and not committed yet.
            if !from.exists() {
                continue;
            }
            let folder = to.parent().context("a file is in a folder")?;
            std::fs::create_dir_all(folder)?;
            std::fs::copy(&from, &to)
                .with_context(|| format!("{} cannot be copied", from.display()))?;
        }
        Ok(Self { root })
    }

    /// Returns the sources of `room`, a file or a folder, as paths from the root of the tree, in
    /// order.
    pub(crate) fn sources(&self, room: &str) -> anyhow::Result<Vec<PathBuf>> {
        let start = PathBuf::from(SOURCES).join(room);
        let (mut open, mut found) = (vec![start], Vec::new());
        while let Some(path) = open.pop() {
            let here = self.root.join(&path);
            if here.is_dir() {
                for entry in std::fs::read_dir(&here)? {
                    open.push(path.join(entry?.file_name()));
                }
            } else if is_code(&path) {
                ensure!(here.exists(), "there is no {}", path.display());
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    pub(crate) fn read(&self, path: &Path) -> anyhow::Result<String> {
        std::fs::read_to_string(self.root.join(path))
            .with_context(|| format!("{} cannot be read", path.display()))
    }

    /// Writes the file only if it changes: a newer file is compiled again.
    pub(crate) fn write(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        if self.read(path)? == text {
            return Ok(());
        }
        std::fs::write(self.root.join(path), text)
            .with_context(|| format!("{} cannot be written", path.display()))
    }
}

fn is_code(path: &Path) -> bool {
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    is_rust && path.file_stem().is_none_or(|name| name != "tests")
}
