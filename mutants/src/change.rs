//! A change of a source, and sources in which an environment variable makes one.
//!
//! Each change is made on a condition, so that one build serves for all of them: the change is
//! chosen when a test runs. The condition is on the lines of what it changes, so that messages of
//! the compiler name them.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use proc_macro2::{LineColumn, Span};

/// The variable that names the change to make in this process and those that it starts.
pub(crate) const VARIABLE: &str = "IDEMPOTENCY_CHANGE";

/// Stands for the condition in the texts of a change.
pub(crate) const CHOSEN: &str = "⟦chosen⟧";

/// Text around, or before, a part of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    start: LineColumn,
    /// `None` if text is only inserted.
    end: Option<LineColumn>,
    opening: String,
    closing: &'static str,
    lines: RangeInclusive<usize>,
    /// The description, on one line.
    pub(crate) text: String,
}

impl Change {
    /// Returns a change that puts the text between `opening` and `closing`.
    pub(crate) fn around(span: Span, opening: String, closing: &'static str, text: String) -> Self {
        let (start, end) = (span.start(), span.end());
        Self { start, end: Some(end), opening, closing, lines: start.line..=end.line, text }
    }

    /// Returns a change that inserts text.
    pub(crate) fn before(place: LineColumn, opening: String, text: String) -> Self {
        Self { start: place, end: None, opening, closing: "", lines: place.line..=place.line, text }
    }

    /// Returns the lines on which the compiler finds it.
    pub(crate) const fn lines(&self) -> &RangeInclusive<usize> {
        &self.lines
    }

    /// Returns its place among the changes of a source.
    pub(crate) const fn order(&self) -> (usize, usize) {
        (self.start.line, self.start.column)
    }
}

/// Where text is inserted; in the order of the variants where two meet.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// What began last ends first.
    Closing(Reverse<LineColumn>),
    /// Text without an end, which comes before the statement or expression.
    Before,
    /// What ends last begins first.
    Opening(Reverse<LineColumn>),
}

/// Returns the source with all of the changes, which are numbered, on their conditions.
pub(crate) fn with_changes<'a>(
    source: &str,
    changes: impl IntoIterator<Item = (usize, &'a Change)>,
) -> String {
    let mut insertions: Vec<(LineColumn, Part, String)> = Vec::new();
    for (number, change) in changes {
        let condition = format!(
            "{{ static CHOSEN: ::std::sync::OnceLock<bool> = ::std::sync::OnceLock::new(); \
             *CHOSEN.get_or_init(|| ::std::env::var(\"{VARIABLE}\").is_ok_and(|it| it == \"{number}\")) }}"
        );
        let opening = change.opening.replace(CHOSEN, &condition);
        let part = change.end.map_or(Part::Before, |end| Part::Opening(Reverse(end)));
        insertions.push((change.start, part, opening));
        if let Some(end) = change.end {
            insertions.push((end, Part::Closing(Reverse(change.start)), change.closing.to_owned()));
        }
    }
    insertions.sort();
    let mut insertions = insertions.into_iter().peekable();
    let mut result = String::new();
    for (index, line) in source.lines().enumerate() {
        for (column, character) in line.chars().enumerate() {
            while let Some((_, _, text)) =
                insertions.next_if(|(at, ..)| (at.line, at.column) == (index + 1, column))
            {
                result.push_str(&text);
            }
            result.push(character);
        }
        while let Some((_, _, text)) = insertions.next_if(|(at, ..)| at.line == index + 1) {
            result.push_str(&text);
        }
        let _ = writeln!(result);
    }
    result
}
