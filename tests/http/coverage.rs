//! Every rule has a test.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// All rules of the layer.
const RULES: RangeInclusive<u32> = 1..=70;

#[test]
fn every_rule_has_a_test_that_carries_its_number() -> anyhow::Result<()> {
    let list =
        Command::new(std::env::current_exe()?).args(["--list", "--format", "terse"]).output()?;
    ensure!(list.status.success(), "the tests cannot be listed");
    let mut tested = BTreeSet::new();
    for line in String::from_utf8(list.stdout)?.lines() {
        let name = line.trim_end_matches(": test").rsplit("::").next().unwrap_or_default();
        if let Some(rest) = name.strip_prefix("rule_") {
            let (number, sentence) =
                rest.split_once('_').with_context(|| format!("{name} says nothing"))?;
            ensure!(!sentence.is_empty(), "{name} says nothing");
            tested.insert(number.parse::<u32>().with_context(|| format!("{name} has no number"))?);
        }
    }
    assert_eq!(tested, RULES.collect());
    Ok(())
}
