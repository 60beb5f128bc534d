//! Where in a value something is.

use std::fmt;

/// One step on the way from the whole value to a part of it. Keys of maps are the user's data, so
/// an entry goes by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(&'static str),
    Variant(&'static str),
    Element(usize),
    Entry(usize),
}

/// The way to a part of a value, the last step first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(Vec<Step>);

impl Place {
    /// The same place, of the value around.
    pub(super) fn within(&mut self, step: Step) {
        self.0.push(step);
    }
}

/// `items[2].rate`, `Card.limit`, `rates{0}`.
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
