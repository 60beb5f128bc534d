//! Looks for code whose absence no test notices:
//! `cargo xtask mutants [--sample N] [--round N] [AREA]...`.
//!
//! Two kinds of changes are made to a copy of the sources: a statement is deleted, or what
//! `cargo-mutants` proposes is done. All changes of a kind are in one build, each on a condition, so
//! that a change costs a run of the tests and no build. Of each kind a sample is taken for each
//! area, spread evenly over its sources. A change is caught when a test fails. One that makes a test run too long is counted
//! separately: it is noticed, but nothing reports what is wrong.

mod areas;
mod cargo_mutants;
mod change;
mod measurement;
mod options;
mod report;
mod sample;
mod statements;
mod tests;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use cargo_mutants::List;
use options::Options;
use report::Report;
use statements::statements;
use tree::Tree;

fn main() -> ExitCode {
    let options = match Options::parse(lexopt::Parser::from_env()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", options::help());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{}", options::help());
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs both kinds. Returns true if enough is caught.
fn run(options: &Options) -> anyhow::Result<bool> {
    let origin = std::env::current_dir()?;
    let place =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| origin.join("target"), PathBuf::from);
    let place = std::path::absolute(place.join("mutants"))?;
    let tree = Tree::copy(&origin, place.join("tree"))?;
    let target = place.join("target");
    let mut report = Report::default();
    if options.deletes {
        let mut find = |_: &Path, source: &str| statements(source);
        measurement::run("deleted statements", &mut find, options, &tree, &target, &mut report)?;
    }
    if options.changes {
        let list = List::of(&tree).context("cargo-mutants")?;
        let mut find = |file: &Path, source: &str| list.changes(file, source);
        let kind = "changes of cargo-mutants";
        measurement::run(kind, &mut find, options, &tree, &target, &mut report)?;
    }
    let text = report.to_string();
    let page = place.join("report.txt");
    std::fs::write(&page, &text)
        .with_context(|| format!("{} cannot be written", page.display()))?;
    println!("\n{text}\nThis report is in {} too.", page.display());
    Ok(report.is_enough())
}
