//! Deletes one statement after another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use crate::areas::{Area, Room};
use crate::options::Options;
use crate::report::{Fate, Report, Sample};
use crate::sample::spread;
use crate::statements::{Statement, statements, with_conditions};
use crate::tests::{End, Refused, Test, build};
use crate::tree::Tree;

const KIND: &str = "deleted statements";
/// The maximum number of builds. A statement without which the code does not compile is left alone,
/// and seldom hides more than one other.
const BUILDS: usize = 12;

/// A statement and its location.
#[derive(Debug)]
struct Place {
    area: &'static str,
    room: &'static Room,
    file: PathBuf,
    statement: Statement,
    /// True if the source does not compile without it.
    is_needed: bool,
}

pub(crate) fn run(
    options: &Options,
    tree: &Tree,
    target: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut places = Vec::new();
    for area in &options.areas {
        for room in area.rooms {
            find(tree, area, room, &mut places)?;
        }
    }
    let originals = originals(tree, &places)?;
    let mut tests = built(options, tree, target, &originals, &mut places)?;
    for area in &options.areas {
        for name in area.rooms.iter().flat_map(|room| room.tests) {
            if let Some(time) = tests.get_mut(name).map(Test::measure).transpose()?.flatten() {
                println!("{name}: {:.1} s", time.as_secs_f64());
            }
        }
        let of_area = |(_, place): &(usize, &Place)| place.area == area.name && !place.is_needed;
        let candidates: Vec<_> = places.iter().enumerate().filter(of_area).collect();
        let mut changes = Vec::new();
        for index in spread(candidates.len(), options.sample, options.round) {
            let (number, place) = candidates[index];
            let fate = fate(number, place, &tests)?;
            let text = format!(
                "{}:{}: {}",
                place.file.display(),
                place.statement.lines().start(),
                place.statement.text
            );
            println!("{fate:?} {text}");
            changes.push((fate, text));
        }
        report.add(Sample { area: area.name, kind: KIND, total: candidates.len(), changes });
    }
    // The next run starts from the original sources.
    originals.iter().try_for_each(|(file, source)| tree.write(file, source))
}

fn find(
    tree: &Tree,
    area: &'static Area,
    room: &'static Room,
    places: &mut Vec<Place>,
) -> anyhow::Result<()> {
    for sources in room.sources {
        for file in tree.sources(sources)? {
            for statement in statements(&tree.read(&file)?)? {
                places.push(Place {
                    area: area.name,
                    room,
                    file: file.clone(),
                    statement,
                    is_needed: false,
                });
            }
        }
    }
    Ok(())
}

fn originals(tree: &Tree, places: &[Place]) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let files: BTreeSet<_> = places.iter().map(|place| &place.file).collect();
    files.into_iter().map(|file| Ok((file.clone(), tree.read(file)?))).collect()
}

/// Builds the tests with all statements in conditions that compile.
fn built(
    options: &Options,
    tree: &Tree,
    target: &Path,
    originals: &BTreeMap<PathBuf, String>,
    places: &mut [Place],
) -> anyhow::Result<BTreeMap<&'static str, Test>> {
    let names: BTreeSet<_> = options
        .areas
        .iter()
        .flat_map(|area| area.rooms)
        .flat_map(|room| room.tests)
        .copied()
        .collect();
    let names: Vec<_> = names.into_iter().collect();
    for _ in 0..BUILDS {
        for (file, source) in originals {
            let here = places
                .iter()
                .enumerate()
                .filter(|(_, place)| place.file == *file && !place.is_needed);
            tree.write(
                file,
                &with_conditions(source, here.map(|(number, place)| (number, &place.statement))),
            )?;
        }
        match build(&tree.root, target, &names)? {
            Ok(tests) => return Ok(tests),
            Err(refused) => leave(&refused, places)?,
        }
    }
    bail!("the compiler still refuses conditions around statements after {BUILDS} builds")
}

/// Leaves alone the statements that the compiler's errors mention.
fn leave(refused: &[Refused], places: &mut [Place]) -> anyhow::Result<()> {
    let before = places.iter().filter(|place| place.is_needed).count();
    for place in places.iter_mut() {
        let lines = place.statement.lines();
        let is_meant = |refused: &Refused| {
            refused.file == place.file
                && refused.lines.start() <= lines.end()
                && lines.start() <= refused.lines.end()
        };
        place.is_needed |= refused.iter().any(is_meant);
    }
    let left = places.iter().filter(|place| place.is_needed).count() - before;
    let first = refused.first().map_or("", |refused| refused.message.as_str());
    ensure!(left > 0, "the compiler refuses something else than a condition: {first}");
    println!("{left} statements are left alone");
    Ok(())
}

/// Returns how the tests end without the statement.
fn fate(number: usize, place: &Place, tests: &BTreeMap<&str, Test>) -> anyhow::Result<Fate> {
    let mut fate = Fate::Survived;
    for name in place.room.tests {
        match tests[name].run(Some(number))? {
            End::Passed => {}
            End::Failed => return Ok(Fate::Caught),
            // A later one may report what is wrong.
            End::TimedOut => fate = Fate::TimedOut,
        }
    }
    Ok(fate)
}
