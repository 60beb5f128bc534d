//! Makes one change after another, and runs the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use crate::areas::{Area, Room};
use crate::change::{Change, with_changes};
use crate::options::Options;
use crate::report::{Fate, Report, Sample};
use crate::sample::spread;
use crate::tests::{End, Refused, Test, build};
use crate::tree::Tree;

/// The maximum number of builds. A change without which the code does not compile is left alone,
/// and seldom hides more than one other.
const BUILDS: usize = 16;

/// Finds the changes of one kind in a file.
pub(crate) type Find<'a> = dyn FnMut(&Path, &str) -> anyhow::Result<Vec<Change>> + 'a;

/// A change and its location.
#[derive(Debug)]
struct Place {
    area: &'static str,
    room: &'static Room,
    file: PathBuf,
    change: Change,
    /// True if the source does not compile with it.
    is_refused: bool,
}

/// Takes a sample of each area's changes of a kind.
pub(crate) fn run(
    kind: &'static str,
    find: &mut Find<'_>,
    options: &Options,
    tree: &Tree,
    target: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut places = Vec::new();
    for area in &options.areas {
        for room in area.rooms {
            find_all(tree, area, room, find, &mut places)?;
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
        let of_area = |(_, place): &(usize, &Place)| place.area == area.name && !place.is_refused;
        let candidates: Vec<_> = places.iter().enumerate().filter(of_area).collect();
        let mut changes = Vec::new();
        for index in spread(candidates.len(), options.sample, options.round) {
            let (number, place) = candidates[index];
            let fate = fate(number, place, &tests)?;
            let text = format!(
                "{}:{}: {}",
                place.file.display(),
                place.change.lines().start(),
                place.change.text
            );
            println!("{fate:?} {text}");
            changes.push((fate, text));
        }
        report.add(Sample { area: area.name, kind, total: candidates.len(), changes });
    }
    // The next run starts from the original sources.
    originals.iter().try_for_each(|(file, source)| tree.write(file, source))
}

fn find_all(
    tree: &Tree,
    area: &'static Area,
    room: &'static Room,
    find: &mut Find<'_>,
    places: &mut Vec<Place>,
) -> anyhow::Result<()> {
    for sources in room.sources {
        for file in tree.sources(sources)? {
            for change in find(&file, &tree.read(&file)?)? {
                let (area, file) = (area.name, file.clone());
                places.push(Place { area, room, file, change, is_refused: false });
            }
        }
    }
    Ok(())
}

fn originals(tree: &Tree, places: &[Place]) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let files: BTreeSet<_> = places.iter().map(|place| &place.file).collect();
    files.into_iter().map(|file| Ok((file.clone(), tree.read(file)?))).collect()
}

/// Builds the tests with all changes that compile.
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
                .filter(|(_, place)| place.file == *file && !place.is_refused);
            tree.write(
                file,
                &with_changes(source, here.map(|(number, place)| (number, &place.change))),
            )?;
        }
        match build(&tree.root, target, &names)? {
            Ok(tests) => return Ok(tests),
            Err(refused) => leave(&refused, places)?,
        }
    }
    bail!("the compiler still refuses changes after {BUILDS} builds")
}

/// Leaves alone the changes that the compiler's errors mention. Where they mention none, those
/// between the first and the last line of an error: without a `return`, a borrow lives on to a line
/// that the error mentions.
fn leave(refused: &[Refused], places: &mut [Place]) -> anyhow::Result<()> {
    let mut left = leave_at(refused, places);
    if left == 0 {
        left = leave_at(&between(refused), places);
    }
    let first = refused.first().map_or("", |refused| refused.message.as_str());
    ensure!(left > 0, "the compiler refuses something else than a change: {first}");
    println!("{left} changes are left alone");
    Ok(())
}

/// Returns the number of changes that were not left alone before.
fn leave_at(refused: &[Refused], places: &mut [Place]) -> usize {
    let before = places.iter().filter(|place| place.is_refused).count();
    for place in places.iter_mut() {
        let lines = place.change.lines();
        let is_meant = |refused: &Refused| {
            refused.file == place.file
                && refused.lines.start() <= lines.end()
                && lines.start() <= refused.lines.end()
        };
        place.is_refused |= refused.iter().any(is_meant);
    }
    places.iter().filter(|place| place.is_refused).count() - before
}

/// Returns one place for each error and file, from its first line to its last.
fn between(refused: &[Refused]) -> Vec<Refused> {
    let mut errors: BTreeMap<_, Refused> = BTreeMap::new();
    for place in refused {
        let whole = errors.entry((&place.message, &place.file)).or_insert_with(|| place.clone());
        let start = *whole.lines.start().min(place.lines.start());
        let end = *whole.lines.end().max(place.lines.end());
        whole.lines = start..=end;
    }
    errors.into_values().collect()
}

/// Returns how the tests end with the change.
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
