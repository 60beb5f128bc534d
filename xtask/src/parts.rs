//! The parts of `cargo xtask test`. A new part is a new entry of [`PARTS`].

#![allow(clippy::unnecessary_wraps, reason = "all parts have the signature of those that can fail")]

use crate::arguments::Options;
use crate::command::Command;
use crate::features::{feature_sets, features_of_facade};
use crate::{links, servers, versions, words};

/// Commands that are selected, timed and reported together.
#[derive(Debug)]
pub(crate) struct Part {
    /// The name that selects it on the command line.
    pub(crate) name: &'static str,
    /// One line for `--help`.
    pub(crate) about: &'static str,
    /// The component of the toolchain that it needs, and the cargo command that the component
    /// provides.
    pub(crate) component: Option<(&'static str, &'static str)>,
    /// The part that runs before it, even if only this one is named.
    pub(crate) after: Option<&'static str>,
    /// The commands, in order.
    pub(crate) commands: fn(&Options) -> anyhow::Result<Vec<Command>>,
    /// The check after the commands have run, beyond their success.
    pub(crate) result: fn() -> anyhow::Result<()>,
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Part {}

/// The parts: those that others need and the quick ones first. Examples are built before the tests
/// that start them.
pub(crate) const PARTS: &[Part] = &[
    Part {
        name: servers::NAME,
        about: "the servers that tests start are installed",
        commands: servers::install,
        result: servers::check,
        ..PART
    },
    Part {
        name: "fmt",
        about: "the formatting",
        component: Some(("rustfmt", "fmt")),
        commands: fmt,
        ..PART
    },
    Part {
        name: words::NAME,
        about: "comments and pages use the terms of the field",
        result: words::check,
        ..PART
    },
    Part {
        name: "clippy",
        about: "clippy, for each feature set",
        component: Some(("clippy", "clippy")),
        commands: clippy,
        ..PART
    },
    Part {
        name: "docs",
        about: "the documentation builds without a warning, and its links lead somewhere",
        commands: docs,
        result: links::check,
        ..PART
    },
    Part { name: "examples", about: "the examples build", commands: examples, ..PART },
    Part {
        name: "tests",
        about: "unit, integration and UI tests, after `servers`",
        after: Some(servers::NAME),
        commands: tests,
        ..PART
    },
    Part {
        name: versions::NAME,
        about: "the suites of the stores on servers of other versions, after `servers`",
        after: Some(servers::NAME),
        commands: versions::commands,
        ..PART
    },
    Part {
        name: "values",
        about: "values and keys with each feature alone, and with features of `serde_json` that other crates switch on",
        commands: values,
        ..PART
    },
    Part { name: "doctests", about: "the code in the documentation", commands: doctests, ..PART },
    Part {
        name: "mutants",
        about: "with `--long`, for hours: a test notices when code is taken away",
        after: Some(servers::NAME),
        commands: mutants,
        ..PART
    },
];

/// The defaults of a part.
const PART: Part = Part {
    name: "",
    about: "",
    component: None,
    after: None,
    commands: |_| Ok(Vec::new()),
    result: || Ok(()),
};

fn fmt(_: &Options) -> anyhow::Result<Vec<Command>> {
    Ok(vec![Command::cargo("fmt --all --check")])
}

fn clippy(_: &Options) -> anyhow::Result<Vec<Command>> {
    let everything = String::from("--workspace --all-features --all-targets");
    let sets = feature_sets()?.into_iter().chain([everything]);
    Ok(sets.map(|set| Command::cargo(&format!("clippy {set} -- -D warnings"))).collect())
}

fn docs(_: &Options) -> anyhow::Result<Vec<Command>> {
    // The pages to which the others lead come first: a link to a page that is not there yet is left
    // out, or leads nowhere.
    let of = |packages: &str| {
        let line = format!("doc {packages} --all-features --no-deps");
        Command::cargo(&line).with_variable("RUSTDOCFLAGS", "-D warnings")
    };
    Ok(vec![of("--package idempotent-runtime"), of("--package idempotency"), of("--workspace")])
}

fn examples(_: &Options) -> anyhow::Result<Vec<Command>> {
    Ok(vec![Command::cargo("build --workspace --all-features --examples")])
}

fn tests(options: &Options) -> anyhow::Result<Vec<Command>> {
    let mut commands = Vec::new();
    // A broker of Kafka in a process of its own: the only one that cargo can install.
    if options.long && servers::tansu().is_err() {
        commands.push(Command::cargo("install --locked --features dynostore tansu@0.6.0"));
    }
    // Those of Kafka that wait for the timers of its groups.
    let skipped = if options.long { "" } else { " -- --skip minutes::" };
    let line = format!("test --workspace --all-features --lib --bins --tests{skipped}");
    commands.push(test(options, &line));
    Ok(commands)
}

/// Features that any crate of a user's build may enable for all others.
const FOREIGN_FEATURES: &str = "serde_json/arbitrary_precision,serde_json/float_roundtrip,serde_json/preserve_order,serde_json/raw_value";

/// Builds one package at a time: features of the packages that are built together are enabled for
/// all of them, and would hide the behaviour of the default build.
fn values(_: &Options) -> anyhow::Result<Vec<Command>> {
    const PACKAGE: &str = "--package idempotency-values-tests";
    let mut lines = vec![
        format!("test {PACKAGE}"),
        format!("test {PACKAGE} --features {FOREIGN_FEATURES}"),
        format!("test --package idempotent-runtime --lib --features http,{FOREIGN_FEATURES}"),
    ];
    for feature in features_of_facade()? {
        lines.push(format!(
            "test {PACKAGE} --no-default-features --features idempotency/{feature} --test golden"
        ));
    }
    Ok(lines.iter().map(|line| Command::cargo(line)).collect())
}

fn doctests(options: &Options) -> anyhow::Result<Vec<Command>> {
    Ok(vec![test(options, "test --workspace --all-features --doc")])
}

fn mutants(options: &Options) -> anyhow::Result<Vec<Command>> {
    let mut commands = Vec::new();
    if options.long {
        if !Command::cargo("mutants --version").succeeds() {
            commands.push(Command::cargo("install --locked cargo-mutants"));
        }
        commands.push(Command::cargo("run --package idempotency-mutants --"));
    }
    Ok(commands)
}

fn test(options: &Options, line: &str) -> Command {
    let command = Command::cargo(line);
    if options.long { command.with_variable("IDEMPOTENCY_LONG", "1") } else { command }
}

#[cfg(test)]
mod tests {
    use super::PARTS;
    use crate::arguments::Options;

