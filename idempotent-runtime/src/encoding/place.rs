//! The position of a part within a value.

use std::fmt;

/// One step from the whole value to a part of it. Keys of maps are the user's data, so an entry is
/// identified by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(&'static str),
    Variant(&'static str),
    Element(usize),
    Entry(usize),
}

/// The path to a part of a value, the last step first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(Vec<Step>);

impl Place {
    /// Turns this into the same place, seen from the enclosing value.
    pub(super) fn within(&mut self, step: Step) {
        self.0.push(step);
    }
}

/// Formats the position as `items[2].rate`, `Card.limit` or `rates{0}`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the value itself");
        }
        f.write_str("`")?;
        for (position, step) in self.0.iter().rev().enumerate() {
            match step {
                Step::Field(name) | Step::Variant(name) if position == 0 => f.write_str(name)?,
                Step::Field(name) | Step::Variant(name) => write!(f, ".{name}")?,
                Step::Element(index) => write!(f, "[{index}]")?,
                Step::Entry(index) => write!(f, "{{{index}}}")?,
            }
        }
        f.write_str("`")
    }
}
