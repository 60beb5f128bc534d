//! The table at the end.

use std::fmt;
use std::time::Duration;

/// The time limit of the default run on two cores; longer tests need `--long`.
const BUDGET: Duration = Duration::from_secs(35 * 60);

/// The duration and the outcome of each part.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(&'static str, Outcome)>,
    long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed(Duration),
    Failed(Duration),
    NotRun,
}

impl Outcome {
    fn time(self) -> Option<Duration> {
        match self {
            Self::Passed(time) | Self::Failed(time) => Some(time),
            Self::NotRun => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Passed(_) => "passed",
            Self::Failed(_) => "FAILED",
            Self::NotRun => "not run",
        }
    }
}

impl Report {
    pub(crate) fn new(long: bool) -> Self {
        Self { rows: Vec::new(), long }
    }

    pub(crate) fn add(&mut self, part: &'static str, outcome: Outcome) {
        self.rows.push((part, outcome));
    }

    fn total(&self) -> Outcome {
        let time = self.rows.iter().filter_map(|(_, outcome)| outcome.time()).sum();
        let passed = self.rows.iter().all(|(_, outcome)| matches!(outcome, Outcome::Passed(_)));
        if passed { Outcome::Passed(time) } else { Outcome::Failed(time) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        for (part, outcome) in self.rows.iter().copied().chain([("total", total)]) {
            let time = outcome.time().map(minutes).unwrap_or_default();
            writeln!(f, "{part:<10}{time:>12}   {}", outcome.word())?;
        }
        if !self.long && total.time() > Some(BUDGET) {
            writeln!(
                f,
                "This took longer than {}: move what is slow under --long.",
                minutes(BUDGET)
            )?;
        }
        Ok(())
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs_f64().round();
    format!("{} min {:02} s", (seconds / 60.0).floor(), seconds % 60.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Outcome, Report};

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn shows_every_part_and_the_total() {
        let mut report = Report::new(false);
        report.add("fmt", Outcome::Passed(Duration::from_millis(1_499)));
        report.add("clippy", Outcome::Failed(seconds(64)));
        report.add("tests", Outcome::NotRun);
        let expected = "\
fmt         0 min 01 s   passed
clippy      1 min 04 s   FAILED
tests                    not run
total       1 min 05 s   FAILED
";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn seconds_are_carried_into_minutes() {
        assert_eq!(super::minutes(Duration::from_millis(59_600)), "1 min 00 s");
    }

    #[test]
    fn only_a_default_run_has_a_budget() {
        for (long, time, warned) in
            [(false, 2_100, false), (false, 2_101, true), (true, 9_000, false)]
        {
            let mut report = Report::new(long);
            report.add("tests", Outcome::Passed(seconds(time)));
            assert_eq!(report.to_string().contains("--long"), warned, "{long} {time}");
        }
    }
}
