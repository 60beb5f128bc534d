//! Packages of other languages that tests use, and where `cargo xtask test servers` puts them. It
//! compiles this file too.

use std::path::PathBuf;

use anyhow::Context as _;

/// Returns the folder of the official Node client for Stripe's API, with its `node_modules`: in the
/// target directory.
///
/// # Errors
/// If this program is not in a target directory.
pub fn stripe_client() -> anyhow::Result<PathBuf> {
    Ok(target_directory()?.join("stripe-client"))
}

/// Returns the folder of MiniStack, with its Python: in the target directory.
///
/// # Errors
/// If this program is not in a target directory.
pub fn ministack() -> anyhow::Result<PathBuf> {
    Ok(target_directory()?.join("ministack"))
}

fn target_directory() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    // Cargo puts the first file into a target directory that it has created, and the second one
    // into all others too.
    let marks = ["CACHEDIR.TAG", ".rustc_info.json"];
    let target =
        program.ancestors().find(|folder| marks.iter().any(|mark| folder.join(mark).is_file()));
    let target = target.with_context(|| format!("{} is in no target directory", program.display()));
    Ok(target?.to_path_buf())
}
