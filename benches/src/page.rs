//! The table of all figures, for the terminal and for the documentation.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{ContentArrangement, Table};

use crate::measure::{Row, Target};

/// The marks around the table on the page. The rest of the page is written by hand.
const BEGIN: &str = "<!-- figures: cargo xtask bench --write -->";
const END: &str = "<!-- end of the figures -->";

pub fn table(rows: &[Row]) -> Table {
    let mut table = lines(rows);
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

fn lines(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "path",
        "reference in the same run",
        "target",
        "ratio (spread)",
        "this : reference",
        "",
    ]);
    for row in rows {
        let target = match row.target {
            Target::AtMost(limit) => format!("≤ {limit}"),
            Target::AtLeast(limit) => format!("≥ {limit}"),
            Target::Told => "–".into(),
        };
        let met = match row.is_met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        table.add_row([&row.path, &row.reference, &target, &ratio(row), &row.figures, met]);
    }
    table
}

/// Formats the median of the rounds, with the lowest and the highest.
fn ratio(row: &Row) -> String {
    let Some(median) = row.ratio() else { return "–".into() };
    let lowest = row.ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = row.ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if row.ratios.len() == 1 {
        format!("{median:.2}")
    } else {
        format!("{median:.2} ({lowest:.2} – {highest:.2})")
    }
}

/// Writes the figures into the page at `path`, between its two marks.
pub fn write(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let page =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let marked =
        page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        marked.with_context(|| format!("{} has no marks for the figures", path.display()))?;
    let mut table = lines(rows);
    table.load_preset(ASCII_MARKDOWN);
    let mut text = String::from(before);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    write!(
        text,
        "{BEGIN}\n\nMeasured with {cores} cores, client and servers on one machine.\n\n{table}\n\n{END}{after}"
    )?;
    Ok(std::fs::write(path, text)?)
}
