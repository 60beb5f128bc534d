//! The cost of the attribute for the compiler: 200 annotated functions beside the same functions
//! without it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::cpu;
use crate::measure::{Row, Target};

const FUNCTIONS: u32 = 200;
/// A body that does as little as possible.
const SHORT: &str = "    let receipt = format!(\"{} {}\", order.id, order.customer);
    Ok(Receipt { order: order.id, total: 0, charge: receipt })";
/// A body as services have them.
const ORDINARY: &str = "    let customer = provider.customer(order.customer).await?;
    if customer.is_blocked {
        return Err(PayError::Blocked(customer.name));
    }
    let mut total: u64 = 0;
    for line in &order.lines {
        let price = line.price.checked_mul(line.count).ok_or(PayError::Overflow)?;
        total = total.checked_add(price).ok_or(PayError::Overflow)?;
    }
    let charge = provider.charge(&customer, total).await?;
    Ok(Receipt { order: order.id, total, charge })";
const TYPES: &str = "#![allow(unused_imports, unused_variables)]
use idempotency::{Error, idempotent};
use serde::{Deserialize, Serialize};

pub struct Line { pub price: u64, pub count: u64 }
pub struct Order { pub id: u64, pub customer: u64, pub lines: Vec<Line> }
pub struct Customer { pub name: String, pub is_blocked: bool }
#[derive(Deserialize, Serialize)]
pub struct Receipt { pub order: u64, pub total: u64, pub charge: String }
pub enum PayError { Blocked(String), Overflow, Idempotency(Error) }
impl From<Error> for PayError {
    fn from(error: Error) -> Self { Self::Idempotency(error) }
}
pub struct Provider;
impl Provider {
    pub async fn customer(&self, id: u64) -> Result<Customer, PayError> {
        Ok(Customer { name: id.to_string(), is_blocked: false })
    }
    pub async fn charge(&self, customer: &Customer, total: u64) -> Result<String, PayError> {
        Ok(format!(\"{} {total}\", customer.name))
    }
}
";
const ROUNDS: u32 = 5;

pub fn rows() -> anyhow::Result<Vec<Row>> {
    Ok(vec![compare("of two lines", SHORT)?, compare("of eleven lines", ORDINARY)?])
}

fn compare(which: &str, body: &str) -> anyhow::Result<Row> {
    let directory = tempfile::tempdir()?;
    let annotated = package(
        directory.path(),
        "annotated",
        "#[idempotent(key = order.id, ttl = \"24h\")]\n",
        body,
    )?;
    let plain = package(directory.path(), "plain", "", body)?;
    let path = format!("{FUNCTIONS} annotated functions {which}, processor of `cargo check`");
    let mut row = Row::new(&path, "the same functions without the attribute", Target::AtMost(1.8));
    let mut figures = Vec::new();
    for round in 0..=ROUNDS {
        let pair = (check(&annotated)?, check(&plain)?);
        // The first round builds what both depend on.
        if round > 0 {
            figures.push(pair);
        }
    }
    row.ratios = figures
        .iter()
        .map(|(annotated, plain)| annotated.as_secs_f64() / plain.as_secs_f64())
        .collect();
    if let Some((annotated, plain)) = figures.last() {
        row.figures = format!("{annotated:.1?} : {plain:.1?}");
    }
    Ok(row)
}

/// Creates a package with that many functions, each with `attribute`.
fn package(
    directory: &Path,
    name: &str,
    attribute: &str,
    body: &str,
) -> anyhow::Result<std::path::PathBuf> {
    let package = directory.join(name);
    std::fs::create_dir_all(package.join("src"))?;
    let facade = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         idempotency = {{ path = \"{}\" }}\nserde = {{ version = \"1\", features = [\"derive\"] }}\n",
        facade.display()
    );
    std::fs::write(package.join("Cargo.toml"), manifest)?;
    std::fs::copy(facade.join("Cargo.lock"), package.join("Cargo.lock"))?;
    let mut source = String::from(TYPES);
    for number in 0..FUNCTIONS {
        write!(
            source,
            "\n{attribute}pub async fn charge_{number}(provider: &Provider, order: &Order) -> Result<Receipt, PayError> \
             {{\n{body}\n}}\n"
        )?;
    }
    std::fs::write(package.join("src/lib.rs"), source)?;
    Ok(package)
}

/// Returns the processor time of checking the package alone.
fn check(package: &Path) -> anyhow::Result<Duration> {
    let source = package.join("src/lib.rs");
    let text = std::fs::read_to_string(&source)?;
    // Newer than the build.
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
