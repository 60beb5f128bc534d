//! The part `words`: documentation in the terms of the field.
//!
//! It reads the comments of the published crates and the pages. Code is left alone, and so are
//! messages, which tests hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The name of the part.
pub(crate) const NAME: &str = "words";

/// The sources of the published crates.
const SOURCES: &[&str] = &[
    "src",
    "idempotency-kafka/src",
    "idempotency-nats/src",
    "idempotency-rabbitmq/src",
    "idempotency-sqs/src",
    "idempotent-macros/src",
    "idempotent-runtime/src",
];
/// The pages, and folders of pages.
const PAGES: &[&str] = &["README.md", "docs", "src"];

/// Wordings, and the term of the field for each.
const WORDINGS: &[(&str, &str)] = &[
    ("unfit", "invalid"),
    ("anew", "again"),
    ("belongs into", "must go through"),
    ("lease is over", "lease has expired"),
    ("transaction is over", "transaction has ended"),
    ("is told", "is notified"),
    ("tells", "reports, returns or shows"),
    ("given back", "released or returned"),
    ("gives back", "releases or returns"),
    ("as ever", "still"),
    ("somebody", "another caller"),
    ("nobody", "no caller"),
];

/// The crates behind the facade. No reader depends on them, so no example names them.
const BEHIND_THE_FACADE: &[&str] = &["idempotent_runtime", "idempotent_macros"];

/// Words with which the first line of an item's documentation does not begin.
const QUESTIONS: &[&str] =
    &["What", "Whether", "How", "Who", "Whoever", "Where", "When", "Why", "Which", "Whose"];
/// The share of first lines that may begin so, of a hundred.
const FEW: usize = 3;

/// Fails if a wording is found, or too many first lines begin with a question.
pub(crate) fn check() -> anyhow::Result<()> {
    let (mut found, mut first_lines) = (Vec::new(), Vec::new());
    for file in files(SOURCES, "rs")? {
        let text = read(&file)?;
        let comments = text.lines().enumerate().filter_map(|(number, line)| {
            let comment = line.trim_start().strip_prefix("//")?;
            Some((number + 1, comment.trim_start_matches(['/', '!'])))
        });
        found.extend(wordings(&file, comments.clone()));
        found.extend(crates_behind_the_facade(&file, comments));
        first_lines.extend(openings(&text).map(|(number, line)| (file.clone(), number, line)));
    }
    for file in files(PAGES, "md")? {
        let page = read(&file)?;
        found.extend(wordings(&file, prose(&page)));
        let lines = page.lines().enumerate().map(|(number, line)| (number + 1, line));
        found.extend(crates_behind_the_facade(&file, lines));
    }
    let questions: Vec<_> = first_lines.iter().filter(|(.., line)| is_question(line)).collect();
    if questions.len() * 100 >= first_lines.len() * FEW {
        found.extend(questions.iter().map(|(file, number, line)| {
            format!("{}:{number}: begins with a question: {line}", file.display())
        }));
    }
    ensure!(found.is_empty(), "{} wordings to replace:\n{}", found.len(), found.join("\n"));
    println!("{} of {} first lines begin with a question", questions.len(), first_lines.len());
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}

/// Returns the files with `extension` in `places`, in order.
fn files(places: &[&str], extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    // Elsewhere than at the root of the workspace, nothing would be read and nothing found.
    for place in places {
        ensure!(Path::new(place).exists(), "{place} is missing: run this at the workspace's root");
    }
    let mut left: Vec<_> = places.iter().map(PathBuf::from).collect();
    let mut files = Vec::new();
    while let Some(place) = left.pop() {
        if place.is_dir() {
            for entry in fs::read_dir(&place)? {
                left.push(entry?.path());
            }
        } else if place.extension().is_some_and(|other| other == extension) {
            files.push(place);
        }
    }
    files.sort();
    Ok(files)
}

/// Returns the lines of a page outside blocks of code.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    page.lines().enumerate().filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((number + 1, line))
    })
}

fn wordings<'a>(
    file: &Path,
    lines: impl Iterator<Item = (usize, &'a str)>,
) -> impl Iterator<Item = String> {
    lines.flat_map(move |(number, line)| {
        let line = without_code(line);
        let found = WORDINGS.iter().filter(move |(wording, _)| has_words(&line, wording));
        found.map(move |(wording, better)| {
            format!("{}:{number}: `{wording}`: write {better}", file.display())
        })
    })
}

/// Returns the lines that name a crate which readers do not depend on, in code or outside.
fn crates_behind_the_facade<'a>(
    file: &Path,
    lines: impl Iterator<Item = (usize, &'a str)>,
) -> impl Iterator<Item = String> {
    lines.flat_map(move |(number, line)| {
        let found = BEHIND_THE_FACADE.iter().filter(move |name| has_words(line, name));
        found.map(move |name| format!("{}:{number}: `{name}`: write idempotency", file.display()))
    })
}

/// Returns `line` in lower case, without what stands between backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`").to_lowercase()
}

/// Returns true if `words` are in `line`, as whole words.
fn has_words(line: &str, words: &str) -> bool {
    let is_letter = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(words).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + words.len()..].chars().next();
        !before.is_some_and(is_letter) && !after.is_some_and(is_letter)
    })
}

/// Returns the first line of each block of documentation of an item.
fn openings(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut is_inside = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let comment = line.trim_start().strip_prefix("///");
        let is_first = comment.is_some() && !is_inside;
        is_inside = comment.is_some();
        is_first.then(|| (number + 1, comment.unwrap_or_default().trim().to_owned()))
    })
}

fn is_question(line: &str) -> bool {
    let word = line.split(|character: char| !character.is_alphabetic()).next();
    word.is_some_and(|word| QUESTIONS.contains(&word))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        crates_behind_the_facade, files, has_words, is_question, openings, prose, without_code,
    };

    #[test]
    fn a_place_that_is_missing_is_an_error() {
        assert!(files(&["no-such-folder"], "rs").is_err());
        assert!(files(&["src"], "rs").is_ok_and(|files| !files.is_empty()));
    }

    #[test]
    fn wordings_are_whole_words_outside_code() {
        assert!(has_words("the url is unfit.", "unfit"));
        assert!(!has_words("an unfitting word", "unfit"));
        assert!(!has_words(&without_code("Calls `anew` again"), "anew"));
        assert!(has_words(&without_code("It is TOLD"), "is told"));
    }

    #[test]
    fn an_example_names_the_crate_that_its_readers_depend_on() {
        let found = |line| crates_behind_the_facade(Path::new("page.md"), [(7, line)].into_iter());
        let messages: Vec<_> = found("/// # use idempotent_runtime::Error;").collect();
        assert_eq!(messages, ["page.md:7: `idempotent_runtime`: write idempotency"]);
        assert_eq!(found("use idempotency::Error; // in idempotent-runtime/src").count(), 0);
    }

    #[test]
    fn code_on_pages_is_left_alone() {
        let page = "one\n```rust\ntwo\n```\nthree";
        assert_eq!(prose(page).collect::<Vec<_>>(), [(1, "one"), (5, "three")]);
    }

    #[test]
    fn the_first_line_of_each_block_counts() {
        let text = "/// One.\n/// When.\nfn one() {}\n\n    /// Whether two.\n    two: bool,\n";
        let found: Vec<_> = openings(text).collect();
        assert_eq!(found, [(1, "One.".to_owned()), (5, "Whether two.".to_owned())]);
        assert!(is_question("Whether two.") && !is_question("Whatever") && !is_question("One."));
    }
}
