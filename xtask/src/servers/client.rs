//! The official client of Stripe's API, which the tests in `tests/stripe` run: one package, as its lock file has it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::{binary, packages};
use crate::command::Command;

/// The package, and what its bytes have to be.
const FILES: [(&str, &str); 2] = [
    ("package.json", include_str!("../../../tests/stripe/package.json")),
    ("package-lock.json", include_str!("../../../tests/stripe/package-lock.json")),
];

/// Written by npm when it is done.
const DONE: &str = "node_modules/.package-lock.json";

/// The command that installs it, if it is not there as the lock file wants it.
pub(super) fn install() -> anyhow::Result<Option<Command>> {
    let folder = packages::stripe_client()?;
    if is_installed(&folder) {
        return Ok(None);
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    for (name, text) in FILES {
        fs::write(folder.join(name), text).with_context(|| format!("{name} cannot be written"))?;
    }
    // Where npm is itself about to be installed it will be in `PATH`.
    let npm = binary::find("npm", "NPM").map_or_else(|_| String::from("npm"), |path| path.display().to_string());
    let options = "ci --ignore-scripts --no-audit --no-fund --prefix";
    Ok(Some(Command::program(&npm, options).with_argument(folder.display().to_string())))
}

/// Whether it is there now.
pub(super) fn check() -> anyhow::Result<()> {
    let folder = packages::stripe_client()?;
    if !is_installed(&folder) {
        bail!("the client of Stripe's API is missing in {}: run `npm ci` there", folder.display());
    }
    Ok(())
}

fn is_installed(folder: &Path) -> bool {
    let is_current =
        |(name, text): &(&str, &str)| fs::read_to_string(folder.join(name)).is_ok_and(|there| there == *text);
    folder.join(DONE).is_file() && FILES.iter().all(is_current)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{DONE, FILES, is_installed};

    #[test]
    fn it_is_there_when_npm_is_done_with_what_the_lock_file_says_now() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_installed(folder.path()));
        for (name, text) in FILES {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert!(!is_installed(folder.path()), "npm was interrupted");
        fs::create_dir(folder.path().join("node_modules")).unwrap();
        fs::write(folder.path().join(DONE), "{}").unwrap();
        assert!(is_installed(folder.path()));
        fs::write(folder.path().join("package-lock.json"), "{}").unwrap();
        assert!(!is_installed(folder.path()), "it is another version");
    }

    #[test]
    fn the_lock_file_pins_bytes_and_names_no_registry() {
        let (_, lock) = FILES[1];
        assert!(
            lock.contains("\"integrity\": \"sha512-") && !lock.contains("resolved") && !lock.contains("://"),
            "{lock}"
        );
    }
}
