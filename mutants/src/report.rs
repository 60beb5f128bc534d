//! The changes that were caught, and those that were not.

use std::fmt;

/// The required percentage.
const ENOUGH: usize = 95;

/// The fate of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// A test failed.
    Caught,
    /// A test took too long.
    TimedOut,
    /// No test noticed.
    Survived,
}

/// The changes of one kind in one area.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) area: &'static str,
    pub(crate) kind: &'static str,
    /// The number of changes from which the sample was taken.
    pub(crate) total: usize,
    /// The fate of each change, with its location and text.
    pub(crate) changes: Vec<(Fate, String)>,
}

impl Sample {
    fn count(&self, fate: Fate) -> usize {
        self.changes.iter().filter(|(other, _)| *other == fate).count()
    }

    fn is_enough(&self) -> bool {
        let is_empty = self.changes.is_empty() && self.total > 0;
        !is_empty && self.count(Fate::Caught) * 100 >= self.changes.len() * ENOUGH
    }
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    samples: Vec<Sample>,
}

impl Report {
    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Returns true if that percentage is caught in each sample.
    pub(crate) fn is_enough(&self) -> bool {
        self.samples.iter().all(Sample::is_enough)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sample in &self.samples {
            let (all, caught) = (sample.changes.len(), sample.count(Fate::Caught));
            let Sample { area, kind, total, .. } = sample;
            let word = if sample.is_enough() { "" } else { ", FEWER THAN WANTED" };
            writeln!(f, "{area}, {kind}: {caught} of {all} caught (out of {total}){word}")?;
            for (fate, text) in &sample.changes {
                match fate {
                    Fate::Caught => {}
                    Fate::TimedOut => writeln!(f, "  took too long: {text}")?,
                    Fate::Survived => writeln!(f, "  survived: {text}")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Fate, Report, Sample};

    fn report(survivors: usize) -> Report {
        let change = |index| {
            (
                if index < survivors { Fate::Survived } else { Fate::Caught },
                format!("{index}.rs:1: x"),
            )
        };
        let changes = (0..20).map(change).collect();
        let mut report = Report::default();
        report.add(Sample { area: "http", kind: "deleted statements", total: 300, changes });
        report
    }

    #[test]
    fn what_survived_is_named() {
        let text = report(1).to_string();
        assert_eq!(
            text,
            "http, deleted statements: 19 of 20 caught (out of 300)\n  survived: 0.rs:1: x\n"
        );
    }

    #[test]
    fn an_area_of_which_nothing_was_changed_is_not_enough() {
        let mut report = Report::default();
        report.add(Sample {
            area: "http",
            kind: "deleted statements",
            total: 300,
            changes: Vec::new(),
        });
        assert!(!report.is_enough());
    }

    #[test]
    fn five_of_a_hundred_may_survive() {
        assert!(report(0).is_enough() && report(1).is_enough());
        assert!(!report(2).is_enough());
        assert!(report(2).to_string().contains("18 of 20 caught (out of 300), FEWER THAN WANTED"));
    }
}
