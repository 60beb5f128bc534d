//! The tests that should notice: built once, and run with one statement removed.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::areas::UNIT;
use crate::change::VARIABLE;

/// The interval at which a running test is polled.
const TICK: Duration = Duration::from_millis(20);
/// The number of times that a test without a deletion may fail.
const ATTEMPTS: usize = 3;
/// The time that a test without a deletion may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// A place that the compiler rejects.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) file: PathBuf,
    pub(crate) lines: std::ops::RangeInclusive<usize>,
    pub(crate) message: String,
}

/// The end of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Passed,
    Failed,
    /// It was killed when its time had passed.
    TimedOut,
}

/// A test target that has been built.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    program: PathBuf,
    folder: PathBuf,
    limit: Duration,
    is_measured: bool,
}

impl Test {
    /// Runs it without a deletion, to measure how long it takes. `None` if that is known.
    pub(crate) fn measure(&mut self) -> anyhow::Result<Option<Duration>> {
        if self.is_measured {
            return Ok(None);
        }
        let mut attempts = 0;
        let time = loop {
            let start = Instant::now();
            if self.run(None)? == End::Passed {
                break start.elapsed();
            }
            // Another process may have kept the machine busy.
            attempts += 1;
            ensure!(
                attempts < ATTEMPTS,
                "the test `{}` does not pass with nothing taken away",
                self.name
            );
        };
        self.limit = time * 4 + Duration::from_secs(30);
        self.is_measured = true;
        Ok(Some(time))
    }

    pub(crate) fn run(&self, deleted: Option<usize>) -> anyhow::Result<End> {
        let mut command = Command::new(&self.program);
        // A group of its own: when it is killed, so are the processes that it has started.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.env_remove(VARIABLE).envs(deleted.map(|number| (VARIABLE, number.to_string())));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command
            .spawn()
            .with_context(|| format!("{} does not start", self.program.display()))?;
        let has_failed = Arc::new(AtomicBool::new(false));
        if let Some(output) = child.stdout.take() {
            let has_failed = Arc::clone(&has_failed);
            // Ends when the last process with this output ends.
            std::thread::spawn(move || watch(output, &has_failed));
        }
        wait(child, self.limit, &has_failed)
    }
}

/// Reads everything that a test prints, and notes the first failure.
fn watch(output: impl Read, has_failed: &AtomicBool) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        if line.starts_with(b"test ") && line.ends_with(b" ... FAILED") {
            has_failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Waits for the end of a test, for its time limit, or for its first failure: the rest adds
/// nothing.
fn wait(mut child: Child, limit: Duration, has_failed: &AtomicBool) -> anyhow::Result<End> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() { End::Passed } else { End::Failed });
        }
        let (has_failed, is_late) = (has_failed.load(Ordering::Relaxed), start.elapsed() >= limit);
        if has_failed || is_late {
            if let Some(group) = Pid::from_raw(i32::try_from(child.id())?) {
                kill_process_group(group, Signal::KILL)?;
            }
            child.wait()?;
            return Ok(if has_failed { End::Failed } else { End::TimedOut });
        }
        std::thread::sleep(TICK);
    }
}

/// Builds `names` in the tree at `root`, or returns what the compiler rejects.
pub(crate) fn build(
    root: &Path,
    target: &Path,
    names: &[&'static str],
) -> anyhow::Result<Result<BTreeMap<&'static str, Test>, Vec<Refused>>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--workspace", "--all-features", "--no-run", "--message-format=json"]);
    command.args(targets(names));
    command.current_dir(root).env("CARGO_TARGET_DIR", target).env("CARGO_INCREMENTAL", "0");
    let output = command.stderr(Stdio::inherit()).output().context("cargo does not start")?;
    let (mut tests, mut refused) = (BTreeMap::new(), Vec::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        match message["reason"].as_str() {
            Some("compiler-artifact") if message["profile"]["test"] == true => {
                let name = names.iter().find(|name| message["target"]["name"] == **name);
                let program = message["executable"].as_str();
                let manifest =
                    message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
                if let (Some(name), Some(program), Some(folder)) = (name, program, manifest) {
                    let test = Test {
                        name,
                        program: program.into(),
                        folder: folder.into(),
                        limit: PATIENCE,
                        is_measured: false,
                    };
                    tests.insert(*name, test);
                }
            }
            Some("compiler-message") if message["message"]["level"] == "error" => {
                refused.extend(refusals(&message));
            }
            _ => {}
        }
    }
    if output.status.success() {
        if let Some(missing) = names.iter().find(|name| !tests.contains_key(*name)) {
            bail!("there is no test target `{missing}`");
        }
        return Ok(Ok(tests));
    }
    ensure!(!refused.is_empty(), "the tests cannot be built, and the compiler does not say why");
    Ok(Err(refused))
}

/// Returns the arguments that select these test targets in a cargo command.
pub(crate) fn targets<'a>(names: &'a [&'static str]) -> impl Iterator<Item = &'static str> + 'a {
    names.iter().flat_map(|name| if *name == UNIT { vec!["--lib"] } else { vec!["--test", name] })
}

/// Returns all places that an error mentions.
fn refusals(message: &Value) -> Vec<Refused> {
    let text = message["message"]["rendered"].as_str().unwrap_or_default();
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let mut spans = list(&message["message"], "spans");
    spans.extend(list(&message["message"], "children").iter().flat_map(|note| list(note, "spans")));
    let refusal = |span: &Value| {
        let line = |name: &str| span[name].as_u64().and_then(|line| usize::try_from(line).ok());
        Some(Refused {
            file: span["file_name"].as_str()?.into(),
            lines: line("line_start")?..=line("line_end")?,
            message: text.to_owned(),
        })
    };
    spans.iter().filter_map(refusal).collect()
}
