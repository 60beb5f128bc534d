//! Effects, counted outside the code under test.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::deadline::eventually;

/// A file to which every effect appends one line, shared by all tasks and processes of a test.
///
/// A line is one `write` to a file opened with `O_APPEND`: it is complete or missing, even if the
/// writer is killed, and lines of several processes do not mix. There is no buffer that a kill
/// could lose.
///
/// ```
/// use idempotency_test_support::effects::EffectLog;
///
/// let directory = tempfile::tempdir()?;
/// let effects = EffectLog::open(directory.path().join("effects"))?;
/// effects.append("order-1 charged 100")?;
/// effects.append("order-2 charged 100")?;
/// effects.append("order-1 charged 100")?;
/// assert_eq!(effects.count("order-1")?, 2);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct EffectLog {
    path: PathBuf,
    file: File,
}

impl EffectLog {
    /// Opens the log at `path`, which is created if it is missing. Workers open the same path.
    ///
    /// # Errors
    /// If the file cannot be opened for appending.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { path, file })
    }

    /// Returns the path of the log, to pass it to worker processes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line. By convention its first word is the key of the effect.
    ///
    /// # Errors
    /// If the line contains a line break, or was not written completely.
    pub fn append(&self, line: &str) -> io::Result<()> {
        if line.contains('\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an effect is one line"));
        }
        let line = format!("{line}\n");
        let written = (&self.file).write(line.as_bytes())?;
        if written < line.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "only a part of the effect was written",
            ));
        }
        Ok(())
    }

    /// Returns the lines so far, in the order in which they were written.
    ///
    /// # Errors
    /// If the file cannot be read, or is not UTF-8.
    pub fn lines(&self) -> io::Result<Vec<String>> {
        Ok(fs::read_to_string(&self.path)?.lines().map(String::from).collect())
    }

    /// Returns the number of lines for each key. The key is the first word of a line.
    ///
    /// # Errors
    /// As [`lines`](Self::lines).
    pub fn count_by_key(&self) -> io::Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for line in self.lines()? {
            *counts.entry(String::from(key(&line))).or_default() += 1;
        }
        Ok(counts)
    }

    /// Returns the number of lines for this key.
    ///
    /// # Errors
    /// As [`lines`](Self::lines).
    pub fn count(&self, of: &str) -> io::Result<usize> {
        Ok(self.lines()?.iter().filter(|line| key(line) == of).count())
    }

    /// Waits until each of `keys` has an effect.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn have_happened(
        &self,
        keys: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<()> {
        let keys: Vec<_> = keys.into_iter().collect();
        eventually(format!("{} effects", keys.len()), || {
            let counts = self.count_by_key().unwrap_or_default();
            keys.iter().all(|key| counts.contains_key(key))
        })
        .await
    }

    /// Checks that each of `keys` has one effect, and nothing else has any.
    ///
    /// # Errors
    /// If that is not so, with the keys that differ; and as [`lines`](Self::lines).
    pub fn assert_once(&self, keys: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let expected: BTreeMap<_, _> = keys.into_iter().map(|key| (key, 1)).collect();
        let counts = self.count_by_key()?;
        let differ = counts.iter().filter(|(key, count)| expected.get(*key) != Some(*count));
        let differ: Vec<_> = differ.collect();
        ensure!(differ.is_empty() && counts.len() == expected.len(), "{differ:?}, {counts:?}");
        Ok(())
    }
}

fn key(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use super::EffectLog;

    #[test]
    fn lines_of_many_writers_stay_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("effects");
        thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let log = EffectLog::open(path).unwrap();
                    for number in 0..200 {
                        log.append(&format!("writer-{writer} {number} {}", "x".repeat(number)))
                            .unwrap();
                    }
                });
            }
        });
        let log = EffectLog::open(&path).unwrap();
        let expected: BTreeMap<_, _> =
            (0..8).map(|writer| (format!("writer-{writer}"), 200)).collect();
        assert_eq!(log.count_by_key().unwrap(), expected);
        assert!(log.lines().unwrap().iter().all(|line| {
            let words: Vec<_> = line.split(' ').collect();
            words[2].len().to_string() == words[1]
        }));
    }

    #[test]
    fn one_effect_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let log = EffectLog::open(directory.path().join("effects")).unwrap();
        log.append("a\nb").unwrap_err();
        assert_eq!(log.lines().unwrap(), [""; 0]);
    }

    #[test]
    fn a_log_that_is_opened_again_keeps_its_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("effects");
        EffectLog::open(&path).unwrap().append("first").unwrap();
        let log = EffectLog::open(&path).unwrap();
        log.append("second").unwrap();
        assert_eq!(log.lines().unwrap(), ["first", "second"]);
        assert_eq!(log.path(), path);
    }
}
