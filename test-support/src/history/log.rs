//! A history written by several processes.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::event::Event;
use crate::effects::EffectLog;

/// Events in a file, one per line, with the same guarantees as an [`EffectLog`].
#[derive(Debug)]
pub struct EventLog(EffectLog);

impl EventLog {
    /// Opens the log at `path`, which is created if it is missing.
    ///
    /// # Errors
    /// If the file cannot be opened for appending.
    pub fn open(path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let path = path.into();
        let shown = path.display().to_string();
        EffectLog::open(path).map(Self).with_context(|| format!("could not open {shown}"))
    }

    /// Returns the path of the log, to pass it to worker processes.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Appends one event.
    ///
    /// # Errors
    /// If it was not written completely.
    pub fn append(&self, event: impl Into<Event>) -> anyhow::Result<()> {
        Ok(self.0.append(&serde_json::to_string(&event.into())?)?)
    }

    /// Returns the events of this key so far.
    ///
    /// # Errors
    /// As [`events`](Self::events).
    pub fn events_of(&self, key: &str) -> anyhow::Result<Vec<Event>> {
        // Only lines that contain the key are parsed as events: the log may be long.
        let quoted = serde_json::to_string(key)?;
        let lines = self.0.lines()?;
        let lines = lines.iter().filter(|line| line.contains(&quoted));
        let events = lines.map(|line| read(line)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(events.into_iter().filter(|event| event.key() == key).collect())
    }

    /// Returns the events so far.
    ///
    /// # Errors
    /// If the file cannot be read, or contains anything else.
    pub fn events(&self) -> anyhow::Result<Vec<Event>> {
        let lines = self.0.lines()?;
        lines.iter().map(|line| read(line)).collect()
    }
}

fn read(line: &str) -> anyhow::Result<Event> {
    serde_json::from_str(line).with_context(|| format!("no event: {line}"))
}
