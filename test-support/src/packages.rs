//! Packages of other languages that tests use: which they are, and where `cargo xtask test servers`
//! puts them. It compiles this file too.

use std::path::PathBuf;

use anyhow::Context as _;

/// The folder of the official client of Stripe's API for Node, with its `node_modules`: in the
/// target directory.
///
/// # Errors
/// When this program is not in a target directory.
pub fn stripe_client() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    // Cargo puts the first file into a target directory that it has made, and the second one into
    // every other too.
    let marks = ["CACHEDIR.TAG", ".rustc_info.json"];
    let target =
        program.ancestors().find(|folder| marks.iter().any(|mark| folder.join(mark).is_file()));
    Ok(target
        .with_context(|| format!("{} is in no target directory", program.display()))?
        .join("stripe-client"))
}
