//! `cargo xtask test`: checks the components, runs the parts, reports.

use std::time::Instant;

use anyhow::bail;

use crate::arguments::Options;
use crate::command::Command;
use crate::parts::Part;
use crate::report::{Outcome, Report};

/// Runs the parts up to the first one that fails.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    require_components(&options.parts)?;

    let mut report = Report::new(options.long);
    let mut failure = None;
    for part in &options.parts {
        if failure.is_some() {
            report.add(part.name, Outcome::NotRun);
            continue;
        }
        let start = Instant::now();
        match run_part(part, options) {
            Ok(()) => report.add(part.name, Outcome::Passed(start.elapsed())),
            Err(error) => {
                report.add(part.name, Outcome::Failed(start.elapsed()));
                failure = Some(error);
            }
        }
    }
    println!("\n{report}");
    failure.map_or(Ok(()), Err)
}

/// Checks the components before anything runs: a missing one must not show after ten minutes.
fn require_components(parts: &[&'static Part]) -> anyhow::Result<()> {
    for (component, command) in parts.iter().filter_map(|part| part.component) {
        if !Command::cargo(&format!("{command} --version")).succeeds() {
            bail!(
                "the component {component} is missing; add it with `rustup component add {component}`"
            );
        }
    }
    Ok(())
}

fn run_part(part: &Part, options: &Options) -> anyhow::Result<()> {
    (part.commands)(options)?.iter().try_for_each(Command::run)?;
    (part.result)()
}
