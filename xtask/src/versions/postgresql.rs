//! PostgreSQL servers from packages of npm, as the lock file lists them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::folder::filled;
use crate::servers::npm::Project;

const PROJECT: Project = Project {
    package: include_str!("../../postgresql/package.json"),
    lock: include_str!("../../postgresql/package-lock.json"),
};

/// Installs them in `servers` if they are not there yet.
pub(super) fn provide(servers: &Path) -> anyhow::Result<()> {
    filled(&servers.join("postgresql"), PROJECT.lock, |new| {
        PROJECT.install(new)?.run().context("the PostgreSQL servers cannot be had")?;
        for package in new.join("node_modules").read_dir()? {
            let package = package?.path();
            if package.join("native").is_dir() {
                link(&package)?;
            }
        }
        Ok(())
    })
}

/// Creates the links of a package: npm packages contain no links, so this one lists them.
fn link(package: &Path) -> anyhow::Result<()> {
    let list = fs::read(package.join("native/pg-symlinks.json"))?;
    let list: Vec<Value> =
        serde_json::from_slice(&list).context("a list of links cannot be read")?;
    for entry in &list {
        let path = |name: &str| entry[name].as_str().map(Path::new).context("a link has two ends");
        let (source, target) = (path("source")?, path("target")?);
        // In the same folder, which will be moved.
        let name = source.file_name().context("a link leads to a file")?;
        symlink(name, package.join(target))
            .with_context(|| format!("{} cannot be linked", target.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{PROJECT, link};

    #[test]
    fn links_are_made_as_listed() {
        let package = tempfile::tempdir().unwrap();
        let lib = package.path().join("native/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("libpq.so.5.18"), "library").unwrap();
        let list = r#"[{"source": "native/lib/libpq.so.5.18", "target": "native/lib/libpq.so.5"}]"#;
        fs::write(package.path().join("native/pg-symlinks.json"), list).unwrap();
        link(package.path()).unwrap();
        assert_eq!(fs::read_to_string(lib.join("libpq.so.5")).unwrap(), "library");
    }

    #[test]
    fn the_lock_file_pins_bytes_and_names_no_registry() {
        PROJECT.assert_pinned();
    }
}
