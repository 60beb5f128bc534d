//! Runs `cargo-mutants`, which changes conditions, operators, match arms and the results of
//! functions.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::areas::{Area, Room};
use crate::options::Options;
use crate::report::{Fate, Report, Sample};
use crate::tests::targets;
use crate::tree::Tree;

const KIND: &str = "changes of cargo-mutants";
/// The time limit of one run of the tests, in seconds.
const LIMIT: &str = "600";

pub(crate) fn run(
    options: &Options,
    tree: &Tree,
    target: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let version = cargo(tree, target).args(["mutants", "--version"]).output()?;
    ensure!(
        version.status.success(),
        "it is missing; install it with `cargo install --locked cargo-mutants`"
    );
    for area in &options.areas {
        let totals = area
            .rooms
            .iter()
            .map(|room| total(tree, target, room))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let total: usize = totals.iter().sum();
        let mut changes = Vec::new();
        for (room, of_room) in area.rooms.iter().zip(totals) {
            // The room's share of the area's sample.
            let sample = (options.sample * of_room).div_ceil(total.max(1));
            if let Some(shards) = of_room.checked_div(sample) {
                let shards = shards.max(1);
                changes.extend(mutate(tree, target, area, room, (options.round % shards, shards))?);
            }
        }
        report.add(Sample { area: area.name, kind: KIND, total, changes });
    }
    Ok(())
}

fn cargo(tree: &Tree, target: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&tree.root).env("CARGO_TARGET_DIR", target).env("CARGO_INCREMENTAL", "1");
    command
}

fn with_files(mut command: Command, tree: &Tree, room: &Room) -> anyhow::Result<Command> {
    command.args(["mutants", "--in-place", "--all-features"]);
    for sources in room.sources {
        for file in tree.sources(sources)? {
            command.arg("--file").arg(file);
        }
    }
    Ok(command)
}

/// Returns the number of changes.
fn total(tree: &Tree, target: &Path, room: &Room) -> anyhow::Result<usize> {
    let output =
        with_files(cargo(tree, target), tree, room)?.args(["--list", "--json"]).output()?;
    ensure!(output.status.success(), "no list: {}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).context("the list cannot be read")?;
    Ok(list.as_array().map_or(0, Vec::len))
}

/// Applies each change of one of the shards, and runs the tests.
fn mutate(
    tree: &Tree,
    target: &Path,
    area: &Area,
    room: &Room,
    (shard, shards): (usize, usize),
) -> anyhow::Result<Vec<(Fate, String)>> {
    let place =
        target.join("cargo-mutants").join(area.name).join(room.sources.first().unwrap_or(&"all"));
    std::fs::create_dir_all(&place)?;
    let results = place.join("mutants.out");
    // Results of an earlier run, which must not be taken for this one's.
    if results.exists() {
        std::fs::remove_dir_all(&results)?;
    }
    let mut command = with_files(cargo(tree, target), tree, room)?;
    command.args([
        "--test-workspace=true",
        "--no-shuffle",
        "--sharding=round-robin",
        "--timeout",
        LIMIT,
    ]);
    command.arg(format!("--shard={shard}/{shards}")).arg("--output").arg(&place).arg("--");
    command.args(targets(room.tests));
    let status = command.status().context("it does not start")?;
    let path = results.join("outcomes.json");
    let read = || {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        outcomes(&serde_json::from_str(&text)?)
    };
    read().with_context(|| format!("it ended with {status}"))
}

fn outcomes(document: &Value) -> anyhow::Result<Vec<(Fate, String)>> {
    let outcomes = document["outcomes"].as_array().context("there are no outcomes")?;
    let mut fates = Vec::new();
    for outcome in outcomes {
        if outcome["scenario"] == "Baseline" {
            ensure!(
                outcome["summary"] == "Success",
                "the tests fail without a change: {}",
                outcome["summary"]
            );
        }
        let Some(name) = outcome["scenario"]["Mutant"]["name"].as_str() else { continue };
        let fate = match outcome["summary"].as_str() {
            Some("CaughtMutant") => Fate::Caught,
            Some("MissedMutant") => Fate::Survived,
            Some("Timeout") => Fate::TimedOut,
            Some("Unviable") => continue,
            other => bail!("{name} ended with {other:?}"),
        };
        fates.push((fate, name.to_owned()));
    }
    Ok(fates)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Fate, outcomes};

    #[test]
    fn a_run_whose_tests_fail_without_a_change_is_no_sample() -> anyhow::Result<()> {
        let mutant =
            json!({"scenario": {"Mutant": {"name": "a.rs:1: x"}}, "summary": "MissedMutant"});
        let run =
            |summary| json!({"outcomes": [{"scenario": "Baseline", "summary": summary}, mutant]});
        assert_eq!(outcomes(&run("Success"))?, [(Fate::Survived, "a.rs:1: x".to_owned())]);
        assert!(
            outcomes(&run("Failure"))
                .is_err_and(|error| error.to_string().contains("without a change"))
        );
        Ok(())
    }
}