    fn commands(name: &str, long: bool) -> Vec<String> {
        let part = PARTS.iter().find(|part| part.name == name).unwrap();
        let options = Options { parts: vec![part], long };
        (part.commands)(&options).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn long_reaches_the_tests_alone() {
        // The commands that install servers, and the servers that exist, depend on the machine.
        let depends = [crate::servers::NAME, crate::versions::NAME];
        for part in PARTS.iter().filter(|part| !depends.contains(&part.name)) {
            let told = commands(part.name, true)
                .iter()
                .any(|command| command.contains("IDEMPOTENCY_LONG=1"));
            assert_eq!(told, part.name.contains("tests"), "{}", part.name);
            assert!(
                !commands(part.name, false).concat().contains("IDEMPOTENCY_LONG"),
                "{}",
                part.name
            );
        }
    }

    #[test]
    fn code_is_taken_away_in_a_long_run_alone() {
        assert_eq!(commands("mutants", false), Vec::<String>::new());
        let last = "cargo run --package idempotency-mutants --";
        assert_eq!(commands("mutants", true).last().map(String::as_str), Some(last));
    }

    #[test]
    fn values_are_looked_at_with_each_feature_alone_and_with_those_of_others() {
        let commands = commands("values", false);
        for feature in ["macros", "memory", "redis", "http", "inbox", "testing"] {
            let set =
                format!("--no-default-features --features idempotency/{feature} --test golden");
            assert!(
                commands.iter().any(|command| command.ends_with(&set)),
                "{set} is not in {commands:#?}"
            );
        }
        assert!(commands.contains(&"cargo test --package idempotency-values-tests".to_owned()));
        let foreign = |command: &&String| command.contains("serde_json/arbitrary_precision");
        assert_eq!(commands.iter().filter(foreign).count(), 2);
    }

    #[test]
    fn clippy_sees_every_feature_of_the_facade_alone_and_all_targets_at_the_end() {
        let commands = commands("clippy", false);
        for set in ["", " --features macros", " --features memory", " --features testing"] {
            let command = format!(
                "cargo clippy --package idempotency --no-default-features{set} -- -D warnings"
            );
            assert!(commands.contains(&command), "{command} is not in {commands:#?}");
        }
        let last = "cargo clippy --workspace --all-features --all-targets -- -D warnings";
        assert_eq!(commands.last().map(String::as_str), Some(last));
    }
}
