//! The command line.

use std::fmt::Write as _;

use lexopt::prelude::{Long, Short, Value, ValueExt};

use crate::parts::{PARTS, Part};
use crate::versions::Kind;

/// The task to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Help,
    Test(Options),
    /// Programs or URLs of servers, for the suites of their stores.
    Versions(Vec<(Kind, String)>),
    Bench(Vec<String>),
    Mutants(Vec<String>),
}

/// The options of `test`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// In the order of [`PARTS`], each once.
    pub(crate) parts: Vec<&'static Part>,
    pub(crate) long: bool,
}

pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let mut task = None;
    let (mut names, mut servers) = (Vec::<String>::new(), Vec::new());
    let (mut long, mut write) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Task::Help),
            Long(option) if task.as_deref() == Some("versions") => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.option() == option);
                let Some(kind) = kind else { return Err(argument.unexpected()) };
                servers.push((kind, parser.value()?.string()?));
            }
            Long("long") if task.as_deref() != Some("bench") => long = true,
            Long("write") if task.as_deref() == Some("bench") => write = true,
            Value(value) if task.is_none() && value == "mutants" => {
                let rest = parser.raw_args()?.map(ValueExt::string).collect::<Result<_, _>>()?;
                return Ok(Task::Mutants(rest));
            }
            Value(value) if task.is_none() => task = Some(value.string()?),
            Value(value) => names.push(value.string()?),
            _ => return Err(argument.unexpected()),
        }
    }
    match task.as_deref() {
        Some("test") => Ok(Task::Test(Options { parts: select(&names)?, long })),
        Some("versions") if servers.is_empty() => Err("which server?".into()),
        Some("versions") if names.is_empty() => Ok(Task::Versions(servers)),
        Some("versions") => Err(format!("what is `{}`?", names.join(" ")).into()),
        Some("bench") => {
            Ok(Task::Bench(write.then(|| "--write".into()).into_iter().chain(names).collect()))
        }
        Some("help") => Ok(Task::Help),
        Some(other) => Err(format!("there is no task `{other}`").into()),
        None => Err("which task?".into()),
    }
}

fn select(names: &[String]) -> Result<Vec<&'static Part>, lexopt::Error> {
    if let Some(unknown) = names.iter().find(|name| PARTS.iter().all(|part| part.name != **name)) {
        return Err(format!("there is no part `{unknown}`").into());
    }
    let wanted = |part: &&Part| names.is_empty() || names.iter().any(|name| name == part.name);
    let needed =
        |part: &&Part| PARTS.iter().filter(wanted).any(|other| other.after == Some(part.name));
    Ok(PARTS.iter().filter(|part| wanted(part) || needed(part)).collect())
}

pub(crate) fn help() -> String {
    let mut text = String::from(
        "Usage: cargo xtask test [--long] [PART]...\n       cargo xtask versions SERVER...\n       \
         cargo xtask bench [--write | GROUP...]\n       cargo xtask mutants [--help | AREA...]\n\n\
         test runs all parts, or the named ones, in this order, and stops at the first that fails:\n",
    );
    for part in PARTS {
        let _ = write!(text, "\n  {:<10}{}", part.name, part.about);
    }
    text.push_str("\n\nversions runs the suites of a store on each server that is named:\n");
    for kind in Kind::ALL {
        let _ = write!(text, "\n  --{:<10}{}", kind.option(), kind.value());
    }
    text.push_str(
        "\n\n  --long    let the tests run their long versions too (sets IDEMPOTENCY_LONG=1)\n  \
         --write   put what bench measures into docs/performance.md\n  \
         -h, --help\n\n\
         Each command is printed as it can be typed. Exit code: 0 passed, 1 failed, 2 wrong arguments.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::{Kind, Task, parse};

    fn parse_words(words: &str) -> Result<Task, String> {
        parse(lexopt::Parser::from_args(words.split_whitespace()))
            .map_err(|error| error.to_string())
    }

    fn selected(words: &str) -> (Vec<&'static str>, bool) {
        match parse_words(words) {
            Ok(Task::Test(options)) => {
                (options.parts.iter().map(|part| part.name).collect(), options.long)
            }
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn without_names_all_parts_run() {
        let (names, long) = selected("test");
        assert_eq!(names, crate::parts::PARTS.iter().map(|part| part.name).collect::<Vec<_>>());
        assert!(!long);
    }

    #[test]
    fn named_parts_run_in_the_fixed_order_and_once() {
        assert_eq!(selected("test clippy --long fmt clippy"), (vec!["fmt", "clippy"], true));
    }

    #[test]
    fn servers_are_provided_for_those_that_need_them_alone() {
        assert_eq!(selected("test tests"), (vec!["servers", "tests"], false));
        assert_eq!(selected("test versions"), (vec!["servers", "versions"], false));
        for part in ["fmt", "clippy", "docs", "examples", "doctests"] {
            assert_eq!(selected(&format!("test {part}")), (vec![part], false));
        }
    }

    #[test]
    fn other_servers_are_named_by_their_programs() {
        let servers =
            vec![(Kind::Redis, "/opt/redis-server".into()), (Kind::Postgres, "/opt/pg/bin".into())];
        let words = "versions --redis /opt/redis-server --postgres=/opt/pg/bin";
        assert_eq!(parse_words(words), Ok(Task::Versions(servers)));
        for wrong in
            ["versions", "versions --redis", "versions --oracle /opt", "versions --redis /opt more"]
        {
            assert!(parse_words(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn measurements_take_groups_or_the_page() {
        assert_eq!(
            parse_words("bench redis sqlite"),
            Ok(Task::Bench(vec!["redis".into(), "sqlite".into()]))
        );
        assert_eq!(parse_words("bench --write"), Ok(Task::Bench(vec!["--write".into()])));
        assert!(parse_words("bench --long").is_err());
        assert!(parse_words("test --write").is_err());
    }

    #[test]
    fn what_mutants_gets_is_its_own() {
        let words = ["--sample", "5", "http"].map(String::from).to_vec();
        assert_eq!(parse_words("mutants --sample 5 http"), Ok(Task::Mutants(words)));
        assert_eq!(parse_words("mutants --help"), Ok(Task::Mutants(vec!["--help".into()])));
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert!(parse_words("test --fast").unwrap_err().contains("--fast"));
        assert!(parse_words("test --long=yes").unwrap_err().contains("--long"));
        assert!(parse_words("test lint").unwrap_err().contains("lint"));
        assert!(parse_words("deploy").unwrap_err().contains("deploy"));
        assert!(parse_words("").is_err());
    }

    #[test]
    fn help_wins_over_everything_valid_before_it() {
        for words in ["--help", "-h", "help", "test --help", "test --long fmt -h"] {
            assert_eq!(parse_words(words), Ok(Task::Help), "{words}");
        }
    }
}
