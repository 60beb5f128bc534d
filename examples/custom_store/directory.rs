//! Records as files: one file per record, in one directory.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use idempotency::clock::{Clock, Timestamp};
use idempotency::key::KeyHash;
use idempotency::store::{Operation, Record, StoreError, StoreErrorKind, envelope};

#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    /// The largest fence of any removed record. The lock is held from reading a record to writing
    /// it back, so that no two operations interleave.
    gone: Mutex<u64>,
}

/// The name of the file in which it is stored.
const GONE: &str = "gone";

impl Directory {
    pub(crate) fn open(path: PathBuf, clock: impl Clock) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        let gone = match fs::read_to_string(path.join(GONE)) {
            Ok(fence) => fence.parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { path, clock: Arc::new(clock), gone: Mutex::new(gone) })
    }

    /// Reads the record, lets `transition` change it, and writes it back, all as one step. Files
    /// are fast enough to block for; a store behind a network would `.await` here.
    ///
    /// `operation` is for the error. To the engine, every error except a damaged record is an
    /// unknown outcome. It then repeats the operation with the same token, by which the store
    /// recognises what has already been written.
    pub(crate) fn step<R>(
        &self,
        operation: Operation,
        key: KeyHash,
        transition: impl FnOnce(&mut Option<Record>, Timestamp) -> R,
    ) -> Result<R, StoreError> {
        self.step_above(operation, key, |slot, now, _| transition(slot, now))
    }

    /// The same for a claim, whose fence must be larger than those of all removed records.
    pub(crate) fn step_above<R>(
        &self,
        operation: Operation,
        key: KeyHash,
        transition: impl FnOnce(&mut Option<Record>, Timestamp, u64) -> R,
    ) -> Result<R, StoreError> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let before = match fs::read(self.file(key)) {
            Ok(bytes) => Some(
                envelope::decode(key, bytes.into(), now)
                    .map_err(|error| error.during(operation))?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unavailable(operation, error)),
        };
        let mut slot = before.clone();
        let answer = transition(&mut slot, now, *gone);
        if slot != before {
            let written = match (&slot, &before) {
                (Some(record), _) => self.write(&key.to_hex(), &envelope::encode(record)),
                (None, Some(record)) => self.remove(record, &mut gone),
                (None, None) => Ok(()),
            };
            written.map_err(|error| unavailable(operation, error))?;
        }
        Ok(answer)
    }

    /// Writes a file. A crash in the middle leaves the old file or the new one, never a part of
    /// one.
    fn write(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        let new = self.path.join("new");
        let mut file = File::create(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(new, self.path.join(name))
    }

    /// Removes a record, but stores its fence first: a resource may have seen it, and rejects
    /// smaller ones.
    fn remove(&self, record: &Record, gone: &mut u64) -> io::Result<()> {
        if record.fence > *gone {
            self.write(GONE, record.fence.to_string().as_bytes())?;
            *gone = record.fence;
        }
        fs::remove_file(self.file(record.key))
    }

    /// Returns the keys of all records, in order.
    pub(crate) fn keys(&self, operation: Operation) -> Result<Vec<KeyHash>, StoreError> {
        let names = fs::read_dir(&self.path).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
        });
        let names = names.map_err(|error| unavailable(operation, error))?;
        let mut keys: Vec<_> =
            names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    fn file(&self, key: KeyHash) -> PathBuf {
        self.path.join(key.to_hex())
    }
}

fn unavailable(operation: Operation, error: io::Error) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, operation).with_source(error)
}
