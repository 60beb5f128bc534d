//! The user for servers that refuse to run as root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// A user without rights. `None` stands for the user of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct SystemUser(Option<(u32, u32)>);

impl SystemUser {
    /// Returns the first of `names` that exists if this process runs as root, otherwise its own
    /// user.
    ///
    /// # Errors
    /// If it runs as root and there is no such user.
    pub(super) fn without_rights(names: &[&str]) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let ids = names.iter().find_map(|name| Some((id("-u", name)?, id("-g", name)?)));
        let ids = ids.with_context(|| {
            format!("the server does not run as root, and no user is named {names:?}")
        })?;
        Ok(Self(Some(ids)))
    }

    /// Makes `command` run as this user.
    pub(super) fn runs(self, command: &mut Command) {
        if let Self(Some((user, group))) = self {
            // The standard library also drops root's other groups.
            command.uid(user).gid(group);
        }
    }

    /// Makes this user the owner of `path`.
    pub(super) fn owns(self, path: &Path) -> anyhow::Result<()> {
        let Self(Some((user, group))) = self else { return Ok(()) };
        chown(path, Some(user), Some(group))
            .with_context(|| format!("could not give {} away", path.display()))
    }
}

fn id(which: &str, name: &str) -> Option<u32> {
    let printed = Command::new("id").args([which, name]).output().ok()?.stdout;
    String::from_utf8(printed).ok()?.trim().parse().ok()
}
