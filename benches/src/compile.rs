//! What the attribute costs the compiler: 200 annotated functions beside the same functions without it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::cpu;
use crate::measure::{Row, Target};

const FUNCTIONS: u32 = 200;
const ROUNDS: u32 = 5;

pub fn rows() -> anyhow::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let annotated = package(directory.path(), "annotated", "#[idempotent(key = order, ttl = \"24h\")]\n")?;
    let plain = package(directory.path(), "plain", "")?;
    let mut row = Row::new(
        "200 annotated functions, processor of `cargo check`",
        "the same functions without the attribute",
        Target::AtMost(1.8),
    );
    let mut figures = Vec::new();
    for round in 0..=ROUNDS {
        let pair = (check(&annotated)?, check(&plain)?);
        // The first builds what both depend on.
        if round > 0 {
            figures.push(pair);
        }
    }
    row.ratios = figures.iter().map(|(annotated, plain)| annotated.as_secs_f64() / plain.as_secs_f64()).collect();
    if let Some((annotated, plain)) = figures.last() {
        row.figures = format!("{annotated:.1?} : {plain:.1?}");
    }
    Ok(vec![row])
}

/// A package with that many functions, each behind `attribute`.
fn package(directory: &Path, name: &str, attribute: &str) -> anyhow::Result<std::path::PathBuf> {
    let package = directory.join(name);
    std::fs::create_dir_all(package.join("src"))?;
    let facade = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         idempotency = {{ path = \"{}\" }}\n",
        facade.display()
    );
    std::fs::write(package.join("Cargo.toml"), manifest)?;
    std::fs::copy(facade.join("Cargo.lock"), package.join("Cargo.lock"))?;
    let mut source = String::from("#![allow(unused_imports)]\nuse idempotency::{Error, idempotent};\n");
    for number in 0..FUNCTIONS {
        write!(
            source,
            "\n{attribute}pub async fn charge_{number}(order: u64, amount: u64) -> Result<String, Error> {{\n    \
             let receipt = format!(\"{{order}} {{amount}} {number}\");\n    Ok(receipt)\n}}\n"
        )?;
    }
    std::fs::write(package.join("src/lib.rs"), source)?;
    Ok(package)
}

/// The processor time of checking the package alone.
fn check(package: &Path) -> anyhow::Result<Duration> {
    let source = package.join("src/lib.rs");
    let text = std::fs::read_to_string(&source)?;
    // Newer than what was built.
    std::fs::write(&source, text)?;
    let before = cpu::children()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["check", "--quiet"])
        .current_dir(package)
        .env("CARGO_TARGET_DIR", package.with_file_name("target"))
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .context("could not start cargo")?;
    ensure!(status.success(), "`cargo check` failed in {}", package.display());
    Ok(cpu::children()?.saturating_sub(before))
}
