//! The command line.

use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::areas::{AREAS, Area};

/// The default size of a sample, for each area and kind.
const SAMPLE: usize = 60;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) areas: Vec<&'static Area>,
    pub(crate) sample: usize,
    /// The number of the sample.
    pub(crate) round: usize,
    /// True to delete statements.
    pub(crate) deletes: bool,
    /// True to let `cargo-mutants` change the sources.
    pub(crate) changes: bool,
}

impl Options {
    /// Parses the command line. `None` if help is requested.
    pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Option<Self>, lexopt::Error> {
        let mut names: Vec<String> = Vec::new();
        let (mut sample, mut round) = (SAMPLE, 0);
        let (mut deletes, mut changes) = (false, false);
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("sample") => sample = parser.value()?.parse()?,
                Long("round") => round = parser.value()?.parse()?,
                Long("deleted") => deletes = true,
                Long("changed") => changes = true,
                Value(value) => names.push(value.string()?),
                Short(_) | Long(_) => return Err(argument.unexpected()),
            }
        }
        if let Some(unknown) =
            names.iter().find(|name| AREAS.iter().all(|area| area.name != **name))
        {
            return Err(format!("there is no area `{unknown}`").into());
        }
        if sample == 0 {
            return Err("a sample of nothing says nothing".into());
        }
        if !deletes && !changes {
            (deletes, changes) = (true, true);
        }
        let wanted = |area: &&Area| names.is_empty() || names.iter().any(|name| name == area.name);
        Ok(Some(Self {
            areas: AREAS.iter().filter(wanted).collect(),
            sample,
            round,
            deletes,
            changes,
        }))
    }
}

pub(crate) fn help() -> String {
    let areas = AREAS.iter().map(|area| area.name).collect::<Vec<_>>().join(", ");
    format!(
        "Usage: cargo xtask mutants [--sample N] [--round N] [--deleted] [--changed] [AREA]...\n\n\
         Areas: {areas}\n\n  \
         --sample N   how many changes of each kind are made to an area (default {SAMPLE})\n  \
         --round N    another sample\n  \
         --deleted    only deleted statements\n  \
         --changed    only what cargo-mutants proposes"
    )
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(words: &str) -> Result<Options, String> {
        let options = Options::parse(lexopt::Parser::from_args(words.split_whitespace()));
        options
            .map_err(|error| error.to_string())
            .map(|options| options.expect("help was not asked for"))
    }

    #[test]
    fn without_arguments_all_areas_are_looked_at_in_both_ways() {
        let options = parse("").unwrap();
        assert_eq!(
            options.areas.iter().map(|area| area.name).collect::<Vec<_>>(),
            ["engine", "contract", "steps", "inbox", "http", "stores"]
        );
        assert_eq!(
            (options.sample, options.round, options.deletes, options.changes),
            (60, 0, true, true)
        );
    }

    #[test]
    fn areas_kinds_and_samples_are_chosen() {
        let options = parse("--deleted http --sample 5 --round 2").unwrap();
        assert_eq!(options.areas.iter().map(|area| area.name).collect::<Vec<_>>(), ["http"]);
        assert_eq!(
            (options.sample, options.round, options.deletes, options.changes),
            (5, 2, true, false)
        );
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert!(parse("console").unwrap_err().contains("console"));
        assert!(parse("--fast").unwrap_err().contains("--fast"));
        assert!(parse("--sample 0").is_err());
    }
}
