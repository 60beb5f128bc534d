//! The folder of servers of other versions.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Context as _;

use crate::command::Command;

/// The environment variable that names another folder.
const VARIABLE: &str = "IDEMPOTENCY_SERVERS";

/// The file that records the recipe of a folder.
const RECIPE: &str = "recipe";

/// Returns the folder of all servers, outside of the clone. As root, the tests start servers as
/// users without rights, which cannot read root's home.
pub(super) fn of_servers() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return std::path::absolute(named).context("the folder of servers has no place");
    }
    let is_root = Command::program("id", "-u").output().is_ok_and(|id| id.trim_ascii() == b"0");
    let home = || env::home_dir().map(|home| home.join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache = if is_root { Some(PathBuf::from("/var/cache")) } else { cache };
    Ok(cache
        .with_context(|| format!("there is no home directory: name a folder by {VARIABLE}"))?
        .join("idempotency-servers"))
}

/// Lets `fill` create the content of `folder` if it does not exist, or was created by another
/// recipe. It is created in a folder beside it, which replaces it when complete: other processes
/// may be doing the same.
pub(super) fn filled(
    folder: &Path,
    recipe: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_filled = || fs::read_to_string(folder.join(RECIPE)).is_ok_and(|found| found == recipe);
    if is_filled() {
        return Ok(());
    }
    let beside = |word: &str| folder.with_extension(format!("{word}-{}", std::process::id()));
    let (new, old) = (beside("new"), beside("old"));
    fs::create_dir_all(&new).with_context(|| format!("{} cannot be made", new.display()))?;
    let filling = fill(&new).and_then(|()| Ok(fs::write(new.join(RECIPE), recipe)?));
    if filling.is_ok() {
        // If two processes do this at once, one finds the place taken.
        let _ = fs::rename(folder, &old);
        let _ = fs::rename(&new, folder);
    }
    for left in [new, old] {
        let _ = fs::remove_dir_all(left);
    }
    filling?;
    anyhow::ensure!(is_filled(), "{} could not be put in its place", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::filled;

    #[test]
    fn a_folder_is_filled_once_for_each_recipe_and_not_by_halves() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("servers");
        let fill = |word: &'static str| {
            move |new: &std::path::Path| Ok(fs::write(new.join("word"), word)?)
        };
        let word = || fs::read_to_string(folder.join("word")).unwrap();
        filled(&folder, "1", fill("one")).unwrap();
        filled(&folder, "1", |_| panic!("it is filled")).unwrap();
        let failed = filled(&folder, "2", |new| {
            fs::write(new.join("word"), "half")?;
            anyhow::bail!("the archive is away")
        });
        assert!(failed.is_err() && word() == "one");
        filled(&folder, "2", fill("two")).unwrap();
        assert_eq!(word(), "two");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
